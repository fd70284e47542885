"""Joules of NVIDIA GPUs without an energy counter: power samples, integrated over time."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

from autogreen.errors import MeterError
from autogreen.meters import Diagnosis, Reading, Tier, Unusable
from autogreen.meters.nvml import GAIN
from autogreen.meters.nvml_device import describe, find_uuids, instant_power, open_power
from autogreen.meters.nvml_watch import Sample, Sidecar, Window, circumstances, sidecar

INSTANT_S = 0.1  # in which a board's own sampling of its power comes round, at the most
AVERAGED_S = 1.0  # over which boards average that do not tell instantaneous power


@dataclass(frozen=True, kw_only=True)
class PowerMeter:
    """Energy of GPUs from samples of their power every 20 ms, by the trapezoidal rule, from the first to the last.

    For boards and drivers that count no energy. Instantaneous power where the driver tells it, else its own average,
    over one second on Ampere and later: windows must then be several seconds long. Between two samples anything may
    happen, and some boards look at their power for a quarter of the time only (Yang, Adamek and Armour, SC 2024,
    arXiv:2312.02741), so this tier is never ranked against a counter. low_j and high_j: the sensor's gain, 6 %.

    Attributes:
        device: as `NvmlMeter`.
    """

    device: str = "cuda"

    tier: ClassVar[Tier] = "integrated"

    @staticmethod
    def diagnose(device: str) -> Diagnosis:
        try:
            uuids = find_uuids(device)
            for uuid in uuids:
                open_power(uuid)
        except Unusable as error:
            return Diagnosis(
                name="nvml_power", available=False, tier="integrated", reason=error.reason, advice=error.advice
            )
        return Diagnosis(
            name="nvml_power",
            available=True,
            tier="integrated",
            reason=f"samples the power of {', '.join(uuids)}",
            advice="A counter is better, where there is one",
        )

    @cached_property
    def uuids(self) -> tuple[str, ...]:
        return find_uuids(self.device)

    @cached_property
    def boundary(self) -> str:
        return f"{describe(self.uuids)}, from power samples"

    @cached_property
    def resolution_s(self) -> float:
        return INSTANT_S if all(map(instant_power, self.uuids)) else AVERAGED_S

    @property
    def _sidecar(self) -> Sidecar:
        return sidecar("power", self.uuids)

    @cached_property
    def _open(self) -> list[Window]:
        return []

    def start(self) -> None:
        if self._open:
            raise MeterError("a window is open already: stop it first, or use a second meter for a nested window.")
        self._open.append(self._sidecar.open([0.0] * len(self.uuids)))

    def stop(self) -> Reading:
        if not self._open:
            raise MeterError("no window is open: call start first.")
        seen = self._sidecar.close(self._open.pop())
        if min(map(len, seen.samples)) < 2:
            raise MeterError(
                f"{min(map(len, seen.samples))} power samples in a window of {seen.ended_s - seen.began_s:.2f} s; at "
                "least 2 are needed. Lengthen the window."
            )
        powers_w = [_mean_w(samples) for samples in seen.samples]
        duration_s = min(samples[-1].at_s - samples[0].at_s for samples in seen.samples)
        energy_j = sum(powers_w) * duration_s
        if min(powers_w) <= 0:
            raise MeterError(f"the power samples of {self.uuids[powers_w.index(min(powers_w))]} are 0 W all through.")
        return Reading(
            energy_j=energy_j,
            low_j=energy_j * (1 - GAIN),
            high_j=energy_j * (1 + GAIN),
            duration_s=duration_s,
            **circumstances(seen),
        )


def _mean_w(samples: tuple[Sample, ...]) -> float:
    """By the trapezoidal rule: samples need not be evenly spaced."""
    area_j = 0.0
    for one, two in pairwise(samples):
        area_j += ((one.power_w or 0.0) + (two.power_w or 0.0)) / 2 * (two.at_s - one.at_s)
    return area_j / (samples[-1].at_s - samples[0].at_s)
