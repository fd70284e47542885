"""Repeatability: by how much a figure moves when everything is set up anew, which no interval of one process shows.

    search        p1 1.00   p2 0.52   p3 0.31        what was measured when the policy was tried
    finals        p1 0.93   p2 0.55   p3 0.30        and again, once it was chosen
    differences   ln .93    ln 1.06   ln .97   ->    root mean square / √2: what one measurement is off by

A program is loaded elsewhere in memory, the machine is warmer, a board is in another state of power: policies of one
process are told apart by 1 %, although a fresh process may swap them. A study sees that itself, for it measures its
finalists twice. No interval of a front is narrower than that tells.

Source: ISO 5725-2 and 5725-6, Accuracy of measurement methods and results, 1994 (standard deviation of repeatability,
from pairs).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from autogreen.measurement import Interval
from autogreen.point import Point
from autogreen.results import Results

FEWEST = 3  # differences; from fewer, it is a guess


@dataclass(frozen=True, kw_only=True)
class Repeatability:
    """Half of the 95 % range of one measurement, as differences of logarithms: 0.1 is about ±10 %. 0 where a study has
    measured too little twice to tell.

    ratio: of energy per item over the baseline's. latency: of a call, or of a server's 95th percentile.
    """

    ratio: float
    latency: float

    @classmethod
    def of(cls, results: Results) -> "Repeatability":
        """As finalists and controls tell, each of which was measured in the search and again when that had ended."""
        found = (*(trial.evaluation for trial in results.measured), *results.controls.values())
        twice = [(one, results.published[one.key]) for one in found if one is not None and one.key in results.published]
        ratios = [(before.ratio, after.ratio) for before, after in twice]
        latencies = [
            (before.measurement.judged_latency_s, after.measurement.judged_latency_s)
            for before, after in twice
            if before.measurement is not None
        ]
        return cls(ratio=half_width(_differences(ratios)), latency=half_width(_differences(latencies)))

    @property
    def words(self) -> str:
        """A sentence; nothing where nothing is known."""
        if not self.ratio:
            return ""
        return f"No interval of energy is narrower than ±{100 * math.expm1(self.ratio):.2g} %: no better did it repeat."

    def widened(self, point: Point) -> Point:
        """A point whose energy and latency claim no more than can be repeated. The baseline's ratio stays the 1 that
        it is by definition."""
        if point.ratio.low < point.ratio.high:
            ratio, energy = (at_least(one, self.ratio) for one in (point.ratio, point.energy_per_item_j))
            point = replace(point, ratio=ratio, energy_per_item_j=energy)
        if point.latency_s is not None:
            point = replace(point, latency_s=at_least(point.latency_s, self.latency))
        return point


def half_width(differences: Sequence[float]) -> float:
    """Half of the 95 % range of one measurement, from differences between two of the same thing, n of them, each with
    another thing: t(n) times the root of their mean square over 2; 0 for fewer than `FEWEST`. They hold the noise of
    single processes too, so this is never too narrow for it."""
    if len(differences) < FEWEST:
        return 0.0
    from scipy.special import stdtrit

    mean_square = math.fsum(difference**2 for difference in differences) / len(differences)
    return float(stdtrit(len(differences), 0.975)) * math.sqrt(mean_square / 2)


def at_least(interval: Interval, half: float) -> Interval:
    """The interval of a value above 0, not narrower than its mean times exp(±half)."""
    low, high = interval.mean * math.exp(-half), interval.mean * math.exp(half)
    return replace(interval, low=min(interval.low, low), high=max(interval.high, high))


def _differences(pairs: Iterable[tuple[Interval | None, Interval]]) -> list[float]:
    means = [(before.mean, after.mean) for before, after in pairs if before is not None]
    return [math.log(after / before) for before, after in means if 0 < before < math.inf and 0 < after < math.inf]
