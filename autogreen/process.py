"""One job in a fresh process: plain data in on its standard input, plain data back on its standard output."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
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
    # -P: the working folder, which may be a bundle itself, is no place to import from
    here = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(device), "PYTHONPATH": here},
        start_new_session=True,
    ) as process:
        try:
            told, complaints = process.communicate(json.dumps(job), timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise failure(
                f"{what} was not {done} within {limit_s:g} s and was stopped. Allow more time, or quiet the machine."
            ) from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # compilers too
    if process.returncode != 0 or not told:
        how = f"exit status {process.returncode}"
        if process.returncode < 0:
            how = f"signal {signal.Signals(-process.returncode).name}"
        last = complaints.strip().splitlines()[-1:] or ["it said nothing"]
        raise failure(f"the process that {done} {what} died ({how}); its last words: {last[0]}")
    found: dict[str, Any] = json.loads(told)
    if "crash" in found:
        raise failure(f"{what} could not be {done}: {found['crash']}")
    if "error" in found:
        raise failure(found["error"])
    return found


def answer(work: Callable[[Any], dict[str, Any]]) -> None:
    """Do the one job that `ask` gave this process. Whatever third parties print goes to standard error."""
    die_with_parent()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        found = work(json.load(sys.stdin))
    except AutogreenError as error:
        found = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - every failure is to reach the one who asked
        found = {"crash": f"{type(error).__name__}: {error}"}
    with out:
        json.dump(found, out)
