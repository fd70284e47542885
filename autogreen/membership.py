"""How likely a policy is on the true front, as far as the intervals of all of them tell.

Each place (loss, ln energy ratio) is known but for a normal error, as wide as its interval; of so many draws of all
places together, the share in which nothing dominates the policy. Errors count as independent. They are not quite:
losses are judged on the same examples, and what is hard for one policy is hard for its neighbour, so policies are
somewhat better told apart than this says. What one policy's error is drawn as depends on that policy alone: more
policies only ever make the others less likely.
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
    """Something measured. id: of the policy; loss, ratio: its 95 % intervals."""

    @property
    def id(self) -> str: ...

    @property
    def loss(self) -> Interval: ...

    @property
    def ratio(self) -> Interval: ...


def probabilities(points: Sequence[Placed]) -> list[float]:
    """Of each one to be dominated by no other, from 0 to 1."""
    if not points:
        return []
    loss, energy = _axis([point.loss for point in points]), _axis([_logarithm(point.ratio) for point in points])
    near = np.flatnonzero(_in_reach(loss, energy))  # the others are beaten in every draw, by what beats theirs too
    loss, energy = ((axis[0][near], axis[1][near]) for axis in (loss, energy))
    names = [points[int(place)].id.encode() for place in near]
    errors = [np.random.default_rng(zlib.crc32(name)).standard_normal((DRAWS, 2)) for name in names]
    held = np.zeros(len(near))
    for start in range(0, DRAWS, AT_ONCE):
        drawn = np.stack([error[start : start + AT_ONCE] for error in errors], axis=1)
        held += _undominated(loss[0] + loss[1] * drawn[..., 0], energy[0] + energy[1] * drawn[..., 1]).sum(0)
    shares = np.zeros(len(points))
    shares[near] = held / DRAWS
    return [float(share) for share in shares]


def _in_reach(loss: tuple[Array, Array], energy: tuple[Array, Array]) -> Array:
    """What is not beaten even at its best, by another at its worst: bool [n]."""
    worst, order = loss[0] + SURE * loss[1], np.argsort(loss[0] + SURE * loss[1])
    least = np.minimum.accumulate((energy[0] + SURE * energy[1])[order])
    before = np.searchsorted(worst[order], loss[0] - SURE * loss[1], side="left")  # strictly worse in loss
    floor = np.concatenate([[np.inf], least])[before]
    held: Array = energy[0] - SURE * energy[1] <= floor
    return held


def _undominated(losses: Array, energies: Array) -> Array:
    """Of places float64 [draws, n] that are minimised: bool [draws, n]. Of equals, all."""
    order = np.lexsort((energies, losses), axis=-1)
    energy = np.take_along_axis(energies, order, axis=-1)
    before = np.minimum.accumulate(energy, axis=-1)[:, :-1]
    least = np.concatenate([np.full((len(energy), 1), np.inf), before], axis=1)
    held = np.empty(losses.shape, bool)
    np.put_along_axis(held, order, energy <= least, axis=-1)
    return held


def _axis(intervals: Sequence[Interval]) -> tuple[Array, Array]:
    """Means and standard errors, float64 [n] each."""
    means = np.array([interval.mean for interval in intervals])
    return means, np.array([interval.standard_error for interval in intervals])


def _logarithm(ratio: Interval) -> Interval:
    low = max(ratio.low, ratio.mean**2 / ratio.high)  # an end at or below zero says no more than the other end
    return Interval(mean=math.log(ratio.mean), low=math.log(low), high=math.log(ratio.high))
