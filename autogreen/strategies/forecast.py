"""Forecast: what each choice is expected to cost and to hurt when it alone is changed, before the first trial.

    choice    a hole of the space with a few options: a layer's scheme, a group's pruning ratio
    loss      quality lost by that option alone, in the unit of the task's quality
    saving    share of the reference's energy that it saves; below 0 it costs more
    cast      share of the reference's energy that neighbours with unequal options cost on top

Choices stand in the order of the data path, so that neighbours in the list are neighbours in the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from autogreen.strategies.knapsack import Array, Chain


@dataclass(frozen=True, kw_only=True)
class Choice:
    """name: of the hole. options: as the space has them. losses, savings: one number each. group: choices that are
    likely misjudged alike (a section, a kind of layer). cast: towards the next choice; 0 after the last."""

    name: str
    options: tuple[Any, ...]
    losses: tuple[float, ...]
    savings: tuple[float, ...]
    group: str = ""
    cast: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """One choice or more. The reference's energy ratio is 1."""

    choices: tuple[Choice, ...]

    @property
    def chain(self) -> Chain:
        """Predicted losses, and energy ratios less 1, as a knapsack."""
        pairs = [
            one.cast * np.array([[float(a != b) for b in other.options] for a in one.options])
            for one, other in pairwise(self.choices)
        ]
        return Chain(
            losses=[np.array(choice.losses) for choice in self.choices],
            costs=[-np.array(choice.savings) for choice in self.choices],
            pair_costs=pairs if any(choice.cast for choice in self.choices) else None,
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in order of appearance."""
        return tuple(dict.fromkeys(choice.group for choice in self.choices))

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
