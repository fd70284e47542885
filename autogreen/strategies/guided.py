"""A few knobs, turned into a whole policy by the corrected forecast.

    budget    share of the way from the least predicted energy to the most
    tilt      one a group of choices: how much heavier its losses weigh than forecast
    others    every hole that the forecast does not know: training, runtime, parallelism

In turns:   expected   the best predicted policy where the hypervolume has most to gain
            drawn      the same under a draw from what is believed (Thompson sampling): it tries what may be better
            sampled    knobs by Optuna's sampler, from what all trials taught it
            local      a member of the front with one choice, or two, changed
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from autogreen.measurement import Interval
from autogreen.samplers import first
from autogreen.space import SearchSpace
from autogreen.strategies import Seen, given
from autogreen.strategies.belief import Belief
from autogreen.strategies.forecast import Forecast
from autogreen.strategies.knapsack import Array, solve, standing

if TYPE_CHECKING:
    from optuna import Study, Trial

    from autogreen.policy import Policy

TURNS = ("expected", "drawn", "sampled", "drawn", "expected", "local")
OPENING = 12  # trials of the predicted front before anything else
CANDIDATES = 600
PRICES = 1000
TILT = 1.5
STANDARD_ERRORS = 2 * 1.96  # in a 95 % interval


class Guided:
    """max_loss: the quality floor as a loss; beyond it nothing counts. dearest: energy ratio beyond which nothing
    counts.

    A forecast in divergences is first given a scale: by the uniform policies with which every search begins."""

    def __init__(
        self, space: SearchSpace, forecast: Forecast, *, seed: int, max_loss: float, dearest: float = 1.0
    ) -> None:
        self.space, self.forecast, self.seed = space, forecast, seed
        self.corner = (max_loss, float(np.log(dearest)))
        self.belief = Belief.of(forecast)
        self.known = 0
        self._front: Array | None = None
        self.turns = TURNS
        self.picks = np.zeros((0, len(forecast.choices)), np.int64)
        proposals = list(first(space)) if forecast.unit == "divergence" else []
        self.uniform = [one for place, one in enumerate(proposals) if one not in proposals[:place]]

    def enqueue(self, study: "Study", number: int, seen: Sequence[Seen]) -> None:
        self._learn(seen)
        if (place := given(study)) < len(self.uniform):
            uniform = self.uniform[place]
            picks = self.forecast.picks([self.space.shown(uniform)])[0]
            known = {choice.name for choice in self.forecast.choices}
            others = {name: value for name, value in uniform.items() if name not in known}
            self._enqueue(study, picks, others, turn="uniform", given=place)
            return
        turn = "expected" if number < len(self.uniform) + OPENING else self.turns[number % len(self.turns)]
        if turn == "sampled":
            return
        rng = np.random.default_rng([self.seed, number])
        picks = self._local(rng) if turn == "local" else self._best(rng if turn == "drawn" else None)
        self._enqueue(study, picks, {}, turn=turn)

    def _enqueue(self, study: "Study", picks: Array, others: dict[str, Any], **told: Any) -> None:
        """Fix the next trial's choices, and the knobs that come nearest to them; whatever else is open is sampled."""
        knobs = {"budget": self._budget(picks), **{f"tilt {group}": 0.0 for group in self.forecast.groups}}
        study.enqueue_trial({**knobs, **others}, user_attrs={"proposal": {"picks": picks.tolist(), **told}})

    def fill(self, trial: "Trial", seen: Sequence[Seen]) -> "tuple[Policy, dict[str, Any]]":
        self._learn(seen)
        budget = trial.suggest_float("budget", 0.0, 1.0)
        tilts = {group: trial.suggest_float(f"tilt {group}", -TILT, TILT) for group in self.forecast.groups}
        picks = trial.user_attrs.get("proposal", {}).get("picks")
        chosen = np.array(picks) if picks is not None else self._decoded(budget, tilts)
        answers = self.forecast.answers(chosen)
        for name, hole in self.space.holes().items():
            if name not in answers:
                answers[name] = hole.ask(trial, name)
        return self.space.filled(answers), answers

    # -- what is believed ----------------------------------------------------------------------------------------

    def _learn(self, seen: Sequence[Seen]) -> None:
        if len(seen) == self.known or (len(seen) > 100 and len(seen) < 1.02 * self.known):
            return
        self.known, self._front = len(seen), None
        self.picks = self.forecast.picks([one.answers for one in seen])
        losses, loss_noise = _values([one.loss for one in seen])
        if self.forecast.unit == "divergence":
            self.belief = Belief.of(self.forecast.scaled(self.picks, losses, loss_noise))
        self.belief.loss.learn(self.picks, losses, loss_noise)
        measured = [one.ratio is not None for one in seen]
        if any(measured):
            ratios, ratio_noise = _values([one.ratio for one in seen if one.ratio is not None])
            self.belief.cost.learn(self.picks[measured], ratios - 1.0, ratio_noise)

    @property
    def front(self) -> Array:
        """The believed front, cheapest first: int64 [n, choices]."""
        if self._front is None:
            self._front = solve(self.belief.chain(self._weights(None)), PRICES)
        return self._front

    def _weights(self, rng: np.random.Generator | None) -> tuple[Array | None, Array | None]:
        if rng is None:
            return self.belief.loss.weights, self.belief.cost.weights
        return self.belief.loss.drawn(rng), self.belief.cost.drawn(rng)

    def _places(self, picks: Array, weights: tuple[Array | None, Array | None]) -> Array:
        """(loss, ln energy ratio) of picks, float64 [n, 2]."""
        loss = self.belief.loss.placed(picks, weights[0])
        cost = self.belief.cost.placed(picks, weights[1])
        return np.stack([loss, np.log(np.maximum(1.0 + cost, 1e-3))], axis=1)

    # -- proposals -----------------------------------------------------------------------------------------------

    def _best(self, rng: np.random.Generator | None) -> Array:
        """Of the believed (or drawn) front the policy that adds most hypervolume."""
        weights = self._weights(rng)
        found = _spread(self.front if rng is None else solve(self.belief.chain(weights)), CANDIDATES)
        picks: Array = found[self._gains(found, weights).argmax()]
        return picks

    def _local(self, rng: np.random.Generator) -> Array:
        """A believed front member with one choice changed, or two, whichever adds most under a draw."""
        weights = self._weights(None)
        held = self.picks[standing(self._places(self.picks, weights))]
        near = held[rng.integers(len(held), size=4 * CANDIDATES)].copy()
        for row in near:
            for place in rng.integers(len(row), size=rng.integers(1, 3)):
                row[place] = rng.integers(len(self.forecast.choices[place].options))
        drawn = self._weights(rng)
        picks: Array = near[self._gains(near, drawn).argmax()]
        return picks

    def _gains(self, picks: Array, weights: tuple[Array | None, Array | None]) -> Array:
        """Hypervolume that each of the picks adds to what was tried, all under one belief; float64 [n]."""
        return gains(self._places(picks, weights), self._places(self.picks, weights), self.corner)

    def _decoded(self, budget: float, tilts: dict[str, float]) -> Array:
        found = self.front
        if any(tilts.values()):
            chain = self.belief.chain(self._weights(None))
            heavier = [np.exp(tilts[choice.group]) for choice in self.forecast.choices]
            losses = [values * factor for values, factor in zip(chain.losses, heavier, strict=True)]
            found = solve(replace(chain, losses=losses))
        found = self._useful(found)
        places = self._places(found, self._weights(None))[:, 1]
        picks: Array = found[np.abs(places - (places.min() + budget * np.ptp(places))).argmin()]
        return picks

    def _useful(self, found: Array) -> Array:
        """Those within the floor, by what is believed; all where none is."""
        losses = self.belief.loss.placed(found, self.belief.loss.weights)
        held = found[losses <= 1.1 * self.corner[0]]
        return held if len(held) else found

    def _budget(self, picks: Array) -> float:
        found = self._useful(self.front)
        places = self._places(found, self._weights(None))[:, 1]
        mine = self._places(picks[None], self._weights(None))[0, 1]
        return float(np.clip((mine - places.min()) / max(np.ptp(places), 1e-12), 0.0, 1.0))


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


def _values(intervals: Sequence[Interval]) -> tuple[Array, Array]:
    """Means, and standard errors that are never quite 0."""
    means = np.array([interval.mean for interval in intervals])
    return means, np.array([(interval.high - interval.low) / STANDARD_ERRORS for interval in intervals]) + 1e-6


def _spread(picks: Array, count: int) -> Array:
    spread: Array = picks[np.unique(np.linspace(0, len(picks) - 1, count).astype(int))]
    return spread
