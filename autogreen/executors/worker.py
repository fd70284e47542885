"""The worker process: `python -m autogreen.executors.worker FD`. Reads jobs from a socket, answers each, in turn.

It leads its own process group. When its parent dies it kills that group, so that no compiler goes on running.
"""

import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from autogreen.errors import AutogreenError
from autogreen.executors import die_with_parent, is_out_of_memory, translated


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


if __name__ == "__main__":
    main()
