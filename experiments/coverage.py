"""How often a 95 % interval holds the truth: `measure` and `measure_beside` on a scripted counter whose mean is known.

    python experiments/coverage.py [REPEATS]        all cases, 2000 times each: about 3 minutes on one core

The counter's power changes from window to window as a first-order autoregressive series: normal, with a coefficient of
variation `cv` and a correlation of neighbours `rho`. Beside the rule of this package stands the naive one on such
series: windows are added until Student's interval is narrow. A second table shows what a counter that warms up does to
the mean.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from autogreen.measure import Protocol, measure, measure_beside
from autogreen.meters import Reading
from autogreen.testing import ScriptedClock, ScriptedMeter

Array = np.ndarray[Any, Any]
RATIO = 0.5  # true energy of the candidate over the reference's
SCREENING = Protocol(warmup_s=0)
FINAL = SCREENING.final()
SPARE = 200  # windows beyond the cap, for those discarded


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: one thing ("alone"), or two, each under a drift of its "own" or both under one ("shared")."""

    what: str
    protocol: Protocol
    cv: float
    rho: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """Share of intervals that hold the truth; mean number of windows (pairs) taken; mean half width over the mean;
    share of measurements with a warning: ended at the cap, or not steady."""

    held: float
    windows: float
    half: float
    warned: float = math.nan


@dataclass(kw_only=True)
class DriftingMeter(ScriptedMeter):
    """100 W, changed by the next step of the drift of whoever ran last."""

    drifts: Mapping[str, Iterator[float]]
    running: str = ""

    def stop(self) -> Reading:
        self.watts = 100 * (1 + next(self.drifts[self.running]))
        return super().stop()


def series(random: np.random.Generator, rho: float, cv: float, shape: tuple[int, int]) -> Array:
    """Rows of autoregressive series of mean 0 and deviation cv."""
    steps = random.standard_normal(shape) * cv
    steps[:, 1:] *= math.sqrt(1 - rho**2)
    for column in range(1, shape[1]):
        steps[:, column] += rho * steps[:, column - 1]
    return steps


def ours(case: Case, repeats: int, seed: int = 0) -> Found:
    """The case through the real `measure` or `measure_beside`."""
    length = 2 * case.protocol.max_windows + SPARE
    rows = series(np.random.default_rng(seed), case.rho, case.cv, (2 * repeats, length))
    found = []
    for repeat in range(repeats):
        one, two = iter(rows[2 * repeat].tolist()), iter(rows[2 * repeat + 1].tolist())
        clock = ScriptedClock()
        drifts = {"candidate": one, "reference": one if case.what == "shared" else two}
        meter = DriftingMeter(clock=clock, drifts=drifts)

        def work(name: str, seconds: float, meter: DriftingMeter = meter, clock: ScriptedClock = clock) -> Any:
            def call() -> None:
                meter.running = name
                clock.advance(seconds)

            return call

        common: dict[str, Any] = {"items": 1, "meter": meter, "protocol": case.protocol, "clock": clock, "seed": repeat}
        candidate, reference = work("candidate", 0.5 * RATIO), work("reference", 0.5)
        if case.what == "alone":
            measured = measure(reference, **common)
            interval, truth, windows = measured.energy_per_item_j, 50.0, len(measured.windows)
        else:
            beside = measure_beside(candidate, reference, **common)
            interval, truth, windows = beside.ratio, RATIO, len(beside.candidate.windows)
            measured = beside
        half = (interval.high - interval.low) / 2 / interval.mean
        found.append((interval.low <= truth <= interval.high, windows, half, bool(measured.warnings)))
    held, windows, half, warned = np.array(found, dtype=float).mean(0).tolist()
    return Found(held=held, windows=windows, half=half, warned=warned)


def values(case: Case, repeats: int, seed: int = 0) -> Array:
    """Rows of what the case averages, truth 0: relative energies, or logarithms of the ratio of A B, B A, A B ..."""
    random, most = np.random.default_rng(seed), case.protocol.max_windows
    drift = np.log1p(series(random, case.rho, case.cv, (repeats, 2 * most)))
    if case.what == "shared":
        return (drift[:, ::2] - drift[:, 1::2]) * np.where(np.arange(most) % 2, 1, -1)
    if case.what == "own":
        return drift[:, :most] - np.log1p(series(random, case.rho, case.cv, (repeats, most)))
    return np.expm1(drift[:, :most])


def naive(case: Case, repeats: int) -> Found:
    """Windows are added until Student's interval is narrow enough."""
    rows, protocol = values(case, repeats), case.protocol
    n = np.arange(1, protocol.max_windows + 1)
    means = rows.cumsum(1) / n
    halves = stdtrit(n - 1.0, 0.975) * np.sqrt(np.maximum((rows**2).cumsum(1) / n - means**2, 0) / np.maximum(n - 1, 1))
    enough = (halves <= protocol.target_relative) & (n >= protocol.min_windows)
    enough[:, -1] = True
    stop = enough.argmax(1)
    mean, half = (np.take_along_axis(each, stop[:, None], 1)[:, 0] for each in (means, halves))
    return Found(held=float((abs(mean) <= half).mean()), windows=float(stop.mean() + 1), half=float(half.mean()))


def heated(rise: float, tau_s: float, protocol: Protocol) -> tuple[float, int]:
    """A quiet counter whose power nears its lasting value exponentially from `rise` below, and goes on so while it is
    measured: (relative error of the mean energy, windows taken)."""
    clock = ScriptedClock()
    chance = np.random.default_rng(0)

    class Heating(ScriptedMeter):
        def stop(self) -> Reading:
            self.watts = 100 * (1 - rise * math.exp(-clock() / tau_s)) * (1 + 0.003 * chance.standard_normal())
            return super().stop()

    found = measure(lambda: clock.advance(0.05), items=1, meter=Heating(clock=clock), protocol=protocol, clock=clock)
    return found.energy_per_item_j.mean / 5.0 - 1, len(found.windows)


def main(repeats: int) -> None:
    """Print both tables."""
    kinds = ("alone", "own", "shared")
    rules = {"screening ±3 %": SCREENING, "final ±1 %": FINAL}
    settings = [(rule, 0.02, rho, what) for rule in rules for what in kinds for rho in (0.0, 0.3, 0.6)]
    settings += [("final ±1 %", 0.08, 0.6, "own"), *((rule, 0.02, 0.9, "alone") for rule in rules)]
    print("| rule | drift | cv | rho | held | windows | half | warned | naive held, windows |")  # noqa: T201
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")  # noqa: T201
    for rule, cv, rho, what in settings:
        case = Case(what=what, protocol=rules[rule], cv=cv, rho=rho)
        found, other = ours(case, repeats), naive(case, repeats)
        print(  # noqa: T201
            f"| {rule} | {what} | {cv:.1%} | {rho} | **{found.held:.1%}** | {found.windows:.1f} | ±{found.half:.2%} "
            f"| {found.warned:.0%} | {other.held:.1%}, {other.windows:.1f} |",
            flush=True,
        )
    print("\n| warming up | error of the mean, windows | without looking for steadiness |")  # noqa: T201
    print("|---|--:|--:|")  # noqa: T201
    for rise, tau_s in ((0.1, 0.5), (0.1, 1.0), (0.2, 1.0), (0.1, 2.0), (0.05, 5.0), (0.05, 10.0)):
        protocols = (Protocol(), Protocol(preheat_s=0))
        texts = ("{:+.2%}, {}".format(*heated(rise, tau_s, protocol)) for protocol in protocols)
        print(f"| by {rise:.0%} in {tau_s:g} s | {' | '.join(texts)} |")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
