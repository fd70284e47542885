"""Joules of a CPU without a counter: a time model, printed as a range."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from autogreen.errors import ConfigError, MeterError
from autogreen.meters import Diagnosis, Reading, Tier

# Per logical processor, at rest and fully busy: the average over the processors of a large cloud.
REST_WATTS = 0.74
FULL_WATTS = 3.5


@dataclass(frozen=True, kw_only=True)
class EstimateMeter:
    """Energy of a CPU by a linear model in time.

        E = busy core-seconds x watts_per_core + seconds x idle_watts

    Busy core-seconds are those of this process (every thread) and of its children that were waited for. The rest of
    the machine is not billed, but reported as `foreign_busy_s`, since contention moves process time several-fold.
    What the model cannot see: frequency, vector units, memory traffic, what a thread waits for. A thread that spins
    counts as busy. It therefore must not decide the number of threads.

    Source of the defaults: Cloud Carbon Footprint, "Methodology" (cloudcarbonfootprint.org/docs/methodology, read in
    November 2026), from SPECpower results: on average 0.74 W per logical processor at rest and 3.5 W at full load;
    single processors lie between 1.9 and 6.0 W at full load, hence the range of +-50 %.

    Attributes:
        watts_per_core: watts that one busy logical processor adds, above 0.
        idle_watts: watts of the whole package at rest, 0 or more; None: 0.74 W per logical processor.
        uncertainty: half width of the stated range relative to the estimate, in [0, 1).
    """

    device: str = "cpu"
    watts_per_core: float = FULL_WATTS - REST_WATTS
    idle_watts: float | None = None
    uncertainty: float = 0.5

    tier: ClassVar[Tier] = "estimated"
    resolution_s: ClassVar[float] = 0.01  # the kernel's clock tick, in which foreign load is counted

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, float | None, str, Callable[[float], bool]], ...] = (
            ("watts_per_core", self.watts_per_core, "a number above 0 (watts)", lambda value: 0 < value < math.inf),
            ("idle_watts", self._idle_watts, "a number of 0 or more (watts)", lambda value: 0 <= value < math.inf),
            ("uncertainty", self.uncertainty, "a number in [0, 1)", lambda value: 0 <= value < 1),
        )
        for key, value, allowed, valid in rules:
            if isinstance(value, bool) or not isinstance(value, int | float) or not valid(value):
                raise ConfigError(f"{key} is {value!r}; allowed: {allowed}.")

    @staticmethod
    def diagnose(device: str) -> Diagnosis:
        reason, advice = "a time model, available on every CPU", "Set watts_per_core and idle_watts if you know them"
        if device != "cpu":
            reason = f"processor time says nothing about the joules of {device!r}"
            advice = "Use a meter with a counter, or run on cpu"
        return Diagnosis(name="estimate", available=device == "cpu", tier="estimated", reason=reason, advice=advice)

    @property
    def boundary(self) -> str:
        return (
            f"CPU, whole package, estimated from core-seconds ({self.watts_per_core:.3g} W a busy core, "
            f"{self._idle_watts:.3g} W at rest)"
        )

    @property
    def _idle_watts(self) -> float:
        return REST_WATTS * (os.cpu_count() or 1) if self.idle_watts is None else self.idle_watts

    @cached_property
    def _open(self) -> list[tuple[float, float, float]]:
        return []

    def start(self) -> None:
        if self._open:
            raise MeterError("a window is open already: stop it first, or use a second meter for a nested window.")
        self._open.append(_now())

    def stop(self) -> Reading:
        if not self._open:
            raise MeterError("no window is open: call start first.")
        wall, own, machine = (end - begin for begin, end in zip(self._open.pop(), _now(), strict=True))
        if wall <= 0 or own < 0:
            raise MeterError(f"the clocks moved by {wall} s (wall) and {own} s (processor): the window is lost.")
        energy_j = own * self.watts_per_core + wall * self._idle_watts
        if energy_j <= 0:
            raise MeterError("no processor time and no idle share: lengthen the window or set idle_watts above 0.")
        return Reading(
            energy_j=energy_j,
            low_j=energy_j * (1 - self.uncertainty),
            high_j=energy_j * (1 + self.uncertainty),
            duration_s=wall,
            busy_s=own,
            foreign_busy_s=max(0.0, machine - own),  # two counters of different granularity: may undershoot
        )


def _now() -> tuple[float, float, float]:
    """Wall seconds, core-seconds of this process and its reaped children, busy core-seconds of the machine."""
    machine = machine_busy_s()
    return time.perf_counter(), own_busy_s(), machine


def own_busy_s() -> float:
    """Core-seconds of this process, all threads, and of its children that were waited for (compilers)."""
    from resource import RUSAGE_CHILDREN, getrusage

    children = getrusage(RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def machine_busy_s() -> float:
    """Busy core-seconds of the whole machine, in clock ticks. Time stolen by a hypervisor is not the machine's."""
    import psutil

    times = psutil.cpu_times()
    return float(sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq")))
