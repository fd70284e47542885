"""The processes of one replica: started, asked together, watched, killed."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cloudpickle

from autogreen.errors import AutogreenError, EvaluationError
from autogreen.executors import ended_by
from autogreen.ranks.rank import main

LIMIT_S = 600.0  # of one command: compiling a large model takes minutes
GRACE_S = 2.0  # for the other ranks, once one has failed


class Crews:
    """Crews that wait for their next policy: to start processes and import takes longer than most policies do."""

    def __init__(self) -> None:
        self._resting: dict[tuple[str, ...], list[Crew]] = {}

    def hire(self, devices: Sequence[str]) -> "Crew":
        """A crew on these devices."""
        waiting = self._resting.get(tuple(devices), [])
        return waiting.pop() if waiting else Crew(devices)

    def rest(self, crew: "Crew") -> None:
        """Take a crew back; what it has loaded is freed. One that is still at work for a call that failed is not
        waited for."""
        if crew.busy:
            crew.close()
        if crew.open:
            try:
                crew.ask("rest")
            except EvaluationError:  # it died meanwhile; the next one is a new one
                return
            self._resting.setdefault(crew.devices, []).append(crew)

    def close(self) -> None:
        """Kill those that wait."""
        for waiting in self._resting.values():
            for crew in waiting:
                crew.close()
        self._resting = {}


class Crew:
    """One process for each device in `devices`, in one process group if they are several.

    limit_s: seconds after which a command that has not been answered counts as hanging.
    """

    def __init__(self, devices: Sequence[str], limit_s: float = LIMIT_S) -> None:
        from torch.multiprocessing.spawn import start_processes

        self.devices, self.limit_s, self.open = tuple(devices), limit_s, True
        self._folder = tempfile.TemporaryDirectory(prefix="autogreen-ranks-")
        pairs = [Pipe() for _ in devices]
        self._connections = [ours for ours, _ in pairs]
        theirs = [given for _, given in pairs]
        meeting = str(Path(self._folder.name) / "store")
        context = start_processes(  # type: ignore[no-untyped-call]
            main, (tuple(devices), theirs, meeting), nprocs=len(devices), join=False, daemon=True, start_method="spawn"
        )
        self._processes = list(context.processes)
        for given in theirs:
            given.close()
        self._waiting: dict[int, Connection] = {}
        self._answers: dict[int, Any] = {}
        self._failed: AutogreenError | None = None
        self._until, self._command = 0.0, ""

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._processes)

    @property
    def pending(self) -> tuple[Connection, ...]:
        """Over which answers are still to come."""
        return tuple(self._waiting.values())

    @property
    def busy(self) -> bool:
        """Whether a command has not been answered."""
        return bool(self._waiting)

    def ask(self, command: str, **arguments: Any) -> list[Any]:
        """Give all ranks a command and wait for all answers, by rank.

        Raises:
            AutogreenError: what a rank raised.
            EvaluationError: a rank died or did not answer in time; no process is left.
        """
        self.begin(command, **arguments)
        return self.finish()

    def begin(self, command: str, **arguments: Any) -> None:
        """Give the command without waiting."""
        assert not self._waiting, "one command at a time"
        self._command, self._failed, self._answers = command, None, {}
        self._until = time.monotonic() + self.limit_s
        told = cloudpickle.dumps((command, arguments))
        for rank, connection in enumerate(self._connections):
            with suppress(OSError):  # a rank that died is noticed when its answer is read
                connection.send_bytes(told)
            self._waiting[rank] = connection

    def ready(self, within_s: float = 0.0) -> bool:
        """Wait for some answer, if any is missing; tell whether `finish` would return or raise at once.

        Raises:
            EvaluationError: a rank died.
        """
        if self._waiting:
            self._gather(within_s)
        return not self._waiting or time.monotonic() >= self._until

    def finish(self) -> list[Any]:
        """Wait for the answers, by rank."""
        while self._waiting and self._gather(max(0.0, self._until - time.monotonic())):
            pass
        if self._waiting:
            silent = ", ".join(map(str, sorted(self._waiting)))
            self.close()
            self._failed = self._failed or EvaluationError(
                f"rank {silent} did not answer {self._command!r} within {self.limit_s:.0f} s; all were stopped."
            )
        if self._failed is not None:
            raise self._failed
        return [self._answers[rank] for rank in range(len(self._connections))]

    def _gather(self, within_s: float) -> bool:
        """Read what has been answered; tell whether anything was."""
        found = wait(list(self._waiting.values()), timeout=within_s)
        for rank in [rank for rank, connection in self._waiting.items() if connection in found]:
            try:
                self._answers[rank], error = cloudpickle.loads(self._waiting.pop(rank).recv_bytes())
            except (EOFError, OSError):
                raise self._died(rank) from None
            if error is not None and self._failed is None:
                # the others raise the same, or wait for this one in a collective for ever
                self._failed, self._until = error, min(self._until, time.monotonic() + GRACE_S)
        return bool(found)

    def close(self) -> None:
        """Kill all ranks; may be called twice."""
        self.open = False
        for process in self._processes:
            if process.is_alive():
                process.kill()
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()
        self._waiting = {}
        self._folder.cleanup()

    def _died(self, rank: int) -> EvaluationError:
        self._processes[rank].join(1.0)
        code = self._processes[rank].exitcode
        self.close()
        return EvaluationError(
            f"rank {rank} of {len(self._processes)} died ({ended_by(code)}); the others were stopped."
        )


def together(crews: Sequence[Crew], command: str, **arguments: Any) -> None:
    """Give several crews a command at once; return when the slowest has done it.

    Raises:
        AutogreenError: as `Crew.ask`.
    """
    for crew in crews:
        crew.begin(command, **arguments)
    for crew in crews:
        crew.finish()


def wait_for_any(crews: Sequence[Crew], seconds: float) -> bool:
    """Sleep for so long, or until a rank of a busy crew has answered; False: none is busy, and no time has passed."""
    waiting = [connection for crew in crews for connection in crew.pending]
    if waiting:
        wait(waiting, timeout=seconds)
    return bool(waiting)
