"""Work in a fresh process: plain data in on its standard input, plain data back on its standard output, a line each."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from autogreen.engines import environment
from autogreen.errors import AutogreenError
from autogreen.executors import die_with_parent


def ask(
    module: str, job: Any, *, device: str, what: str, done: str, limit_s: float, failure: type[AutogreenError]
) -> dict[str, Any]:
    """Run `module`, whose main calls `answer`, in the environment in which a device is measured; return its answer.

    Args:
        what, done: for errors: "FOLDER", "verified".
        limit_s: seconds after which it is stopped, with its children.

    Raises:
        AutogreenError: of the type `failure`: what the job itself raised, its time was up, or its process died.
    """
    (found,) = ask_each(module, job, device=device, what=what, done=done, limit_s=limit_s, failure=failure)
    return found


def ask_each(
    module: str, job: Any, *, device: str, what: str, done: str, limit_s: float, failure: type[AutogreenError]
) -> Iterator[dict[str, Any]]:
    """The same for a job that gives several answers (`answer_each`): each as it comes, at least one. Closing the
    iterator stops the process. limit_s: for all of them together.

    Raises:
        AutogreenError: as `ask`; the answers before were good.
    """
    # -P: the working folder, which may be a bundle itself, is no place to import from
    here = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    with (
        tempfile.TemporaryFile("w+", errors="replace") as complaints,
        subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env={**environment(device), "PYTHONPATH": here},
            start_new_session=True,
        ) as process,
    ):
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill(process)

        clock = threading.Timer(limit_s, stop)
        clock.start()
        told = False
        try:
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError), process.stdin as given:  # a process that died says so below
                json.dump(job, given)
            for line in process.stdout:
                if not line.endswith("\n"):  # it was killed while it spoke
                    break
                found: dict[str, Any] = json.loads(line)
                if "crash" in found:
                    raise failure(f"{what} could not be {done}: {found['crash']}")
                if "error" in found:
                    raise failure(found["error"])
                told = True
                yield found
            process.wait()
        finally:
            clock.cancel()
            _kill(process)  # compilers too
        if late.is_set():
            raise failure(
                f"{what} was not {done} within {limit_s:g} s and was stopped. Allow more time, or quiet the machine."
            )
        if process.returncode != 0 or not told:
            how = f"exit status {process.returncode}"
            if process.returncode < 0:
                how = f"signal {signal.Signals(-process.returncode).name}"
            complaints.seek(0)
            last = complaints.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise failure(f"the process that {done} {what} died ({how}); its last words: {last[0]}")


def answer(work: Callable[[Any], dict[str, Any]]) -> None:
    """Do the one job that `ask` gave this process. Whatever third parties print goes to standard error."""
    answer_each(lambda job: iter([work(job)]))


def answer_each(work: Callable[[Any], Iterator[dict[str, Any]]]) -> None:
    """Do the job that `ask_each` gave this process, and hand back each answer when it is there."""
    die_with_parent()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with out:
        try:
            for found in work(json.load(sys.stdin)):
                print(json.dumps(found), file=out, flush=True)
        except AutogreenError as error:
            print(json.dumps({"error": str(error)}), file=out)
        except Exception as error:  # noqa: BLE001 - every failure is to reach the one who asked
            print(json.dumps({"crash": f"{type(error).__name__}: {error}"}), file=out)


def _kill(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
