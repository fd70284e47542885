"""Forecast: what each choice is expected to cost and to hurt when it alone is changed, before the first trial.

    choice    a hole of the space with a few options: a layer's scheme, a group's pruning ratio
    loss      quality lost by that option alone, in the unit of the task's quality
    saving    share of the reference's energy that it saves; below 0 it costs more
    cast      share of the reference's energy that neighbours with unequal options cost on top
    together  what neighbours lose on top of each alone, in roots of the product of their losses; below 0 they lose less

Choices stand in the order of the data path, so that neighbours in the list are neighbours in the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from autogreen.strategies.knapsack import Array, Chain


@dataclass(frozen=True, kw_only=True)
class Choice:
    """name: of the hole. options: as the space has them. losses, savings: one number each. group: choices that are
    likely misjudged alike (a section, a kind of layer). cast, together: towards the next choice; 0 after the last."""

    name: str
    options: tuple[Any, ...]
    losses: tuple[float, ...]
    savings: tuple[float, ...]
    group: str = ""
    cast: float = 0.0
    together: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """One choice or more. The reference's energy ratio is 1. unit: of the losses; what a divergence of outputs costs in
    quality is not known before the first trials."""

    choices: tuple[Choice, ...]
    unit: Literal["quality", "divergence"] = "quality"

    @property
    def chain(self) -> Chain:
        """Predicted losses, and energy ratios less 1, as a knapsack."""
        pairs = [
            one.cast * np.array([[float(a != b) for b in other.options] for a in one.options])
            for one, other in pairwise(self.choices)
        ]
        losses = [np.array(choice.losses) for choice in self.choices]
        joint = [
            choice.together * touching(one, other)
            for choice, (one, other) in zip(self.choices, pairwise(losses), strict=False)
        ]
        return Chain(
            losses=losses,
            costs=[-np.array(choice.savings) for choice in self.choices],
            pair_losses=joint if any(choice.together for choice in self.choices) else None,
            pair_costs=pairs if any(choice.cast for choice in self.choices) else None,
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in order of appearance."""
        return tuple(dict.fromkeys(choice.group for choice in self.choices))

    def scaled(self, picks: Array, losses: Array, noise: Array) -> "Forecast":
        """With losses in the unit of quality, each group's on a scale of its own that fits what trials lost best.

        picks: int64 [n, choices]; losses, noise: measured, and standard errors, float64 [n].
        """
        from sklearn.linear_model import LinearRegression, Ridge

        told = np.zeros((len(picks), len(self.groups)))
        for place, choice in enumerate(self.choices):
            told[:, self.groups.index(choice.group)] += np.array(choice.losses)[picks[:, place]]
        weight = 1.0 / noise**2
        size = np.maximum(told.max(0), 1e-12)
        common = LinearRegression(positive=True, fit_intercept=False).fit(
            (told / size).sum(1, keepdims=True), losses, weight
        )
        each = Ridge(alpha=weight.mean(), positive=True, fit_intercept=False).fit(told / size, losses, weight)
        scales = np.where(each.coef_ > 0, each.coef_, max(common.coef_[0], 1e-6) / 10) / size
        known = dict(zip(self.groups, scales, strict=True))
        choices = [
            replace(choice, losses=tuple(loss * known[choice.group] for loss in choice.losses))
            for choice in self.choices
        ]
        return Forecast(choices=tuple(choices))

    def picks(self, answers: Sequence[Mapping[str, Any]]) -> Array:
        """Option numbers int64 [n, choices] of answers, hole -> option."""
        where = [{option: number for number, option in enumerate(choice.options)} for choice in self.choices]
        rows = [
            [known[told[choice.name]] for choice, known in zip(self.choices, where, strict=True)] for told in answers
        ]
        return np.array(rows, np.int64).reshape(len(rows), len(self.choices))

    def answers(self, picks: Array) -> dict[str, Any]:
        """The inverse, of one row."""
        return {choice.name: choice.options[pick] for choice, pick in zip(self.choices, picks, strict=True)}


def touching(one: Array, other: Array) -> Array:
    """How strongly two choices may interact: the root of the product of what their options do, float64 [n, m]."""
    joint: Array = np.sqrt(np.outer(np.abs(one), np.abs(other)))
    return joint


def interactions(one: Array, other: Array, both: Array, error: float) -> Array:
    """`together` of neighbours that hurt so much alone, and so much when both are changed; float64 [pairs] each.

    error: relative, of a probe. Where one hurts far more than the other, the difference of three probes says little of
    what they do together; so each is drawn towards the mean of all, by as much as its own error is larger than what
    they truly differ (empirical Bayes).

    Source: Efron and Morris, Data Analysis Using Stein's Estimator, JASA 70, 1975.
    """
    size = np.sqrt(one * other)
    told, variance = (both - one - other) / size, np.square(error * both / size)
    weight = 1.0 / (variance + np.median(variance))
    mean = (weight * told).sum() / weight.sum()
    spread = max(0.0, (weight * (np.square(told - mean) - variance)).sum() / weight.sum())
    if abs(mean) < 2.0 / np.sqrt((1.0 / (variance + spread)).sum()):  # nothing that can be told from none
        mean = 0.0
    drawn: Array = mean + (told - mean) * spread / (spread + variance)
    return drawn
