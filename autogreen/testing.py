"""Public fakes for what needs hardware, and the contract that each family's members must keep.

Nothing here sleeps or reads a real counter; a third party may test its own members with it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from autogreen.errors import MeterError
from autogreen.meters import TIERS, Meter, Reading, Tier

T = TypeVar("T")

# --- meters ---------------------------------------------------------------------------------------------------------


class ScriptedClock:
    """Monotonic seconds that move only when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass(kw_only=True)
class ScriptedMeter:
    """A meter of known power. Each script is one value for all windows, or one a window, the last one repeating.

    Attributes:
        watts: power in a window; an exception in its place is raised by `stop`.
        clock: monotonic seconds; a `ScriptedClock` makes every number exact.
        uncertainty: half width of low_j to high_j relative to energy_j.
        busy_cores, foreign_cores: what the reading reports per second; None: it does not look.
        opened: windows opened so far.
    """

    watts: float | Sequence[float | Exception] = 100.0
    clock: Callable[[], float] = time.perf_counter
    tier: Tier = "measured"
    resolution_s: float = 0.001
    boundary: str = "scripted"
    uncertainty: float = 0.0
    busy_cores: float | Sequence[float] | None = None
    foreign_cores: float | Sequence[float] | None = None
    opened: int = 0
    _began: list[float] = field(default_factory=list, repr=False)

    def start(self) -> None:
        if self._began:
            raise MeterError("a window is open already.")
        self._began.append(self.clock())
        self.opened += 1

    def stop(self) -> Reading:
        if not self._began:
            raise MeterError("no window is open.")
        duration_s = self.clock() - self._began.pop()
        watts = self._at(self.watts)
        if isinstance(watts, Exception):
            raise watts
        busy, foreign = (
            None if script is None else self._at(script) * duration_s
            for script in (self.busy_cores, self.foreign_cores)
        )
        energy_j = watts * duration_s
        return Reading(
            energy_j=energy_j,
            low_j=energy_j * (1 - self.uncertainty),
            high_j=energy_j * (1 + self.uncertainty),
            duration_s=duration_s,
            busy_s=busy,
            foreign_busy_s=foreign,
        )

    def _at(self, script: float | Sequence[T]) -> float | T:
        return script[min(self.opened, len(script)) - 1] if isinstance(script, Sequence) else script


def check_meter(meter: Meter, work: Callable[[], object]) -> Reading:
    """The contract of a meter. `work` keeps the device busy for several steps of it. Returns its last reading."""
    assert meter.tier in TIERS, f"{meter.tier!r} is no tier"
    assert meter.resolution_s > 0, "the resolution is a time above 0"
    assert meter.boundary.strip(), "a number needs its boundary in words"
    _refuses(meter.stop, "stop without start")
    readings = []
    for _ in range(2):  # one instance is used again and again
        meter.start()
        _refuses(meter.start, "a second start")
        work()
        readings.append(meter.stop())
        _refuses(meter.stop, "a second stop")
    for reading in readings:
        assert 0 < reading.low_j <= reading.energy_j <= reading.high_j < math.inf, f"not a range of joules: {reading}"
        assert 0 < reading.duration_s < math.inf, f"not a time: {reading}"
        assert reading.busy_s is None or reading.busy_s >= 0, f"negative processor time: {reading}"
        assert reading.foreign_busy_s is None or reading.foreign_busy_s >= 0, f"negative foreign time: {reading}"
    return readings[-1]


def _refuses(action: Callable[[], object], what: str) -> None:
    try:
        action()
    except MeterError:
        return
    raise AssertionError(f"{what} must raise MeterError")
