"""The process that reads NVIDIA boards beside the one that works. It needs the standard library and pynvml alone.

    one line in, JSON                   one line out, JSON
    {"do": "open", "window": 1,         {"limits_w": [..], "pids": [[..], ..]}           the boards have been read
     "periods_s": [0.1]}
    {"do": "close", "window": 1}        {"boards": [{"marks", "edges", "samples"}, ..], ...}      what was seen since
    {"do": "calibrate", "seconds": 2}   the same, each board in turn polled without rest for so long; "reads_s" besides
    end of input                        it ends
    whatever goes wrong                 {"error": ".."}; it is of no further use: NVML is started afresh in another one

A mark is a step of the energy counter: [not before, asked, answered, millijoules], seconds on the monotonic clock. The
counter still had its old value in a read that began at the first, and had this value in the read between the other two.
So a mark is true however late this process was; it only gets wider. A sample is what costs next to nothing to ask, once
a step: [seconds, watts, watts of the memory, reasons for slow clocks, clock in MHz, degrees Celsius]; null: not told.

One read takes 4 ms, 15 if it meets a step, and the driver may keep a program that launches kernels waiting meanwhile.
So a counter that keeps a beat is looked at once a period, half way between two of its steps, where there is no doubt
which one it shows; and closely, for marks that saw their step happen (edges), three times in a row every few seconds.
Boards may step at the same time: closely only one of them is looked at, until its edges are new.

A process and not a thread: a program bound by kernel launches keeps its interpreter busy, which makes a thread late,
and every wakening of the thread stops the program.
"""

import json
import math
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

POLL_S = 0.001  # between two reads of a counter that is due for a step; one read takes about 4 ms
EARLY_S = 0.003  # before the next step can come at the earliest: one read more must still find the old value
EARLY = 0.03  # the same, of a period: so well it is known even of a slow counter, of which few steps were seen
SEEN = 0.4  # of a period: a mark that is narrower saw its step happen, and is an edge
EDGES = 3  # tell the phase of the beat to a few milliseconds
TURN_S = 0.02  # a read of another board is over by then
EDGES_S = 3.0  # after which they are renewed: a period learnt to 1 % only is a third of a step off by then
RETRY_S = 0.001  # before the second try of a read that failed
SAMPLE_S = 0.02  # between two power samples where there is no counter
BACKWARDS_MJ = 10  # counters were seen to fall by a millijoule; more is a reset


class Board:
    """One board: its counter's steps, and what was sampled beside."""

    def __init__(self, nvml: Any, uuid: str, counts: bool) -> None:
        self.nvml, self.uuid, self.counts = nvml, uuid, counts
        self.marks: list[tuple[float, float, float, int]] = []
        self.edges: deque[tuple[float, float, float, int]] = deque(maxlen=EDGES)
        self.samples: list[tuple[float | None, ...]] = []
        self.reads_s: list[float] = []
        self.period_s = 0.0  # 0: not known yet
        self.error: str | None = None  # from then on it is not read: who hears of it starts another process
        self.last_mj, self.asked_s, self.due_s = 0, 0.0, 0.0
        self.handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    @property
    def _early_s(self) -> float:
        return max(EARLY_S, EARLY * self.period_s)

    def look(self) -> None:
        """Start afresh: the counter's value now, from which steps are told."""
        if self.counts:
            self.asked_s, answered_s, self.last_mj = self._read()
            self.due_s = self._due(answered_s)
        else:
            self.due_s = time.perf_counter()

    def poll(self) -> None:
        """Read once; keep a step, if there was one. Errors are kept and told when the window is closed."""
        try:
            if self.counts:
                self._step()
            else:
                self._sample()
                self.due_s += SAMPLE_S
        except self.nvml.NVMLError as error:
            self.error = f"{self.uuid} could not be read: {error}"

    def settled(self, now_s: float) -> bool:
        """Whether the edges are new enough to tell the beat."""
        return len(self.edges) == EDGES and self.edges[0][0] > now_s - EDGES_S

    def _due(self, now_s: float) -> float:
        """When the counter is to be read next: half way from the next step to the one after; right before the next,
        where the edges are old; at once, where nothing is known. A step comes by the end of its edge."""
        if not self.period_s or not self.edges:
            return now_s + POLL_S
        early_s, _, late_s, _ = self.edges[-1]
        ahead = math.floor((now_s - late_s) / self.period_s) + 1
        if self.settled(now_s):
            return late_s + (ahead + 0.5) * self.period_s
        if now_s - late_s > 2 * EDGES_S:
            return now_s + POLL_S
        return max(now_s + POLL_S, early_s + ahead * self.period_s - self._early_s)

    def _step(self) -> None:
        asked_s, answered_s, value_mj = self._read()
        if value_mj < self.last_mj - BACKWARDS_MJ:
            self.error = (
                f"the energy counter of {self.uuid} fell from {self.last_mj / 1000:.3f} J to {value_mj / 1000:.3f} J: "
                "the driver was reloaded or the board reset inside the window"
            )
        elif value_mj > self.last_mj:
            mark = self.asked_s, asked_s, answered_s, value_mj
            self.marks.append(mark)
            self.last_mj = value_mj
            self._sample()
            if answered_s - self.asked_s < SEEN * self.period_s:
                self._keep(mark)
            elif len(self.edges) < EDGES:  # it was missed where so few edges had it expected: look anew
                self.edges.clear()
            self.due_s = self._due(answered_s)
        else:
            self.due_s = answered_s + POLL_S
        self.asked_s = asked_s

    def _keep(self, edge: tuple[float, float, float, int]) -> None:
        """Add an edge; if it and those before cannot be of one beat of this period, it starts a new one."""
        self.edges.append(edge)
        places = [round((late_s - edge[2]) / self.period_s) for _, _, late_s, _ in self.edges]
        spans = list(zip(self.edges, places, strict=True))
        earliest_s = max(early_s - place * self.period_s for (early_s, *_), place in spans)
        latest_s = min(late_s - place * self.period_s for (_, _, late_s, _), place in spans)
        if earliest_s > latest_s + POLL_S:
            self.edges.clear()
            self.edges.append(edge)

    def _read(self) -> tuple[float, float, int]:
        asked_s = time.perf_counter()
        value_mj: int = self._twice(lambda: self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        answered_s = time.perf_counter()
        self.reads_s.append(answered_s - asked_s)
        return asked_s, answered_s, value_mj

    def _sample(self) -> None:
        nvml, handle = self.nvml, self.handle
        power_w = self._field(nvml.NVML_FI_DEV_POWER_INSTANT, 0)
        if power_w is None:
            tell = self._told if self.counts else self._twice  # without a counter, power is what this is about
            power_w = tell(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        self.samples.append(
            (
                time.perf_counter(),
                power_w,
                self._field(nvml.NVML_FI_DEV_POWER_AVERAGE, 2),
                self._told(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
                self._told(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
                self._told(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            )
        )

    def _field(self, field: int, scope: int) -> float | None:
        """A power field in watts. Scope 2 is the memory; not every board tells it."""
        found = self._told(lambda: self.nvml.nvmlDeviceGetFieldValues(self.handle, [(field, scope)])[0])
        return None if found is None or found.nvmlReturn != 0 else found.value.uiVal / 1000

    def _twice(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except self.nvml.NVMLError:
            time.sleep(RETRY_S)
        return ask()

    def _told(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except self.nvml.NVMLError:
            return None

    def state(self) -> tuple[float | None, list[int] | None]:
        """The power limit in watts, and the processes that hold a context here; None: not told."""
        limit_w = self._told(lambda: self.nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1000)
        users = self._told(lambda: self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        return limit_w, None if users is None else sorted(int(user.pid) for user in users)


class Sidecar:
    """All boards, and the windows that are open on them."""

    def __init__(self, nvml: Any, uuids: list[str], counts: bool) -> None:
        self.boards = [Board(nvml, uuid, counts) for uuid in uuids]
        self.open: dict[int, list[tuple[int, int]]] = {}  # how many marks and samples each board had
        self.unread = b""

    def serve(self) -> None:
        while (told := self._wait()) is not None:
            _tell(self._answer(told))

    def _wait(self) -> dict[str, Any] | None:
        """The next command; boards are polled until it comes. None: nobody is there any more."""
        while b"\n" not in self.unread:
            polled = [board for board in self.boards if board.error is None] if self.open else []
            board, now_s = min(polled, key=lambda board: board.due_s, default=None), time.perf_counter()
            turn = next((board for board in polled if board.period_s and not board.settled(now_s)), None)
            if turn is not None and turn.due_s < now_s + TURN_S:
                board = turn
            patience_s = None if board is None else max(0.0, board.due_s - now_s)
            if select.select([0], [], [], patience_s)[0]:
                if not (more := os.read(0, 65536)):
                    return None
                self.unread += more
            elif board is not None:
                board.poll()
        line, self.unread = self.unread.split(b"\n", 1)
        told: dict[str, Any] = json.loads(line)
        return told

    def _answer(self, told: dict[str, Any]) -> dict[str, Any]:
        try:
            if told["do"] == "open":
                return self._open(told["window"], told["periods_s"])
            if told["do"] == "calibrate":
                return self._calibrate(told["seconds"])
            return self._close(told["window"])
        except Exception as error:  # noqa: BLE001 - whatever it was, the one who asked is to hear of it
            return {"error": f"{type(error).__name__}: {error}"}

    def _open(self, window: int, periods_s: list[float]) -> dict[str, Any]:
        for board, period_s in zip(self.boards, periods_s, strict=True):
            if board.period_s != period_s:
                board.edges.clear()
            board.period_s = period_s
            if not self.open:
                del board.marks[:-1], board.samples[:], board.reads_s[:]
                board.look()
        states = [board.state() for board in self.boards]
        self.open[window] = [(len(board.marks), len(board.samples)) for board in self.boards]
        return {"limits_w": [limit for limit, _ in states], "pids": [pids for _, pids in states], **self._error()}

    def _close(self, window: int) -> dict[str, Any]:
        began = self.open.pop(window)
        for board in self.boards:
            if board.counts and board.error is None:
                board.poll()  # the work is over: this read disturbs nothing, and shows the last step
        states = [board.state() for board in self.boards]
        found = [
            {"marks": board.marks[marks:], "edges": list(board.edges), "samples": board.samples[samples:]}
            for board, (marks, samples) in zip(self.boards, began, strict=True)
        ]
        return {
            "boards": found,
            "limits_w": [limit for limit, _ in states],
            "pids": [pids for _, pids in states],
            **self._error(),
        }

    def _error(self) -> dict[str, str]:
        return next(({"error": board.error} for board in self.boards if board.error is not None), {})

    def _calibrate(self, seconds: float) -> dict[str, Any]:
        window = -1
        self._open(window, [0.0] * len(self.boards))
        for board in self.boards:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end and board.error is None:
                board.poll()
                time.sleep(POLL_S)
        return {**self._close(window), "reads_s": [board.reads_s for board in self.boards]}


def _tell(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main(source: str, uuids: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this decides when it ends
    try:
        import pynvml

        pynvml.nvmlInit()
        sidecar = Sidecar(pynvml, uuids, source == "counter")
    except Exception as error:  # noqa: BLE001 - as above
        _tell({"error": f"{type(error).__name__}: {error}"})
        return
    _tell({"ready": True})
    sidecar.serve()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
