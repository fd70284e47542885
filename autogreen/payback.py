"""Whether searching on still pays: what a trial costs against what the front gains from one.

    joules per item of a front   the mean over all tolerated losses, from 0 to the quality floor, of the cheapest
                                 feasible policy's energy at that loss: the area between the front and zero energy
    gain of a trial              what the last trials took off that, divided by their number
    it pays while                gain x items to be served > joules of a trial

A front grows ever more slowly, so what the last trials gained is more than what the next one will: the search stops
late rather than early.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from autogreen.point import Point, place_trial
from autogreen.results import Results, TrialResult
from autogreen.wording import quantity

FEWEST = 10  # trials that tell what trials gain
SHARE = 4  # of all trials, the last quarter does


@dataclass(frozen=True, kw_only=True)
class Payback:
    """Of the last `trials`: what one of them gained per item, and what it cost, on average."""

    trials: int
    gain_per_item_j: float
    trial_j: float

    @classmethod
    def of(cls, results: Results) -> "Payback | None":
        """None while there are too few trials to tell, or nothing is feasible."""
        finished = [trial for trial in results.trials if trial.state in ("measured", "gated", "stopped")]
        last = max(FEWEST, len(finished) // SHARE)
        baseline = results.baseline.measurement
        if len(finished) < 2 * last or baseline is None:
            return None
        before, now = (mean_ratio(results, trials) for trials in (finished[:-last], finished))
        if before is None or now is None:
            return None
        spent = [trial.evaluation.spent_j for trial in finished[-last:] if trial.evaluation is not None]
        base_j = baseline.energy_per_item_j.mean
        return cls(trials=last, gain_per_item_j=(before - now) * base_j / last, trial_j=math.fsum(spent) / last)

    def against(self, items: float) -> str | None:
        """Why another trial does not pay for so many items; None while it does."""
        saved_j = self.gain_per_item_j * items
        if saved_j >= self.trial_j:
            return None
        return (
            f"another trial costs {quantity(self.trial_j, 'J')} and is expected to save {quantity(saved_j, 'J')} over "
            f"{items:.3g} items, as the last {self.trials} trials did"
        )


def mean_ratio(results: Results, trials: Iterable[TrialResult]) -> float | None:
    """Energy over the baseline's, averaged over tolerated losses; None where nothing is feasible. Below the loss of the
    best policy only the baseline is left."""
    floor = results.reference_point[0]
    level, reached, total = 1.0, 0.0, 0.0
    points = list(_feasible(results, trials))
    for point in sorted(points, key=lambda point: point.loss.mean):
        loss = min(max(point.loss.mean, 0.0), floor)
        total += level * (loss - reached)
        level, reached = min(level, point.ratio.mean), loss
    return (total + level * (floor - reached)) / floor if points else None


def _feasible(results: Results, trials: Iterable[TrialResult]) -> Iterator[Point]:
    for trial in trials:
        if trial.feasible and (point := place_trial(results, trial, fresh=False)) is not None:
            yield point
