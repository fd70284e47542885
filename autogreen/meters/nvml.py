"""Joules of NVIDIA GPUs from the energy counters of their driver.

    work       |  ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~  |
    counter    |      |         |         |         |         |      |        a step every 100 ms or so
             start   first <------- energy_j, duration_s ------> last  stop

A window that is cut between two steps would be billed one step too many or too few: off by 5 % and more in a second.
So another process reads the counters while the work runs (`nvml_sidecar`), and the reading reaches from the first step
after the start to the last one before the stop. The steps keep a beat, which is learnt once; the time between two of
them is a whole number of periods, however late each was seen (`steps`). What the window holds before the first step and
after the last is left out of energy and of duration.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from statistics import fmean, median
from typing import ClassVar

from autogreen.errors import MeterError
from autogreen.meters import Calibration, Diagnosis, Reading, Tier, Unusable
from autogreen.meters.nvml_device import describe, find_uuids, open_counter
from autogreen.meters.nvml_watch import CALIBRATE_S, Sidecar, Window, circumstances, sidecar
from autogreen.meters.steps import beat, locate, together

GAIN = 0.06  # of the sensor, relative: what an external meter finds it to be off
SLOPE = 0.15  # at rest: by which the counter and the power samples may disagree


@dataclass(frozen=True, kw_only=True)
class NvmlMeter:
    """Total energy of GPUs as their driver counts it, `nvmlDeviceGetTotalEnergyConsumption`, in millijoules.

    The boundary is the board: what the host spends to launch the work is outside. Several GPUs are read by one process
    and summed over the same time, each one's counter taken to run evenly between its steps. low_j and high_j are 6 %
    around energy_j: by so much the sensor's gain is off, differently from board to board (Yang, Adamek and Armour,
    "Accurate and Convenient Energy Measurements for GPUs", SC 2024, arXiv:2312.02741). It cancels in ratios taken on
    one board. Source of the counter: NVIDIA, NVML API Reference Guide, Device Queries.

    Attributes:
        device: "cuda", "cuda:1", or several: "cuda:0,cuda:1". Counted as PyTorch counts; found in NVML by UUID.
    """

    device: str = "cuda"

    tier: ClassVar[Tier] = "measured"

    @staticmethod
    def diagnose(device: str) -> Diagnosis:
        try:
            uuids = find_uuids(device)
            for uuid in uuids:
                open_counter(uuid)
        except Unusable as error:
            return Diagnosis(name="nvml", available=False, tier="measured", reason=error.reason, advice=error.advice)
        reason = f"reads {', '.join(uuids)}"
        return Diagnosis(name="nvml", available=True, tier="measured", reason=reason, advice="Nothing to do")

    @cached_property
    def uuids(self) -> tuple[str, ...]:
        return find_uuids(self.device)

    @cached_property
    def boundary(self) -> str:
        return describe(self.uuids)

    @property
    def resolution_s(self) -> float:
        return self.calibration.period_s

    @property
    def calibration(self) -> Calibration:
        """Learnt once in a process, in about 2 s a board.

        Raises:
            MeterError: the counter did not step within 2 s, or cannot be read.
        """
        return _calibrate(self._sidecar)

    @property
    def _sidecar(self) -> Sidecar:
        return sidecar("counter", self.uuids)  # of this very process: it does not live through a fork

    @cached_property
    def _open(self) -> list[Window]:
        return []

    def start(self) -> None:
        if self._open:
            raise MeterError("a window is open already: stop it first, or use a second meter for a nested window.")
        learnt = self.calibration
        # who keeps no beat is polled all the time
        self._open.append(self._sidecar.open([period_s if learnt.regular else 0.0 for period_s in learnt.periods_s]))

    def stop(self) -> Reading:
        if not self._open:
            raise MeterError("no window is open: call start first.")
        seen = self._sidecar.close(self._open.pop())
        periods_s = self.calibration.periods_s
        try:
            steps = [locate(*found) for found in zip(seen.marks, periods_s, seen.edges, strict=True)]
            run = together([board.within(seen.began_s, seen.ended_s) for board in steps])
        except MeterError as error:
            raise MeterError(
                f"{error} in a window of {seen.ended_s - seen.began_s:.2f} s; 2 steps are needed, one every "
                f"{self.resolution_s * 1000:.3g} ms. Lengthen the window, or reload the driver if the counter is still."
            ) from error
        duration_s, energy_j = run[-1]
        return Reading(
            energy_j=energy_j,
            low_j=energy_j * (1 - GAIN),
            high_j=energy_j * (1 + GAIN),
            duration_s=duration_s,
            steps=run,
            **circumstances(seen),
        )


@cache
def _calibrate(reader: Sidecar) -> Calibration:
    seen = reader.calibrate(CALIBRATE_S)
    still = next((uuid for uuid, marks in zip(reader.uuids, seen.marks, strict=True) if len(marks) < 2), None)
    if still is not None:
        raise Unusable(
            f"the energy counter of {still} did not step twice within {CALIBRATE_S:g} s: it is frozen",
            "Reload the driver or reset the board; until then the meter nvml_power reads its power samples",
        )
    periods_s = tuple(beat(marks) for marks in seen.marks)
    steps = [locate(marks, period_s) for marks, period_s in zip(seen.marks, periods_s, strict=True)]
    if any(len(board.times_s) < 2 for board in steps):
        raise Unusable(
            f"the energy counter steps every {min(periods_s) * 1000:.3g} ms and a read takes "
            f"{median(seen.reads_s) * 1000:.3g} ms: its steps cannot be timed",
            "Try again when the machine is less busy; until then the meter nvml_power reads power samples",
        )
    power_w = sum(
        (board.energies_j[-1] - board.energies_j[0]) / (board.times_s[-1] - board.times_s[0]) for board in steps
    )
    sampled_w = circumstances(seen)["sampled_w"]
    notes = [
        f"{uuid}: the counter keeps no beat; its steps are timed by polling, to some milliseconds"
        for uuid, found in zip(reader.uuids, steps, strict=True)
        if not found.regular
    ]
    slope = None if not sampled_w else power_w / sampled_w
    if slope is not None and abs(slope - 1) > SLOPE:
        notes.append(
            f"the counter says {power_w:.0f} W and the power samples {sampled_w:.0f} W, {slope - 1:+.0%}: "
            "one of the two is wrong; trust ratios on this board only, and joules not at all"
        )
    return Calibration(
        periods_s=periods_s,
        regular=all(board.regular for board in steps),
        step_j=power_w / len(steps) * fmean(periods_s),
        latency_s=median(seen.reads_s),
        power_w=power_w,
        slope=slope,
        notes=tuple(notes),
    )
