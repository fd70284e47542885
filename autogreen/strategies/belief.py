"""What finished trials taught about the forecast: a Gaussian process over additive terms, so that it stays a knapsack.

    measured = forecast + sum over terms of weight x term          every weight ~ N(0, its doubt), unknown beforehand

    scale     the whole forecast is too high or too low
    group     a group's is, or that of all choices at one option
    choice    one option of one choice is
    pair      neighbours hurt together more, or less, than each alone: all of them, and each pair for itself
    bend      twice the loss is not twice the loss (does not change which policies are best; only how they are placed)

The same for energy. The posterior is corrected choices and pairs, so `solve` finds the corrected front exactly, and a
draw from it is another front that may be true (Thompson sampling). How much terms of a kind are worth is chosen by the
marginal likelihood.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapters 2 (linear kernels, weight space)
and 5 (marginal likelihood); Duvenaud et al., Additive Gaussian Processes, NeurIPS 2011; Wilson et al., Pathwise
Conditioning of Gaussian Processes, JMLR 2021 (draws).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from autogreen.strategies.forecast import Forecast, touching
from autogreen.strategies.knapsack import Array, Chain

DOUBTS = {"scale": 0.5, "group": 0.3, "option": 0.3, "choice": 0.4, "pairs": 2.0, "pair": 0.3, "bend": 0.3}  # relative
SCALES = (0.1, 0.4, 1.0, 2.5)  # of these doubts, tried by marginal likelihood
PAIR_SCALES = (0.1, 1.0, 4.0, 12.0)
WEIGHED = 250  # trials that say it


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One axis, loss or cost: the forecast's part of it, and what its terms are.

    alone: for each choice float64 [options]. pairs: for each choice but the last float64 [options, options], how
    strongly the two may interact. joint: what the forecast itself says of pairs, shaped alike, or None.
    """

    alone: list[Array]
    pairs: list[Array]
    joint: list[Array] | None
    groups: list[int]
    options: list[list[int]]

    def terms(self, picks: Array) -> dict[str, Array]:
        """Terms of each kind, float64 [n, terms], of picks int64 [n, choices]."""
        count = len(picks)
        starts = np.cumsum([0, *(len(values) for values in self.alone)])
        choice = np.zeros((count, starts[-1]))
        group = np.zeros((count, max(self.groups) + 1))
        option = np.zeros((count, max(max(numbers) for numbers in self.options) + 1))
        pair = np.zeros((count, len(self.pairs)))
        rows = np.arange(count)
        for place, values in enumerate(self.alone):
            mine = picks[:, place]
            told = values[mine]
            choice[rows, starts[place] + mine] = told
            group[:, self.groups[place]] += told
            option[rows, np.array(self.options[place])[mine]] += told
        for place, matrix in enumerate(self.pairs):
            pair[:, place] = matrix[picks[:, place], picks[:, place + 1]]
        scale = choice.sum(1, keepdims=True)
        return {
            "scale": scale,
            "group": group,
            "option": option,
            "choice": choice,
            "pairs": pair.sum(1, keepdims=True),
            "pair": pair,
            "bend": scale**2,
        }


@dataclass(eq=False)
class Posterior:
    """Of one axis. `unit` makes the bend relative."""

    side: Side
    unit: float
    doubts: dict[str, float] = field(default_factory=lambda: dict(DOUBTS))
    weights: Array | None = None

    def __post_init__(self) -> None:
        one = self.side.terms(np.zeros((1, len(self.side.alone)), np.int64))
        ends = np.cumsum([one[kind].shape[1] for kind in DOUBTS]).tolist()
        self._at = {kind: slice(start, end) for kind, start, end in zip(DOUBTS, [0, *ends], ends, strict=False)}
        self._picks = np.zeros((0, len(self.side.alone)), np.int64)
        self._terms = np.zeros((0, ends[-1]))
        self._inner = {kind: np.zeros((0, 0)) for kind in DOUBTS}
        self._told: tuple[Array, Array, Array] | None = None  # rest, noise, Cholesky root of the covariance

    def prior(self, picks: Array) -> Array:
        """The forecast of picks, float64 [n]."""
        return self._summed(picks, self.side.alone, self.side.joint)

    def terms(self, picks: Array) -> Array:
        """Float64 [n, terms], each as much as it is doubted."""
        return self._raw(picks) * self._doubted()

    def learn(self, picks: Array, values: Array, noise: Array, *, weigh: bool = True) -> None:
        """Take in all measured values with their standard errors, float64 [n]; those of before stand first. weigh: find
        anew what kinds of terms are worth."""
        self._take_in(picks)
        rest = values - self.prior(picks)
        if weigh:
            self.doubts = self._weighed(rest, noise)
        root = np.linalg.cholesky(self._covariance(self.doubts, noise))
        self._told = rest, noise, root
        self.weights = self._doubted() * (cho_solve((root, True), rest) @ self._terms)

    def drawn(self, rng: np.random.Generator) -> Array:
        """Weights from the posterior."""
        doubted = self._doubted()
        guess = rng.standard_normal(len(doubted))
        if self._told is None:
            return guess
        rest, noise, root = self._told
        gap = rest - self._terms @ (doubted * guess) - noise * rng.standard_normal(len(rest))
        drawn: Array = guess + doubted * (cho_solve((root, True), gap) @ self._terms)
        return drawn

    def placed(self, picks: Array, weights: Array | None) -> Array:
        """Where picks are under these weights, float64 [n]."""
        if weights is None:
            return self.prior(picks)
        bend: float = weights[-1] * self.doubts["bend"] / self.unit
        squared = np.square(self._summed(picks, self.side.alone, None))
        return self._summed(picks, *self.corrected(weights)) + bend * squared

    def corrected(self, weights: Array | None) -> tuple[list[Array], list[Array] | None]:
        """The axis as a knapsack's: alone and pairs. Bends are left out: they move no policy before another."""
        side = self.side
        if weights is None:
            return side.alone, side.joint
        parts = {kind: weights[at] * self.doubts[kind] for kind, at in self._at.items()}
        alone, place = [], 0
        for number, values in enumerate(side.alone):
            factor = (
                1
                + parts["scale"][0]
                + parts["group"][side.groups[number]]
                + parts["option"][np.array(side.options[number])]
                + parts["choice"][place : place + len(values)]
            )
            alone.append(values * factor)
            place += len(values)
        pairs = [
            matrix * (weight + parts["pairs"][0]) + (0.0 if side.joint is None else side.joint[number])
            for number, (matrix, weight) in enumerate(zip(side.pairs, parts["pair"], strict=True))
        ]
        return alone, pairs or None

    @staticmethod
    def _summed(picks: Array, alone: list[Array], pairs: list[Array] | None) -> Array:
        return Chain(losses=alone, costs=alone, pair_losses=pairs).loss(picks)

    def _raw(self, picks: Array) -> Array:
        terms = self.side.terms(picks)
        terms["bend"] = terms["bend"] / self.unit
        return np.hstack([terms[kind] for kind in DOUBTS])

    def _doubted(self) -> Array:
        return np.concatenate([np.full(at.stop - at.start, self.doubts[kind]) for kind, at in self._at.items()])

    def _take_in(self, picks: Array) -> None:
        """Inner products of the terms of what is new with all."""
        before = len(self._picks)
        fresh = self._raw(picks[before:])
        self._picks, self._terms = picks, np.vstack([self._terms, fresh])
        for kind, at in self._at.items():
            beside = fresh[:, at] @ self._terms[:, at].T
            self._inner[kind] = np.block([[self._inner[kind], beside[:, :before].T], [beside]])

    def _covariance(self, doubts: Mapping[str, float], noise: Array) -> Array:
        covariance: Array = np.diag(noise**2)
        for kind, inner in self._inner.items():
            covariance += doubts[kind] ** 2 * inner
        return covariance

    def _weighed(self, rest: Array, noise: Array) -> dict[str, float]:
        """The doubts under which what was measured is likeliest: of many trials, the last ones, which lie where the
        front is."""
        last = slice(-WEIGHED, None)
        inner = {kind: matrix[last, last] for kind, matrix in self._inner.items()}
        rest, noise = rest[last], noise[last]
        fixed = sum(DOUBTS[kind] ** 2 * inner[kind] for kind in DOUBTS if kind not in ("choice", "pair"))
        best, found = -np.inf, DOUBTS
        for choice, pair, common in product(SCALES, PAIR_SCALES, SCALES):
            doubts = {kind: doubt * common for kind, doubt in DOUBTS.items()}
            doubts |= {"choice": DOUBTS["choice"] * choice, "pair": DOUBTS["pair"] * pair}
            covariance = (
                common**2 * fixed + doubts["choice"] ** 2 * inner["choice"] + doubts["pair"] ** 2 * inner["pair"]
            )
            root = np.linalg.cholesky(covariance + np.diag(noise**2))
            likelihood = -0.5 * np.square(solve_triangular(root, rest, lower=True)).sum() - np.log(np.diag(root)).sum()
            if likelihood > best:
                best, found = likelihood, doubts
        return found


@dataclass(eq=False)
class Belief:
    """Loss and energy ratio less 1 of every policy, as far as forecast and trials tell."""

    loss: Posterior
    cost: Posterior

    @classmethod
    def of(cls, forecast: Forecast) -> "Belief":
        chain = forecast.chain
        names = {group: number for number, group in enumerate(forecast.groups)}
        groups = [names[choice.group] for choice in forecast.choices]
        kinds: dict[Any, int] = {}
        options = [[kinds.setdefault(option, len(kinds)) for option in choice.options] for choice in forecast.choices]
        casts = None if chain.pair_costs is None else list(chain.pair_costs)
        joint = None if chain.pair_losses is None else list(chain.pair_losses)
        loss = Side(
            alone=list(chain.losses),
            pairs=[touching(one, other) for one, other in pairwise(chain.losses)],
            joint=joint,
            groups=groups,
            options=options,
        )
        cost = Side(
            alone=list(chain.costs),
            pairs=casts or [0.05 * touching(one, other) for one, other in pairwise(chain.costs)],
            joint=casts,
            groups=groups,
            options=options,
        )
        return cls(Posterior(loss, max(sum(v.max() for v in chain.losses), 1e-12)), Posterior(cost, 1.0))

    def chain(self, weights: tuple[Array | None, Array | None]) -> Chain:
        """The knapsack under weights of both axes."""
        losses, pair_losses = self.loss.corrected(weights[0])
        costs, pair_costs = self.cost.corrected(weights[1])
        return Chain(losses=losses, costs=costs, pair_losses=pair_losses, pair_costs=pair_costs)
