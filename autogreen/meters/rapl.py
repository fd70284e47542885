"""Joules of CPU packages and their DRAM, from the energy counters of the processor (RAPL).

    work      |      ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~      |
    counter   | | | | | | | | | | | | | | | | | | | | | | | |      steps every millisecond
            start first <--- energy_j, duration_s ---> first  stop
                  step                                 step
                  after                                after

Both ends wait, polling, for the next step of every counter: the reading reaches from step to step. Between them nobody
polls. A thread looks in often enough that no counter can wrap unseen; in most windows it never wakes.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from threading import Event, Thread
from typing import ClassVar

from autogreen.errors import MeterError
from autogreen.meters import Diagnosis, Reading, Tier, Unusable
from autogreen.meters.processor import machine_busy_s, own_busy_s
from autogreen.meters.rapl_domains import ELSEWHERE, Domain, find_domains, opened

PLAUSIBLE_W = 1000.0  # the most that one counter can see; processors of 2026 are sold with up to 500 W
SAMPLES_PER_WRAP = 32  # at that power
LEAST_RANGE_J = 65_536.0  # 2^32 counts of the finest unit in use, 2^-16 J: where the kernel does not tell the range
BACKWARDS_J = 1e-4  # a count or two; more is a wrap or a reset
SLACK_S = 1.0  # of plausible power that a step may lag behind
PATIENCE_S = 0.01  # for the next step; a counter that is slower is read as it stands
BLUR_S = 0.0005  # two reads further apart do not tell when the step between them was
FROZEN_S = 2.0  # no step for so long: the counter is not merely slow


@dataclass(frozen=True, kw_only=True)
class RaplMeter:
    """Energy of all CPU packages and, where it is counted, their DRAM.

    The counters see everybody on the machine: `foreign_busy_s` says how busy the others were. Where several counters
    are summed, each is taken over its own steps and scaled to the mean of their times, which differ by a millisecond.
    low_j and high_j equal energy_j: between equal processors the error is the gain of the counter, which cancels in
    ratios. Outside are fans, disks, losses of the power supply, and DRAM where the boundary does not name it (on AMD).

    Sources: Linux, Documentation/power/powercap/powercap.rst; Intel, Software Developer's Manual, volume 3, "Platform
    specific power management support" (RAPL); Khan et al., "RAPL in Action: Experiences in Using RAPL for Power
    Measurements", ACM TOMPECS 3(2), 2018.

    So far this meter has met fake counters in the layouts of real kernels, and no real RAPL.

    Attributes:
        device: "cpu".
        resolution_s: seconds between two steps of a counter.
    """

    device: str = "cpu"

    tier: ClassVar[Tier] = "measured"
    resolution_s: ClassVar[float] = 0.001

    @staticmethod
    def diagnose(device: str) -> Diagnosis:
        try:
            domains = find_domains(device)
            _expect_steps(domains)
        except Unusable as error:
            return Diagnosis(name="rapl", available=False, tier="measured", reason=error.reason, advice=error.advice)
        reason = f"reads {_words(domains)}"
        return Diagnosis(name="rapl", available=True, tier="measured", reason=reason, advice="Nothing to do")

    @cached_property
    def boundary(self) -> str:
        return _words(self._domains)

    @cached_property
    def _domains(self) -> tuple[Domain, ...]:
        return find_domains(self.device)

    @cached_property
    def _open(self) -> list["_Window"]:
        return []

    def start(self) -> None:
        if self._open:
            raise MeterError("a window is open already: stop it first, or use a second meter for a nested window.")
        self._open.append(_Window(self._domains))

    def stop(self) -> Reading:
        asked_s = time.perf_counter()
        if not self._open:
            raise MeterError("no window is open: call start first.")
        return self._open.pop().close(asked_s)


class _Window:
    """Open counters, from a step of each."""

    def __init__(self, domains: Sequence[Domain]) -> None:
        with ExitStack() as stack:
            descriptors = stack.enter_context(opened(domains))
            self.machine_s, self.own_s = machine_busy_s(), own_busy_s()
            self.tracks = [_Track(*pair) for pair in zip(domains, descriptors, strict=True)]
            self.first = _next_steps(self.tracks)
            self.sidecar = _Sidecar(self.tracks)
            self.sidecar.start()
            self.stack = stack.pop_all()

    def close(self, asked_s: float) -> Reading:
        with self.stack:
            self.sidecar.enough.set()
            self.sidecar.join()
            machine_s, own_s = machine_busy_s() - self.machine_s, own_busy_s() - self.own_s
            if self.sidecar.error is not None:
                raise self.sidecar.error
            last = _next_steps(self.tracks)
        window_s = asked_s - max(step_s for step_s, _ in self.first)
        if window_s < RaplMeter.resolution_s:
            raise MeterError(
                f"the window of {window_s * 1e3:.2f} ms is shorter than a step of the counters "
                f"({RaplMeter.resolution_s * 1e3:.0f} ms). Lengthen it."
            )
        watts, seconds = [], []
        for track, (first_s, first_j), (last_s, last_j) in zip(self.tracks, self.first, last, strict=True):
            if last_j <= first_j:
                frozen = ": it is frozen" if last_s - first_s >= FROZEN_S else ""
                raise MeterError(f"{track.name} stood still for {last_s - first_s:.2f} s{frozen}. {ELSEWHERE}.")
            watts.append((last_j - first_j) / (last_s - first_s))
            seconds.append(last_s - first_s)
            if watts[-1] > PLAUSIBLE_W:
                raise MeterError(
                    f"{track.name} counted {watts[-1]:.0f} W, more than a processor can take ({PLAUSIBLE_W:.0f} W): "
                    "the counter jumped. The window is lost; measure again."
                )
        duration_s = sum(seconds) / len(seconds)
        energy_j = sum(watts) * duration_s
        return Reading(
            energy_j=energy_j,
            low_j=energy_j,
            high_j=energy_j,
            duration_s=duration_s,
            busy_s=own_s,
            foreign_busy_s=max(0.0, machine_s - own_s),  # two counters of different granularity: may undershoot
        )


class _Track:
    """What one counter has counted since it was first read, however often it wrapped."""

    def __init__(self, domain: Domain, descriptor: int) -> None:
        self.domain, self.descriptor, self.name = domain, descriptor, domain.name
        known = domain.range_units
        self.range_j = LEAST_RANGE_J if known is None else known * domain.unit_j
        self.units = 0
        self.read_s, self.last = time.perf_counter(), domain.read(descriptor)

    @property
    def energy_j(self) -> float:
        return self.units * self.domain.unit_j

    def read(self) -> bool:
        """Read the counter once; True where it has moved."""
        asked_s = time.perf_counter()
        value = self.domain.read(self.descriptor)
        passed_s, self.read_s = asked_s - self.read_s, asked_s
        if passed_s * PLAUSIBLE_W > self.range_j:
            raise MeterError(
                f"{self.name} was not read for {passed_s:.1f} s, in which it could have wrapped unseen (it holds "
                f"{self.range_j:.0f} J). The window is lost; measure again on a machine with processors to spare."
            )
        moved, unit_j = value - self.last, self.domain.unit_j
        if moved < 0:
            if -moved * unit_j <= BACKWARDS_J:
                return False
            if self.domain.range_units is None:
                raise MeterError(
                    f"{self.name} fell from {self.last} to {value}, and max_energy_range_uj is missing, 0 or "
                    f"unreadable: a wrap and a reset look alike. {ELSEWHERE}."
                )
            moved += self.domain.range_units
            if not 0 < moved * unit_j <= PLAUSIBLE_W * (passed_s + SLACK_S):
                raise MeterError(
                    f"{self.name} fell from {self.last} to {value}, which is no wrap (it holds "
                    f"{self.domain.range_units}): it was reset. The window is lost; measure again."
                )
        self.units, self.last = self.units + moved, value
        return moved > 0


class _Sidecar(Thread):
    """Reads the counters several times a wrap until `enough` is set."""

    def __init__(self, tracks: Sequence[_Track]) -> None:
        super().__init__(name="autogreen-rapl", daemon=True)
        self.tracks = tracks
        self.rest_s = min(track.range_j for track in tracks) / PLAUSIBLE_W / SAMPLES_PER_WRAP
        self.enough = Event()
        self.error: MeterError | None = None

    def run(self) -> None:
        try:
            while not self.enough.wait(self.rest_s):
                for track in self.tracks:
                    track.read()
        except MeterError as error:  # handed to stop(), which raises it in the caller's thread
            self.error = error
        except Exception as error:  # noqa: BLE001 -- a dead sidecar must not pass for a quiet one
            self.error = MeterError(f"reading the energy counters broke: {type(error).__name__}: {error}")


def _next_steps(tracks: Sequence[_Track]) -> tuple[tuple[float, float], ...]:
    """Seconds and joules of each counter at its next step; of a slow one as it stands when patience ends."""
    steps: dict[int, tuple[float, float]] = {}
    for track in tracks:
        track.read()
    until_s = time.perf_counter() + PATIENCE_S
    while len(steps) < len(tracks) and time.perf_counter() < until_s:
        for index, track in enumerate(tracks):
            if index not in steps:
                before_s = track.read_s
                if track.read() and track.read_s - before_s < BLUR_S:
                    steps[index] = (track.read_s, track.energy_j)
    return tuple(steps.get(index, (track.read_s, track.energy_j)) for index, track in enumerate(tracks))


def _expect_steps(domains: Sequence[Domain]) -> None:
    """Wait until every counter has moved.

    Raises:
        Unusable: one does not.
    """
    with opened(domains) as descriptors:
        still = {domain: (fd, domain.read(fd)) for domain, fd in zip(domains, descriptors, strict=True)}
        until_s = time.perf_counter() + FROZEN_S
        while still:
            if time.perf_counter() > until_s:
                names = ", ".join(domain.name for domain in still)
                raise Unusable(f"no step within {FROZEN_S:.0f} s, so frozen: {names}", ELSEWHERE)
            time.sleep(RaplMeter.resolution_s)
            still = {domain: (fd, value) for domain, (fd, value) in still.items() if domain.read(fd) == value}


def _words(domains: Sequence[Domain]) -> str:
    packages, drams = (
        sorted({domain.package for domain in domains if domain.kind == kind}) for kind in ("package", "dram")
    )
    listed, dram_of = (", ".join(map(str, numbers)) for numbers in (packages, drams))
    dram = "" if not drams else " and DRAM" if drams == packages else f" and DRAM of {dram_of}"
    return f"CPU package{'s' if len(packages) > 1 else ''} {listed}{dram} (RAPL {domains[0].road})"
