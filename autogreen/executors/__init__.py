"""Executors: where policies are evaluated.

submit(job) ... next_done() -> Done          one job fails, the study goes on

Each device is a slot, and a job takes the first that is free, in an order that stays. What is asked alone thus runs on
one device, the home of the study: its references, probes and finalists.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from autogreen.errors import AutogreenError, ConfigError, EvaluationError, StudyError
from autogreen.registry import Table
from autogreen.schema import build

if TYPE_CHECKING:
    from autogreen.workbench import Setup

DISK = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "it is read-only"}

EXECUTORS = Table(
    "executor",
    {
        "inline": "autogreen.executors.inline:Inline",
        "local": "autogreen.executors.local:Local",
        "ray": "autogreen.executors.ray:Ray",
    },
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A method of `Evaluator` with its arguments. limit_s: seconds after which the worker is killed, or None."""

    call: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    limit_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished job: its value, or the error that says why there is none. duration_s: wall time."""

    job: Job
    value: Any = None
    error: AutogreenError | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Of an executor about which there is nothing to say."""


class Executor(Protocol):
    """Contract of the family: built with a `Setup` and the fields of its `settings`, a frozen dataclass, by name."""

    settings: ClassVar[type]

    @property
    def slots(self) -> int:
        """How many jobs run at once; fewer than before where devices were lost, and then at least one."""
        ...

    def submit(self, job: Job) -> None:
        """Start a job on a free slot."""
        ...

    def next_done(self) -> Done:
        """Wait for a job to finish."""
        ...

    def close(self) -> None:
        """Stop all work, compilers included; may be called twice."""
        ...


def settings_of(data: Any, where: str) -> tuple[str, Any]:
    """The name and the settings of what an experiment says: `ray`, or `{ray: {address: auto}}`.

    Raises:
        ConfigError: no such executor, or no such setting; names the path, the value and what is allowed.
    """
    if isinstance(data, str):
        data = {data: {}}
    if not isinstance(data, Mapping) or len(data) != 1:
        raise ConfigError(f"{where} must be a name or one {{name: settings}}, not {data!r}.")
    ((name, given),) = data.items()
    return name, build(EXECUTORS[name].settings, {} if given is None else given, f"{where}.{name}")


def opened(data: Any, setup: "Setup") -> Executor:
    """The executor that an experiment names, ready for jobs.

    Raises:
        AutogreenError: it cannot be had here.
    """
    name, settings = settings_of(data, "executor")
    executor: Executor = EXECUTORS[name](setup, **vars(settings))
    return executor


def die_with_parent() -> None:
    """From now on this process kills its group, itself and its compilers, once the process that started it is gone."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def translated(error: Exception) -> AutogreenError:
    """What an exception means for the study: one of ours as it is, a disk that cannot be written to stops the study,
    anything else is the trial's own failure."""
    if isinstance(error, AutogreenError):
        return error
    if isinstance(error, OSError) and (reason := DISK.get(error.errno or 0)):
        return StudyError(f"{error.filename or 'the run folder'} cannot be written: {reason}. Make room and run again.")
    if isinstance(error, PermissionError):
        return StudyError(f"{error.filename} cannot be written: permission denied. Choose another folder with --runs.")
    if is_out_of_memory(error):
        return EvaluationError(f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more to be had'}")
    return EvaluationError(f"{type(error).__name__}: {error}")


def ended_by(code: int | None) -> str:
    """What an exit code says of how a process ended. None: nothing is known of it."""
    if code is None or code >= 0:
        return f"exit status {code}"
    hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return f"signal {signal.Signals(-code).name}{hint}"


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    told = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or told
