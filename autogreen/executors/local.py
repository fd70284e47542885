"""A persistent worker process on this machine, replaced when it crashes, runs out of memory or out of time."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import cloudpickle

from autogreen.engines import environment
from autogreen.errors import AutogreenError, EvaluationError
from autogreen.executors import Done, Job, NoSettings, ended_by

if TYPE_CHECKING:  # who only relays jobs need not load what evaluates them
    from autogreen.workbench import Setup

GRACE_S = 10.0  # a worker checks its limit itself, between steps; one that is stuck in a single step is killed


class Worker:
    """One process for one device; it is started when it is first needed. setup: a pickled `Setup`. log: where its own
    output goes, in the study's folder."""

    def __init__(self, setup: bytes, device: str, log: Path) -> None:
        self._setup, self._device, self._log = setup, device, log
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._job: Job | None = None
        self._began = 0.0

    def submit(self, job: Job) -> None:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._connection is not None and self._job is None
        self._job, self._began = job, time.monotonic()
        with suppress(OSError):  # a worker that died meanwhile is noticed when its answer is read
            self._connection.send_bytes(cloudpickle.dumps(job))

    def next_done(self) -> Done:
        assert self._job is not None and self._connection is not None
        job, value = self._job, None
        error: AutogreenError | None = None
        limit_s = None if job.limit_s is None else job.limit_s + GRACE_S
        try:
            if not self._connection.poll(limit_s):
                self._kill()
                error = EvaluationError(f"the time limit of {job.limit_s:.0f} s has passed; its worker was stopped.")
            else:
                value, error, worn = cloudpickle.loads(self._connection.recv_bytes())
                if worn:
                    self._kill()
        except (EOFError, OSError):
            error = self._died()
        self._job = None
        return Done(job=job, value=value, error=error, duration_s=time.monotonic() - self._began)

    def close(self) -> None:
        if self._process is not None:
            self._kill()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autogreen.executors.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # a user's own modules are found there as they are here
                env={**environment(self._device), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        theirs.close()
        self._connection = Connection(ours.detach())
        with suppress(OSError):
            self._connection.send_bytes(self._setup)

    def _died(self) -> AutogreenError:
        assert self._process is not None
        code = self._process.wait()
        self._kill()
        return EvaluationError(
            f"the worker died ({ended_by(code)}); {self._log.name} in the study's folder holds its last words."
        )

    def _kill(self) -> None:
        assert self._process is not None and self._connection is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        self._process = self._connection = None


class Local(Worker):
    """One worker on this machine. Its own output goes to `worker.log` in the study's folder."""

    settings: ClassVar[type] = NoSettings
    slots = 1

    def __init__(self, setup: "Setup") -> None:
        super().__init__(cloudpickle.dumps(setup), setup.device, setup.folder / "worker.log")
