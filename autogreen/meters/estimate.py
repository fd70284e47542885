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
from autogreen.meters.processor import machine_busy_s, own_busy_s
from autogreen.meters.tdp import Processor, match, model_name

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

    Where the vendor's figures of this processor are known (`tdp.PROCESSORS`), a logical processor at full load takes
    its share of the TDP, and 0.74 / 3.5 = 21 % of that at rest. Else both come from an average over the processors of
    a large cloud: 0.74 W per logical processor at rest and 3.5 W at full load (Cloud Carbon Footprint, "Methodology",
    cloudcarbonfootprint.org/docs/methodology, and its averages by generation, from SPECpower results; read in
    November 2026). One check on the other: for five server generations (Skylake, Cascade Lake, EPYC 7001 to 7003)
    those averages at full load are 0.91 to 1.16 of the TDP per thread of the largest model; at rest they are 15 to
    32 % of full load.

    The range of +-50 % holds for a machine at work. A lone busy core that clocks up, on a desktop or laptop above all,
    can take several times its share of the TDP: the estimate is then too low by more than the range says.

    Attributes:
        watts_per_core: watts that one busy logical processor adds, above 0; None: as above.
        idle_watts: watts at rest of all logical processors here, 0 or more; None: as above.
        uncertainty: half width of the stated range relative to the estimate, in [0, 1).
    """

    device: str = "cpu"
    watts_per_core: float | None = None
    idle_watts: float | None = None
    uncertainty: float = 0.5

    tier: ClassVar[Tier] = "estimated"
    resolution_s: ClassVar[float] = 0.01  # the kernel's clock tick, in which foreign load is counted

    def __post_init__(self) -> None:
        core_w, idle_w = self._watts
        rules: tuple[tuple[str, float, str, Callable[[float], bool]], ...] = (
            ("watts_per_core", core_w, "a number above 0 (watts)", lambda value: 0 < value < math.inf),
            ("idle_watts", idle_w, "a number of 0 or more (watts)", lambda value: 0 <= value < math.inf),
            ("uncertainty", self.uncertainty, "a number in [0, 1)", lambda value: 0 <= value < 1),
        )
        for key, value, allowed, valid in rules:
            if isinstance(value, bool) or not isinstance(value, int | float) or not valid(value):
                raise ConfigError(f"{key} is {value!r}; allowed: {allowed}.")

    @staticmethod
    def diagnose(device: str) -> Diagnosis:
        known = match(model_name())
        basis = f"from {known}" if known else "from averages of a large cloud, since this processor is in no table"
        reason = f"a time model, {basis}: a range, which cannot rank thread counts"
        advice = "Set watts_per_core and idle_watts if you know them; a hardware counter is better"
        if device != "cpu":
            reason = f"processor time says nothing about the joules of {device!r}"
            advice = "Use a meter with a counter, or run on cpu"
        return Diagnosis(name="estimate", available=device == "cpu", tier="estimated", reason=reason, advice=advice)

    @cached_property
    def boundary(self) -> str:
        core_w, idle_w = self._watts
        basis = f"after {self._processor}" if self._processor else "averages of a large cloud"
        given = [name for name in ("watts_per_core", "idle_watts") if getattr(self, name) is not None]
        if given:
            basis = "your own figures" if len(given) == 2 else f"{given[0]} your own, else {basis}"
        return (
            f"CPU, whole package, estimated from core-seconds ({core_w:.3g} W a busy core, {idle_w:.3g} W at rest; "
            f"{basis})"
        )

    @cached_property
    def _processor(self) -> Processor | None:
        return match(model_name())

    @cached_property
    def _watts(self) -> tuple[float, float]:
        """Watts that a busy logical processor adds, and of all of them at rest; the user's own figures go first."""
        full_w = self._processor.thread_w if self._processor else FULL_WATTS
        rest_w = full_w * REST_WATTS / FULL_WATTS
        core_w = full_w - rest_w if self.watts_per_core is None else self.watts_per_core
        return core_w, rest_w * (os.cpu_count() or 1) if self.idle_watts is None else self.idle_watts

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
        core_w, idle_w = self._watts
        energy_j = own * core_w + wall * idle_w
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
