"""Joules of one NVIDIA GPU from the energy counter of its driver.

    work       |  ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~  |
    counter    |      |         |         |         |         |      |        steps every 100 ms or so
             start   first <------- energy_j, duration_s ------> last  stop

A window that is cut between two steps would be billed one step too many or too few: off by 5 % and more in a second.
So a sidecar thread polls the counter while the work runs, and the reading reaches from the first step after the start
to the last one before the stop. Both ends see the same polling delay, which cancels, and nothing outside the work is
billed: the parts of the window before the first step and after the last are left out of energy and of duration.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from threading import Event, Thread
from typing import ClassVar

from autogreen.errors import ConfigError, MeterError
from autogreen.meters import Diagnosis, Reading, Tier, Unusable
from autogreen.meters.nvml_device import find_uuid, load_nvml, lost, open_counter

POLL_S = 0.001  # between two reads; one read takes about 4 ms and releases the interpreter lock
BACKWARDS_J = 0.01  # counters were seen to fall by a millijoule; more is a reset
REST = 0.85  # of a step is slept through: every read takes time from a program that is bound by kernel launches
BLUR = 0.15  # of a step: what the time of a step may be in doubt (a read now and then takes 30 ms)
LEAST_BLUR_S = 0.015
SWITCH_S = 0.0002  # within which a busy interpreter hands over: Python's 5 ms starve the sidecar
FROZEN_S = 2.0  # no step for so long: the counter is not merely slow


@dataclass(frozen=True, kw_only=True)
class NvmlMeter:
    """Total energy of one GPU as its driver counts it, `nvmlDeviceGetTotalEnergyConsumption`, in millijoules.

    The boundary is the board: what the host spends to launch the work is outside. low_j and high_j equal energy_j:
    between equal devices the counter's error is its gain, which cancels in ratios. In absolute joules the gain is off
    by about +-6 % (Yang, Adamek and Armour, "Accurate and Convenient Energy Measurements for GPUs", SC 2024,
    arXiv:2312.02741). Source of the counter: NVIDIA, NVML API Reference Guide, Device Queries.

    Attributes:
        device: "cuda" or "cuda:1", counted as PyTorch counts; found in NVML by UUID.
        resolution_s: seconds between two steps of the counter, above 0. 0.1 on data-centre boards, up to 0.5 on others.
    """

    device: str = "cuda"
    resolution_s: float = 0.1

    tier: ClassVar[Tier] = "measured"

    def __post_init__(self) -> None:
        step = self.resolution_s
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step <= 10:
            raise ConfigError(f"resolution_s is {step!r}; allowed: a number above 0, at most 10 (seconds).")

    @staticmethod
    def diagnose(device: str) -> Diagnosis:
        try:
            uuid = find_uuid(device)
            open_counter(uuid)()
        except Unusable as error:
            return Diagnosis(name="nvml", available=False, tier="measured", reason=error.reason, advice=error.advice)
        return Diagnosis(name="nvml", available=True, tier="measured", reason=f"reads {uuid}", advice="Nothing to do")

    @cached_property
    def uuid(self) -> str:
        return find_uuid(self.device)

    @cached_property
    def boundary(self) -> str:
        nvml = load_nvml()
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(self.uuid)
            name, index = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetIndex(handle)
        except nvml.NVMLError as error:
            raise lost(self.uuid, error) from error
        return f"GPU {index} ({name}, {self.uuid})"

    @cached_property
    def _open(self) -> list["_Sidecar"]:
        return []

    def start(self) -> None:
        if self._open:
            raise MeterError("a window is open already: stop it first, or use a second meter for a nested window.")
        sidecar = _Sidecar(open_counter(self.uuid), step_s=self.resolution_s)
        sidecar.start()
        sidecar.reading.wait()  # the first value is known: every later change is a step inside the window
        if sidecar.error is not None:
            raise sidecar.error
        sys.setswitchinterval(SWITCH_S)
        self._open.append(sidecar)

    def stop(self) -> Reading:
        ended = time.perf_counter()
        if not self._open:
            raise MeterError("no window is open: call start first.")
        sidecar = self._open.pop()
        sidecar.enough.set()
        sidecar.join()
        sys.setswitchinterval(sidecar.switch_s)
        if sidecar.error is not None:
            raise sidecar.error
        steps = [step for step in sidecar.steps if step[0] <= ended]
        window_s = ended - sidecar.began
        if not steps and window_s > max(FROZEN_S, 4 * self.resolution_s):
            raise MeterError(
                f"the energy counter of {self.uuid} stood still for {window_s:.1f} s: it is frozen. "
                "Reload the driver or reset the board, then try again."
            )
        if len(steps) < 2:
            raise MeterError(
                f"the energy counter of {self.uuid} stepped {len(steps)} times in a window of {window_s:.2f} s; at "
                f"least 2 are needed. Lengthen the window, or set resolution_s (now {self.resolution_s}) to its step."
            )
        (first_s, first_j), (last_s, last_j) = steps[0], steps[-1]
        energy_j = last_j - first_j
        return Reading(energy_j=energy_j, low_j=energy_j, high_j=energy_j, duration_s=last_s - first_s)


class _Sidecar(Thread):
    """Polls a counter until `enough` is set; keeps the time and value of each step that it saw happen."""

    def __init__(self, read: Callable[[], float], step_s: float) -> None:
        super().__init__(name="autogreen-nvml", daemon=True)
        self.read, self.rest_s, self.blur_s = read, REST * step_s, max(LEAST_BLUR_S, BLUR * step_s)
        self.switch_s = sys.getswitchinterval()
        self.began = time.perf_counter()
        self.reading, self.enough = Event(), Event()
        self.steps: list[tuple[float, float]] = []
        self.error: MeterError | None = None

    def run(self) -> None:
        try:
            last_j = self.read()
            self.began = before = time.perf_counter()
            self.reading.set()
            pause_s = POLL_S
            while not self.enough.wait(pause_s):
                asked = time.perf_counter()  # before the read: after it, another thread may hold the interpreter
                value_j = self.read()
                if value_j < last_j - BACKWARDS_J:
                    raise MeterError(
                        f"the energy counter fell from {last_j:.3f} J to {value_j:.3f} J: the driver was reloaded or "
                        "the board reset inside the window. The window is lost; measure again."
                    )
                # Only a change between two close reads has a known time: not one after a rest or across a slow read.
                close = pause_s == POLL_S and time.perf_counter() - before < self.blur_s
                seen = value_j > last_j and close
                if seen:
                    self.steps.append((asked, value_j))
                last_j, before = max(last_j, value_j), asked
                pause_s = self.rest_s if seen else POLL_S
        except MeterError as error:  # handed to start() or stop(), which raises it in the caller's thread
            self.error = error
        except Exception as error:  # noqa: BLE001 -- a dead sidecar must not pass for a still counter
            self.error = MeterError(f"reading the energy counter broke: {type(error).__name__}: {error}")
        finally:
            self.reading.set()
