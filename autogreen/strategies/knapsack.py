"""The best choices for every budget at once, over a chain of choices.

    loss(picks) = sum of losses[i][p_i] + sum of pair_losses[i][p_i, p_i+1]
    cost(picks) = sum of costs[i][p_i]  + sum of pair_costs[i][p_i, p_i+1]

One option is picked of every choice. Neighbours on the chain may cost extra together (a cast between two precisions) or
hurt more, or less, than each alone. For one price of cost, least loss + price x cost is found exactly by Viterbi's
dynamic programme; all prices together give every corner of the convex hull of the front. What lies between two corners
is filled with the best single changes of a corner: with many choices the corners lie close together, and what they miss
is less than one choice is worth.

Source: Everett, Generalized Lagrange Multiplier Method, Operations Research 11, 1963; Viterbi, 1967 (the chain);
Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004, chapter 11 (multiple choice).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

PRICES = 400
MANY = 150  # corners that lie close enough


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """losses, costs: for each choice float64 [options]. pair_losses, pair_costs: for each choice but the last float64
    [options, options of the next], or None where neighbours do not matter."""

    losses: Sequence[Array]
    costs: Sequence[Array]
    pair_losses: Sequence[Array] | None = None
    pair_costs: Sequence[Array] | None = None

    def loss(self, picks: Array) -> Array:
        """Of picks int64 [n, choices] -> float64 [n]."""
        return _summed(self.losses, self.pair_losses, picks)

    def cost(self, picks: Array) -> Array:
        """Of picks int64 [n, choices] -> float64 [n]."""
        return _summed(self.costs, self.pair_costs, picks)


def _summed(alone: Sequence[Array], pairs: Sequence[Array] | None, picks: Array) -> Array:
    picks = np.asarray(picks)
    total = np.zeros(len(picks))
    for place, values in enumerate(alone):
        total += values[picks[:, place]]
    for place, matrix in enumerate(pairs or ()):
        total += matrix[picks[:, place], picks[:, place + 1]]
    return total


def solve(chain: Chain, prices: int = PRICES) -> Array:
    """Picks of the front, for rising cost and falling loss: int64 [n, choices]."""
    corners = _front(chain, np.unique(_cheapest(chain, _prices(chain, prices)), axis=0))
    return corners if len(corners) >= MANY else _front(chain, np.concatenate([corners, _between(chain, corners)]))


def standing(places: Array) -> Array:
    """Which of float64 [n, 2], both minimised, nothing dominates: bool [n]; of equals the first."""
    order = np.lexsort((places[:, 1], places[:, 0]))
    least = np.minimum.accumulate(np.concatenate([[np.inf], places[order, 1][:-1]]))
    held = np.zeros(len(places), bool)
    held[order] = places[order, 1] < least
    return held


def _front(chain: Chain, picks: Array) -> Array:
    places = np.stack([chain.cost(picks), chain.loss(picks)], axis=1)
    held = standing(places)
    front: Array = picks[held][places[held, 0].argsort()]
    return front


def _prices(chain: Chain, count: int) -> Array:
    """From a price at which only loss counts to one at which only cost does, evenly in their logarithms."""
    ratios = []
    for losses, costs in zip(chain.losses, chain.costs, strict=True):
        apart, saved = np.abs(losses[:, None] - losses), np.abs(costs[:, None] - costs)
        ratios.append((apart / np.where(saved > 0, saved, np.inf)).ravel())
    known = np.concatenate(ratios)
    known = known[known > 0]
    if not len(known):
        return np.array([0.0, 1.0])
    return np.concatenate([[0.0], np.geomspace(known.min() / 4, known.max() * 4, count)])


def _cheapest(chain: Chain, prices: Array) -> Array:
    """For each price the picks with least loss + price x cost: int64 [prices, choices]."""
    price = prices[:, None]
    value = chain.losses[0] + price * chain.costs[0]
    backs: list[Array] = []
    for place in range(1, len(chain.losses)):
        here = chain.losses[place] + price * chain.costs[place]
        if chain.pair_losses is None and chain.pair_costs is None:
            before = value.argmin(1)
            backs.append(np.repeat(before[:, None], here.shape[1], axis=1))
            value = value.min(1)[:, None] + here
            continue
        joint = np.zeros((1, value.shape[1], here.shape[1]))
        if chain.pair_losses is not None:
            joint = joint + chain.pair_losses[place - 1]
        if chain.pair_costs is not None:
            joint = joint + prices[:, None, None] * chain.pair_costs[place - 1]
        arrived = value[:, :, None] + joint
        backs.append(arrived.argmin(1))
        value = arrived.min(1) + here
    rows = np.arange(len(prices))
    picks = np.empty((len(prices), len(chain.losses)), np.int64)
    picks[:, -1] = value.argmin(1)
    for place in range(len(backs), 0, -1):
        picks[:, place - 1] = backs[place - 1][rows, picks[:, place]]
    return picks


def _between(chain: Chain, corners: Array) -> Array:
    """Single changes of corners that no corner dominates."""
    changed = []
    cost, loss = chain.cost(corners), chain.loss(corners)
    for place in range(len(chain.losses)):
        for option in range(len(chain.losses[place])):
            rows = corners.copy()
            rows[:, place] = option
            further = loss + _moved(chain.losses, chain.pair_losses, corners, place, option)
            dearer = cost + _moved(chain.costs, chain.pair_costs, corners, place, option)
            # of all corners that cost no more, the one that loses least
            rank = np.searchsorted(cost, dearer, side="right") - 1
            best = np.where(rank >= 0, loss[np.maximum(rank, 0)], np.inf)
            new = further < best - 1e-15
            if new.any():
                changed.append((rows[new], dearer[new], further[new]))
    if not changed:
        return corners[:0]
    rows = np.concatenate([part[0] for part in changed])
    places = np.stack([np.concatenate([part[k] for part in changed]) for k in (1, 2)], axis=1)
    return rows[standing(places)]


def _moved(alone: Sequence[Array], pairs: Sequence[Array] | None, picks: Array, place: int, option: int) -> Array:
    """By how much the sum changes when one choice becomes `option`: float64 [n]."""
    change = alone[place][option] - alone[place][picks[:, place]]
    if pairs is not None and place > 0:
        before = picks[:, place - 1]
        change = change + pairs[place - 1][before, option] - pairs[place - 1][before, picks[:, place]]
    if pairs is not None and place < len(pairs):
        after = picks[:, place + 1]
        change = change + pairs[place][option, after] - pairs[place][picks[:, place], after]
    return np.asarray(change)
