"""Asking many cases: what is known is not measured again, and each answer is kept as soon as it is there."""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from autogreen.errors import EvaluationError, MeterError, RefusedError
from autogreen.kernels import Case, Cell, Kernels, Shape, groups, keep, kept
from autogreen.measurement import Protocol
from autogreen.meters import Tier
from autogreen.process import ask, ask_each

# Light: many cells, and a scheme that saves or costs less than 5 % is hardly worth knowing of.
PROTOCOL = Protocol(warmup_s=0.3, window_s=0.25, min_windows=10, max_windows=20, target_relative=0.05)
WORKER = "autogreen.kernels.worker"
LOOK_S = 300.0
CELL_S = 900.0  # compiling and measuring one scheme, at most
START_S, COMPILE_S = 8.0, 20.0  # of a process, and of a program, in the forecast

Bench = Callable[[Shape, int, tuple[str, ...], Protocol, bool], Iterator[Cell]]


@dataclass(frozen=True, kw_only=True)
class Here:
    """This device. hardware: `hardware.describe`. missing: for every scheme why nothing computes it here, or None."""

    hardware: Mapping[str, Any]
    tier: Tier
    boundary: str
    missing: Mapping[str, str | None]

    @property
    def device(self) -> str:
        return str(self.hardware["device"])


@dataclass(frozen=True, kw_only=True)
class Step:
    """A cell that was just measured, or refused. done, total: cells asked for in this session. left_s: at the pace so
    far. kernels: all that is known now."""

    cell: Cell
    done: int
    total: int
    left_s: float
    kernels: Kernels


def look(device: str, meter: Mapping[str, Any]) -> Here:
    """Look at the device in a process of its own: one that measures must find nobody else there.

    Raises:
        MeterError: its energy cannot be read.
    """
    job = {"call": "look", "device": device, "meter": dict(meter)}
    told = ask(WORKER, job, device=device, what=device, done="looked at", limit_s=LOOK_S, failure=EvaluationError)
    if "meter" in told:
        raise MeterError(told["meter"])
    return Here(**told)


def runnable(here: Here, schemes: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the schemes those that a kernel computes here, and why the others are left out.

    Raises:
        RefusedError: none runs here.
    """
    found = tuple(scheme for scheme in schemes if here.missing[scheme] is None)
    notes = tuple(f"{scheme}: {here.missing[scheme]}" for scheme in schemes if scheme not in found)
    if not found:
        raise RefusedError(
            f"none of these schemes has a real kernel on {here.device!r}, so there is nothing to measure. "
            f"{'. '.join(notes)}."
        )
    return found, notes


def known(here: Here, cache: Path) -> Kernels:
    """What was measured on this device before.

    Raises:
        ConfigError: the file is damaged.
    """
    found = kept(here.hardware, here.tier, here.boundary, cache)
    return found or Kernels.none_yet(here.hardware, here.tier, here.boundary)


def missing(kernels: Kernels, cases: Collection[Case], *, again: bool = False) -> tuple[Case, ...]:
    """Cases that are still to be asked; with `again` all of them."""
    return tuple(case for case in cases if again or kernels.of(case) is None)


def forecast_s(cases: Collection[Case], protocol: Protocol, resolution_s: float = 0.1) -> float:
    """Seconds that the cases will take, about: windows of both sides, half way between the fewest and the most."""
    window_s = max(protocol.window_s, 3 * resolution_s)
    pairs = (protocol.min_windows + protocol.max_windows) / 2
    cell_s = COMPILE_S + 2 * (pairs * window_s + protocol.warmup_s)
    return protocol.preheat_s + len(cases) * cell_s + len(list(groups(cases))) * (START_S + COMPILE_S)


def measure(
    cases: Collection[Case], kernels: Kernels, *, cache: Path, protocol: Protocol, bench: Bench
) -> Generator[Step, None, None]:
    """Ask the cases, keep every answer, yield where it stands. It may be stopped at any time.

    Raises:
        MeterError: the energy cannot be read, or the machine is too busy; what was measured before is kept.
        ConfigError: the answers cannot be written.
    """
    began, done, warm = monotonic(), 0, False
    for shape, rows, schemes in groups(cases):
        for cell in _answered(shape, rows, schemes, bench, protocol, warm):
            kernels, done = kernels.having(cell), done + 1
            warm = warm or cell.ratio is not None
            keep(kernels.only((cell.case,)), cache)
            left_s = (monotonic() - began) / done * (len(cases) - done)
            yield Step(cell=cell, done=done, total=len(cases), left_s=left_s, kernels=kernels)


def _answered(
    shape: Shape, rows: int, schemes: tuple[str, ...], bench: Bench, protocol: Protocol, warm: bool
) -> Iterator[Cell]:
    """The cells; where a process died or a kernel failed, that scheme's without a figure, the others' from a fresh
    one."""
    left = list(schemes)
    while left:
        try:
            for cell in bench(shape, rows, tuple(left), protocol, warm):
                left.remove(cell.case.scheme)
                yield cell
            return
        except EvaluationError as error:
            yield Cell(case=Case(shape=shape, rows=rows, scheme=left.pop(0)), refused=str(error))


def in_a_process(device: str, meter: Mapping[str, Any]) -> Bench:
    """Each shape in a fresh process, where a crash or a lack of memory ends nothing else."""

    def run(shape: Shape, rows: int, schemes: tuple[str, ...], protocol: Protocol, warm: bool) -> Iterator[Cell]:
        job = {"call": "bench", "device": device, "meter": dict(meter), "shape": asdict(shape), "rows": rows}
        job |= {"schemes": schemes, "protocol": asdict(protocol), "warm": warm}
        what = f"{rows} x {shape}"
        limit_s = CELL_S * (len(schemes) + 1)
        told = ask_each(
            WORKER, job, device=device, what=what, done="measured", limit_s=limit_s, failure=EvaluationError
        )
        for found in told:
            if "meter" in found:
                raise MeterError(found["meter"])
            yield Cell.from_json(found["cell"])

    return run
