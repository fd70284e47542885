"""How often a 95 % interval holds the truth: `measure` and `measure_beside` on a scripted counter whose mean is known.

    python experiments/coverage.py [REPEATS]        all cases, 2000 times each: about 5 minutes on one core

The counter's power changes from window to window as a first-order autoregressive series: normal, with a coefficient of
variation `cv` and a correlation of neighbours `rho`. Beside the rule of this package stand two others on such series:
adding windows until Student's interval is narrow (naive), and Stein's two stages ("A two-sample test for a linear
hypothesis whose power is independent of the variance", Annals of Mathematical Statistics 16, 1945).
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
SCREENING = Protocol(warmup_s=0, window_s=0.25, min_windows=20, max_windows=40, target_relative=0.03)
FINAL = Protocol(warmup_s=0, window_s=0.25, min_windows=20, max_windows=80, target_relative=0.01)
SWEEP = Protocol(warmup_s=0, window_s=0.25, min_windows=6, max_windows=12, target_relative=0.05)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: one thing ("alone"), or two, each under a drift of its "own" or both under one ("shared")."""

    what: str
    protocol: Protocol
    cv: float
    rho: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """Share of intervals that hold the truth; mean number of windows (pairs); mean half width over the mean; share of
    measurements that ended at the cap with a warning."""

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
    random = np.random.default_rng(seed)
    found = []
    for repeat in range(repeats):
        rows = series(random, case.rho, case.cv, (2, 2 * case.protocol.max_windows)).tolist()
        one, two = iter(rows[0]), iter(rows[1])
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


def stein(case: Case, repeats: int) -> Found:
    """min_windows decide how many there will be, and how wide the interval is."""
    rows, least, most = values(case, repeats), case.protocol.min_windows, case.protocol.max_windows
    spread = stdtrit(least - 1.0, 0.975) * rows[:, :least].std(1, ddof=1)
    n = np.clip(np.ceil((spread / case.protocol.target_relative) ** 2).astype(int), least, most)
    mean = np.take_along_axis(rows.cumsum(1), n[:, None] - 1, 1)[:, 0] / n
    half = spread / np.sqrt(n)
    return Found(held=float((abs(mean) <= half).mean()), windows=float(n.mean()), half=float(half.mean()))


def main(repeats: int) -> None:
    """Print the table of all cases."""
    kinds = ("alone", "own", "shared")
    rules = {"screening ±3 %": SCREENING, "final ±1 %": FINAL, "CPU sweep ±5 %": SWEEP}
    settings = [(rule, 0.02, rho, what) for rule in list(rules)[:2] for what in kinds for rho in (0.0, 0.3, 0.6)]
    settings += [("final ±1 %", cv, 0.6, what) for cv in (0.003, 0.08) for what in kinds]
    settings += [("CPU sweep ±5 %", 0.003, 0.6, "own"), ("CPU sweep ±5 %", 0.05, 0.6, "shared")]
    settings += [("CPU sweep ±5 %", cv, rho, "own") for cv in (0.05, 0.08) for rho in (0.0, 0.3, 0.6)]
    settings += [(rule, 0.02, 0.9, "alone") for rule in list(rules)[:2]]
    print("| rule | drift | cv | rho | held | windows | half | warned | naive held, windows | Stein |")  # noqa: T201
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")  # noqa: T201
    for rule, cv, rho, what in settings:
        case = Case(what=what, protocol=rules[rule], cv=cv, rho=rho)
        found, others = ours(case, repeats), (naive(case, repeats), stein(case, repeats))
        texts = (f"{other.held:.1%}, {other.windows:.1f}" for other in others)
        print(  # noqa: T201
            f"| {rule} | {what} | {cv:.1%} | {rho} | **{found.held:.1%}** | {found.windows:.1f} | ±{found.half:.2%} "
            f"| {found.warned:.0%} | {' | '.join(texts)} |",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
