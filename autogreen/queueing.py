"""Requests that come by themselves, the queue in which they wait, and the batches in which they are answered.

    due times      ->   queue   ->   a free replica takes up to `batch` of them   ->   answered
    (a Poisson                       once so many wait, or the oldest has
    process)                         waited for batch_delay_s

    latency of a request  =  answered  -  due

Requests are due by the clock, whatever became of those before them: who sends the next one when the last was answered
leaves out the time that it would have waited ("coordinated omission": Tene, "How NOT to measure latency", 2013).

Between batches the queue sleeps: a loop that looks at the clock would be billed as work. A sleep ends late, on Linux
by 0.1 to 0.2 ms as a rule; that is part of the latency, as it is of any server's that sleeps.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

TICK_S = 1e-6  # a sleep that a clock can tell
PATIENCE_S = 1.0  # of one sleep while nothing but a replica's answer is waited for
REQUESTS = 32  # that a stretch holds on average, at least: fewer say little of power or latency
LIMITS = 10  # times the limit of the latency that a stretch lasts at least: what began before it is then little of it


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a server has to bear, and how it groups it.

    Attributes:
        rate_per_s: requests a second, above 0: a Poisson process.
        p95_s: limit of the latency, above 0.
        batch: requests that are answered together, at most; 1 or more.
        batch_delay_s: seconds for which the oldest may wait for the batch to fill; 0: a free replica takes what waits.
    """

    rate_per_s: float
    p95_s: float
    batch: int
    batch_delay_s: float = 0.0

    def stretch_s(self, least_s: float) -> float:
        """Seconds of the stream that are looked at together, `least_s` at least."""
        return max(least_s, REQUESTS / self.rate_per_s) + LIMITS * self.p95_s

    def arrivals(self, number: int, seconds: float, seed: int) -> list[float]:
        """When requests are due in the stretch of this number, in seconds from its beginning: exponential gaps. The
        same for every server that bears this rate. As what comes is independent of what came, stretches that follow
        one another are one Poisson process."""
        chance, due, at = random.Random(f"{seed}, stretch {number}"), list[float](), 0.0
        while (at := at + chance.expovariate(self.rate_per_s)) < seconds:
            due.append(at)
        return due


class Replica(Protocol):
    """One copy of the program, which answers one batch at a time."""

    def start(self, count: int) -> None:
        """Begin a batch of so many requests. It may return before they are answered."""
        ...

    def done(self) -> bool:
        """Whether the batch that was begun last is answered."""
        ...


@runtime_checkable
class Replicated(Protocol):
    """A call that several replicas can answer, each in processes of its own."""

    replicas: Sequence[Replica]

    def wait(self, seconds: float) -> object:
        """Sleep for so long, or until a replica has answered."""
        ...


class Resident:
    """A program in this process: its batch is answered when `start` returns. A batch that is not full is filled up, and
    takes what a full one takes."""

    def __init__(self, call: Callable[[], object], synchronize: Callable[[], object]) -> None:
        self._call, self._synchronize = call, synchronize

    def start(self, count: int) -> None:
        self._call()
        self._synchronize()

    def done(self) -> bool:
        return True


@dataclass(kw_only=True)
class Stretch:
    """What was seen of a queue for a while. latencies_s: of the requests answered meanwhile. batches: begun. busy_s:
    from the beginning of each to its answer, summed. waiting: requests that were left at the end."""

    duration_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    batches: int = 0
    busy_s: float = 0.0
    waiting: int = 0


class Queue:
    """A queue before replicas. Time stands still in it between two stretches, so that something else can be measured
    there; who waits goes on waiting."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        load: Load,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        """Args:
        sleep: waits for so many seconds; where replicas answer later than `start` returns, or until one of them has.
        """
        self._replicas, self._load, self._clock, self._sleep = replicas, load, clock, sleep
        self._due = deque[float]()  # of requests that have yet to come
        self._waiting = deque[float]()
        self._running: dict[int, tuple[float, list[float]]] = {}  # replica: begun when, with which requests
        self._left_at, self._stood_s = clock(), 0.0  # when it was looked at last; how long time stood still since
        self._end = self._now()

    def serve(self, arrivals: Sequence[float], seconds: float, least_s: float = 0.0) -> Stretch:
        """Go on for a stretch, to the first moment at or after its end when no replica is at work.

        What it takes longer than planned the next one is shorter, though not below `least_s`: the stretches of two
        queues stay beside each other. One in which nothing was answered goes on until something is, if anything waits:
        a batch may take longer than a stretch.

        Args:
            arrivals: when requests are due, in seconds from the planned beginning, ascending.
            seconds: of the stretch as planned, above every arrival.
        """
        self._stood_s += self._clock() - self._left_at
        began, seen = self._now(), Stretch()
        self._due.extend(self._end + at for at in arrivals)
        self._end = max(self._end + seconds, began + least_s)
        while True:
            now = self._now()
            self._collect(now, seen)
            while self._due and self._due[0] <= now:
                self._waiting.append(self._due.popleft())
            over = now >= self._end and bool(seen.latencies_s or not self._waiting)
            if over and not self._running:
                break
            if not over and self._ready(now):
                self._begin(now, seen)
            else:
                self._sleep(max(TICK_S, self._next(now) - now))
        seen.duration_s, seen.waiting = now - began, len(self._waiting)
        self._left_at = now + self._stood_s
        return seen

    def _now(self) -> float:
        return self._clock() - self._stood_s

    def _free(self) -> list[int]:
        return [number for number in range(len(self._replicas)) if number not in self._running]

    def _ready(self, now: float) -> bool:
        if not self._waiting or not self._free():
            return False
        return len(self._waiting) >= self._load.batch or now >= self._waiting[0] + self._load.batch_delay_s

    def _begin(self, now: float, seen: Stretch) -> None:
        number, count = self._free()[0], min(self._load.batch, len(self._waiting))
        self._running[number] = now, [self._waiting.popleft() for _ in range(count)]
        seen.batches += 1
        self._replicas[number].start(count)

    def _collect(self, now: float, seen: Stretch) -> None:
        for number in [number for number in self._running if self._replicas[number].done()]:
            began, due = self._running.pop(number)
            seen.busy_s += now - began
            seen.latencies_s += [now - at for at in due]

    def _next(self, now: float) -> float:
        """When something can happen that is known of before."""
        moments = [now + PATIENCE_S]
        if self._end > now:
            moments.append(self._end)
        if self._due:
            moments.append(self._due[0])
        if self._waiting and self._free():
            moments.append(self._waiting[0] + self._load.batch_delay_s)
        return min(moments)
