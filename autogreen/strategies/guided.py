"""The corrected forecast proposes: where, by all that is known, the hypervolume has most to gain.

    offered    policies of an earlier study; choices that it did not have stay as they hurt least
    uniform    where the forecast is in divergences: each scheme everywhere, then levels of pruning; they give the scale
    expected   of the believed front the policy that adds most hypervolume to what was tried
    drawn      the same under a draw from what is believed (Thompson sampling), once the believed front is all tried
    local      a policy of the front with one choice changed, or two, once draws add nothing either

Holes that the forecast does not know (training, runtime, parallelism) are Optuna's, and learn from every trial.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autogreen.measurement import Interval
from autogreen.samplers import first
from autogreen.space import SearchSpace
from autogreen.strategies import Seen, distinct, given
from autogreen.strategies.belief import Belief
from autogreen.strategies.forecast import Forecast
from autogreen.strategies.knapsack import Array, solve, standing

if TYPE_CHECKING:
    from optuna import Study, Trial

    from autogreen.policy import Policy

CANDIDATES = 600  # of a front, spread over it
CHANGES = 400  # neighbours looked at
WEIGHED_EVERY = 1.2  # times as many trials
SCALED = 100  # trials that say what a divergence costs

Weights = tuple[Array | None, Array | None]


class Guided:
    """offers: parameters for Optuna. max_loss: the quality floor as a loss; beyond it nothing counts. dearest: energy
    ratio beyond which nothing counts."""

    def __init__(
        self,
        space: SearchSpace,
        forecast: Forecast,
        offers: Sequence[Mapping[str, Any]] = (),
        *,
        seed: int,
        max_loss: float,
        dearest: float = 1.0,
    ) -> None:
        self.space, self.forecast, self.seed = space, forecast, seed
        self.corner = (max_loss, float(np.log(dearest)))
        uniform = list(first(space)) if forecast.unit == "divergence" else []
        self.given, self.offered = distinct([*offers, *uniform]), len(offers)
        self.belief = Belief.of(forecast)
        self.known = self.weighed = 0
        self.picks = np.zeros((0, len(forecast.choices)), np.int64)  # of finished trials
        self.tried = self.picks  # those and the pending ones, which count as if they came out as believed

    def enqueue(
        self, study: "Study", number: int, seen: Sequence[Seen], pending: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._learn(seen)
        self.tried = np.concatenate([self.picks, self.forecast.picks(pending)])
        if (place := given(study)) < len(self.given):
            proposal = self.given[place]
            least = {choice.name: choice.options[int(np.argmin(choice.losses))] for choice in self.forecast.choices}
            picks = self.forecast.picks([{**least, **self.space.shown(proposal)}])[0]
            others = {name: value for name, value in proposal.items() if name not in least}
            told = {"turn": "offered" if place < self.offered else "uniform", "given": place}
        else:
            turn, picks = self._best(np.random.default_rng([self.seed, number]))
            others, told = {}, {"turn": turn}
        study.enqueue_trial(others, user_attrs={"proposal": {"picks": picks.tolist(), **told}})

    def fill(self, trial: "Trial", seen: Sequence[Seen]) -> "tuple[Policy, dict[str, Any]]":
        answers = self.forecast.answers(trial.user_attrs["proposal"]["picks"])
        for name, hole in self.space.holes().items():
            if name not in answers:
                answers[name] = hole.ask(trial, name)
        return self.space.filled(answers), answers

    # -- what is believed ----------------------------------------------------------------------------------------

    def _learn(self, seen: Sequence[Seen]) -> None:
        if len(seen) == self.known:
            return
        fresh = [one.answers for one in seen[self.known :]]
        self.picks = np.concatenate([self.picks, self.forecast.picks(fresh)])
        self.known = len(seen)
        if (due := _weighing(len(seen))) != self.weighed:
            if self.forecast.unit == "divergence" and self.weighed < SCALED:
                enough = min(due, SCALED)
                losses, noise = _values([one.loss for one in seen[:enough]])
                self.belief = Belief.of(self.forecast.scaled(self.picks[:enough], losses, noise))
            self.weighed = due
            self._teach(seen[:due], weigh=True)
        if due < len(seen):
            self._teach(seen, weigh=False)

    def _teach(self, seen: Sequence[Seen], *, weigh: bool) -> None:
        picks = self.picks[: len(seen)]
        self.belief.loss.learn(picks, *_values([one.loss for one in seen]), weigh=weigh)
        measured = [one.ratio is not None for one in seen]
        if any(measured):
            ratios, noise = _values([one.ratio for one in seen if one.ratio is not None])
            self.belief.cost.learn(picks[measured], ratios - 1.0, noise, weigh=weigh)

    def _places(self, picks: Array, weights: Weights) -> Array:
        """(loss, ln energy ratio) of picks, float64 [n, 2]."""
        loss = self.belief.loss.placed(picks, weights[0])
        cost = self.belief.cost.placed(picks, weights[1])
        return np.stack([loss, np.log(np.maximum(1.0 + cost, 1e-3))], axis=1)

    # -- proposals -----------------------------------------------------------------------------------------------

    def _best(self, rng: np.random.Generator) -> tuple[str, Array]:
        """The next picks, and by which of the ways they were found."""
        believed: Weights = (self.belief.loss.weights, self.belief.cost.weights)
        found, added = self._front(believed)
        if added.max() > 0:
            return "expected", found[added.argmax()]
        drawn: Weights = (self.belief.loss.drawn(rng), self.belief.cost.drawn(rng))
        found, added = self._front(drawn)
        if added.max() > 0:
            return "drawn", found[added.argmax()]
        near = self._changed(rng, believed)
        return "local", near[self._gains(near, drawn).argmax()]

    def _front(self, weights: Weights) -> tuple[Array, Array]:
        """The front under weights, and the hypervolume that each of its picks adds."""
        found = _spread(solve(self.belief.chain(weights)), CANDIDATES)
        return found, self._gains(found, weights)

    def _changed(self, rng: np.random.Generator, weights: Weights) -> Array:
        """Neighbours of what stands, of those that were not tried where there are any."""
        places = self._places(self.picks, weights)
        held = self.picks[standing(places)] if len(places) else np.zeros((1, len(self.forecast.choices)), np.int64)
        near = held[rng.integers(len(held), size=CHANGES)].copy()
        for row in near:
            for place in rng.integers(len(row), size=rng.integers(1, 3)):
                row[place] = rng.integers(len(self.forecast.choices[place].options))
        tried = {tuple(row) for row in self.tried.tolist()}
        fresh = [row for row in near if tuple(row.tolist()) not in tried]
        return np.array(fresh) if fresh else near

    def _gains(self, picks: Array, weights: Weights) -> Array:
        """Hypervolume that each of the picks adds to what was tried, all under one belief; float64 [n]."""
        return gains(self._places(picks, weights), self._places(self.tried, weights), self.corner)


def gains(places: Array, held: Array, corner: tuple[float, float]) -> Array:
    """Hypervolume that each place alone adds to those held, both [n, 2] and minimised, within the corner."""
    inside = held[(held < corner).all(1)]
    front = inside[standing(inside)]
    front = front[front[:, 0].argsort()]
    # a staircase: from losses[i] on, energy down to levels[i] is covered
    edges = np.concatenate([[-np.inf], front[:, 0], [corner[0]]])
    levels = np.concatenate([[corner[1]], front[:, 1]])
    added = np.zeros(len(places))
    for number, level in enumerate(levels):
        left, right = np.maximum(edges[number], places[:, 0]), edges[number + 1]
        added += np.clip(right - left, 0.0, None) * np.clip(level - places[:, 1], 0.0, None)
    return added


def _weighing(trials: int) -> int:
    """After how many of them it was last found what terms, and divergences, are worth, which changes slowly. It depends
    on the number of trials alone, so that a resumed study believes what the first would have."""
    due = 1
    while (following := max(due + 1, int(due * WEIGHED_EVERY))) <= trials:
        due = following
    return due


def _values(intervals: Sequence[Interval]) -> tuple[Array, Array]:
    """Means, and standard errors that are never quite 0."""
    means = np.array([interval.mean for interval in intervals])
    return means, np.array([interval.standard_error for interval in intervals]) + 1e-6


def _spread(picks: Array, count: int) -> Array:
    spread: Array = picks[np.unique(np.linspace(0, len(picks) - 1, count).astype(int))]
    return spread
