"""The worker process: `python -m autogreen.executors.worker FD`. Reads jobs from a socket, answers each, in turn.

It leads its own process group. When its parent dies it kills that group, so that no compiler goes on running.
"""

import errno
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from autogreen.errors import AutogreenError, EvaluationError, StudyError
from autogreen.executors import die_with_parent

DISK = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "it is read-only"}


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    die_with_parent()
    # only now, so that a parent that dies during the heavy imports is noticed
    from autogreen.evaluate import Evaluator

    answer: tuple[Any, AutogreenError | None, bool]
    evaluator = Evaluator(cloudpickle.loads(connection.recv_bytes()))
    while True:
        try:
            job = cloudpickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = (getattr(evaluator, job.call)(**job.arguments), None, False)
        except Exception as error:  # noqa: BLE001 - user code may raise anything; what it means is told apart there
            traceback.print_exc()
            answer = (None, translated(error), is_out_of_memory(error))
        connection.send_bytes(cloudpickle.dumps(answer))


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


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    told = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or told


if __name__ == "__main__":
    main()
