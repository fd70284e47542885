"""How likely a policy is on the true front, as far as the intervals of all of them tell.

Each place (loss, ln energy ratio, and ln latency where that is an objective) is known but for a normal error, as wide
as its interval; of so many draws of all places together, the share in which nothing dominates the policy. Errors count
as independent. They are not quite: losses are judged on the same examples, and what is hard for one policy is hard for
its neighbour, so policies are somewhat better told apart than this says. What one policy's error is drawn as depends
on that policy alone: more policies only ever make the others less likely.

Losses that differ by next to nothing count as equal: two programs that compute the same round differently, and of their
losses of 1e-9 one is smaller.

Source: Laumanns et al., Combining Convergence and Diversity in Evolutionary Multiobjective Optimization, Evolutionary
Computation 10(3), 2002 (dominance of boxes).
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from autogreen.measurement import Interval

DRAWS = 1000
AT_ONCE = 100
SURE = 3.5  # standard errors that no draw of note goes beyond, on both sides

Array = np.ndarray[Any, np.dtype[Any]]


class Placed(Protocol):
    """Something measured. id: of the policy; axes: its 95 % intervals, of loss and of what is above 0."""

    @property
    def id(self) -> str: ...

    @property
    def axes(self) -> tuple[Interval, ...]: ...


def probabilities(points: Sequence[Placed], negligible: float = 0.0) -> list[float]:
    """Of each one to be dominated by no other, from 0 to 1. negligible: losses are compared in steps of it."""
    if not points:
        return []
    placed = [(point.axes[0], *map(_logarithm, point.axes[1:])) for point in points]
    means = np.array([[axis.mean for axis in axes] for axes in placed])
    errors = np.array([[axis.standard_error for axis in axes] for axes in placed])
    near = np.flatnonzero(_in_reach(means, errors))  # the others are beaten in every draw, by what beats theirs too
    means, errors = means[near], errors[near]
    names = [points[int(place)].id.encode() for place in near]
    chance = [np.random.default_rng(zlib.crc32(name)).standard_normal((DRAWS, means.shape[1])) for name in names]
    held = np.zeros(len(near))
    for start in range(0, DRAWS, AT_ONCE):
        drawn = np.stack([one[start : start + AT_ONCE] for one in chance], axis=1)
        places = means + errors * drawn
        if negligible:
            places[..., 0] = np.round(places[..., 0] / negligible)
        held += _undominated(places).sum(0)
    shares = np.zeros(len(points))
    shares[near] = held / DRAWS
    return [float(share) for share in shares]


def _in_reach(means: Array, errors: Array) -> Array:
    """What is not beaten on every axis even at its best, by another at its worst; [n, axes] each -> bool [n]."""
    best, worst = means - SURE * errors, means + SURE * errors
    front: list[Array] = []  # of the worst places: what another beats on every axis, one of these does
    for place in worst[np.lexsort(worst.T[::-1])]:
        if not any((place >= other).all() for other in front):
            front.append(place)
    beaten: Array = np.asarray((np.array(front)[None] < best[:, None]).all(axis=2))
    return np.asarray(~beaten.any(axis=1))


def _undominated(places: Array) -> Array:
    """Of places float64 [draws, n, axes] that are minimised: bool [draws, n]. Of equals, all."""
    if places.shape[-1] == 2:
        return _undominated_on_two(places[..., 0], places[..., 1])
    beaten = np.zeros(places.shape[:2], bool)
    for one in np.moveaxis(places, 1, 0):
        one = one[:, None]
        beaten |= (one <= places).all(-1) & (one < places).any(-1)
    return ~beaten


def _undominated_on_two(losses: Array, energies: Array) -> Array:
    """The same by sorting."""
    order = np.lexsort((energies, losses), axis=-1)
    energy = np.take_along_axis(energies, order, axis=-1)
    before = np.minimum.accumulate(energy, axis=-1)[:, :-1]
    least = np.concatenate([np.full((len(energy), 1), np.inf), before], axis=1)
    held = np.empty(losses.shape, bool)
    np.put_along_axis(held, order, energy <= least, axis=-1)
    return held


def _logarithm(value: Interval) -> Interval:
    low = max(value.low, value.mean**2 / value.high)  # an end at or below zero says no more than the other end
    return Interval(mean=math.log(value.mean), low=math.log(low), high=math.log(value.high))
