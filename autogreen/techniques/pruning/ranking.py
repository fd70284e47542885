"""Who goes: the weakest of each unit, or the weakest of several units ranked together."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autogreen.techniques.pruning.importance import normalized


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """scores: [width] of each part of a unit; the parts (layers of a decoder) lose equally many. of: the width that the
    unit once had. step: a width that is not left alone is a multiple of it."""

    scores: tuple[Tensor, ...]
    of: int
    step: int

    @property
    def width(self) -> int:
        return len(self.scores[0])

    def losses(self) -> Tensor:
        """[width]: what losing one more costs, in shares of the unit's mean score; it never falls."""
        return torch.stack([normalized(score).sort().values for score in self.scores]).mean(0)


def removals(units: Sequence[Ranked], ratio: float) -> list[int]:
    """How many indices each unit loses, so that together they have lost a share of what they once had.

    Steps go one by one, from the unit whose next step has the least mean loss; every unit keeps at least one step. The
    last step is taken where that comes nearer to the ratio.
    """
    wanted = ratio * sum(unit.of for unit in units) - sum(unit.of - unit.width for unit in units)
    losses, left = [unit.losses() for unit in units], [unit.width for unit in units]
    queue: list[tuple[float, int, int]] = []

    def offer(place: int) -> None:
        unit = units[place]
        below = math.ceil(left[place] / unit.step - 1) * unit.step  # the next multiple down
        if below >= unit.step:
            done = unit.width - left[place]
            size = left[place] - below
            heapq.heappush(queue, (float(losses[place][done : done + size].mean()), place, size))

    for place in range(len(units)):
        offer(place)
    removed = 0
    while queue:
        _, place, size = heapq.heappop(queue)
        if removed + size / 2 > wanted:
            continue  # another unit may have a smaller step
        removed += size
        left[place] -= size
        offer(place)
    return [unit.width - kept for unit, kept in zip(units, left, strict=True)]


def weakest(score: Tensor, count: int) -> list[int]:
    """Indices of the `count` least scores in order; of equal ones the first go."""
    return torch.argsort(score.cpu(), stable=True)[:count].sort().values.tolist()


def least(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Boolean masks in the shapes of the scores, true at the `count` least of all."""
    flat = torch.cat([score.flatten() for score in scores])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[torch.argsort(flat, stable=True)[:count]] = True
    parts = torch.split(chosen, [score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]
