"""What a piece of work cost: seconds by phase, and joules, with hard caps on both.

One meter serves the bill and the measurements in it: while something is measured the bill's own window is closed, for a
second window would disturb the first, and what the measuring read is put on the bill.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from autogreen.errors import EvaluationError, MeterError
from autogreen.meters import Meter, Reading, Tier

UNLIMITED = float("inf")
LOOK_S = 1.0  # reading the meter at every training step would cost more than it saves


class Watch:
    """Times phases, keeps the bill, and raises once a hard cap on seconds or joules is passed.

    seconds, joules: by phase; one that runs inside another is not counted to both.
    """

    def __init__(self, meter: Meter, limit_s: float | None = None, limit_j: float | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.joules: dict[str, float] = {}
        self._meter = meter
        self._limit_s = limit_s if limit_s is not None else UNLIMITED
        self._limit_j = limit_j if limit_j is not None else UNLIMITED
        self._spent_j = self._power_w = 0.0
        self._inner_s = self._inner_j = 0.0  # of phases inside the one that is open
        self._began = self._lap_began = time.monotonic()

    def __enter__(self) -> "Watch":
        self._meter.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._lap()  # whatever happened: a window left open would disturb every later one

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside.

        Raises:
            EvaluationError: a cap was passed before.
        """
        self.check()
        self.spent_j()
        with self._counted(name):
            try:
                yield
            finally:
                self.spent_j()

    @contextmanager
    def measuring(self, phase: str = "measuring") -> Iterator[Meter]:
        """A phase that has the meter, which it yields, to itself. Its windows are billed as they were read, the time
        between them at their mean power."""
        self.check()
        self._lap()
        tally = Tally(self._meter)
        with self._counted(phase):
            try:
                yield tally
            finally:
                self._bill(tally.power_w or self._power_w)
                self._meter.start()

    @contextmanager
    def beside(self, other: Meter) -> Iterator[None]:
        """Put on the bill what another meter reads meanwhile: of a device that takes part and is not measured."""
        other.start()
        try:
            yield
        finally:
            with suppress(MeterError):  # too short for that meter, so too little to matter
                self._spent_j += other.stop().energy_j

    def check(self) -> None:
        """Raise once a cap is passed.

        Raises:
            EvaluationError: it says which.
        """
        now = time.monotonic()
        if now - self._began > self._limit_s:
            raise EvaluationError(f"the time limit of {self._limit_s:.0f} s has passed.")
        due = self._limit_j < UNLIMITED and now - self._lap_began > LOOK_S
        if due and self.spent_j() > self._limit_j:
            raise EvaluationError(f"the energy limit of {self._limit_j:.0f} J has passed.")

    def spent_j(self) -> float:
        """Joules spent since the watch began."""
        self._lap()
        self._meter.start()
        return self._spent_j

    @contextmanager
    def _counted(self, phase: str) -> Iterator[None]:
        """Count to a phase what is put on the bill inside, less what phases inside it spend."""
        began, before_j, outer = time.monotonic(), self._spent_j, (self._inner_s, self._inner_j)
        self._inner_s = self._inner_j = 0.0
        try:
            yield
        finally:
            seconds, joules = time.monotonic() - began, self._spent_j - before_j
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds - self._inner_s
            self.joules[phase] = self.joules.get(phase, 0.0) + joules - self._inner_j
            self._inner_s, self._inner_j = outer[0] + seconds, outer[1] + joules

    def _lap(self) -> None:
        """Close the meter's window; one too short for the meter is billed at the last known power."""
        with suppress(MeterError):
            reading = self._meter.stop()
            if reading.duration_s > 0:
                self._power_w = reading.energy_j / reading.duration_s
        self._bill(self._power_w)

    def _bill(self, power_w: float) -> None:
        now = time.monotonic()
        self._power_w = power_w
        self._spent_j += power_w * (now - self._lap_began)
        self._lap_began = now


class Tally:
    """A meter that adds up what it read."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._energy_j = self._duration_s = 0.0

    @property
    def tier(self) -> Tier:
        return self._meter.tier

    @property
    def resolution_s(self) -> float:
        return self._meter.resolution_s

    @property
    def boundary(self) -> str:
        return self._meter.boundary

    def start(self) -> None:
        self._meter.start()

    def stop(self) -> Reading:
        reading = self._meter.stop()
        self._energy_j += reading.energy_j
        self._duration_s += reading.duration_s
        return reading

    @property
    def power_w(self) -> float | None:
        """Mean power in its windows; None where it read none."""
        return self._energy_j / self._duration_s if self._duration_s > 0 else None
