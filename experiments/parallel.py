"""What was measured of a study whose policies occupy several devices, as a table: joules, latency, time between ranks.

    python experiments/parallel.py NAME [--runs runs]

One line for each policy, the batches together; `over one` compares with the cheapest policy of one rank that has the
same batch and does the same to the model: joules of an item and latency of a call.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from autogreen.engines import DEGREES, Recipe
from autogreen.front import Front
from autogreen.point import Point
from autogreen.store import Store
from autogreen.wording import plain_spread, quantity, spread, words


def lines(front: Front) -> Iterator[str]:
    """Markdown."""
    points = [*front.members, *front.others]
    members = {point.id for point in front.members}
    joules_told = f"J per {front.results.item}, {front.results.tier}"
    heads = (
        "batch",
        *DEGREES,
        "policy",
        joules_told,
        "over one",
        "latency",
        "over one",
        "between ranks",
        "loss",
        "front",
    )
    yield f"| {' | '.join(heads)} |"
    yield f"|{'--:|' * len(heads)}"
    for point in sorted(points, key=_order):
        recipe, alone = _recipe(point), _alone(point, points)
        joules, latency_s = point.energy_per_item_j, point.measurement.latency_s
        shared = point.evaluation.communication
        cells = (
            str(recipe.batch),
            *(str(getattr(recipe, name)) for name in DEGREES),
            words(_changes(point)) + (", graph" if recipe.cuda_graph else ""),
            spread(joules, "J"),
            "" if alone is None else f"{joules.mean / alone.energy_per_item_j.mean:.3f}",
            quantity(latency_s.mean, "s"),
            "" if alone is None else f"{latency_s.mean / alone.measurement.latency_s.mean:.3f}",
            "" if shared is None else f"{shared:.0%}",
            plain_spread(point.loss),
            "yes" if point.id in members else "",
        )
        yield f"| {' | '.join(cells)} |"


def _recipe(point: Point) -> Recipe:
    assert point.evaluation.recipe is not None, "what was measured has one"
    return point.evaluation.recipe


def _changes(point: Point) -> dict[str, object]:
    """What it does to the model."""
    parts = point.evaluation.effect.parts
    return {section: part for section, part in parts.items() if section not in ("parallelism", "runtime")}


def _order(point: Point) -> tuple[object, ...]:
    recipe = _recipe(point)
    return recipe.batch, json.dumps(_changes(point)), recipe.ranks, recipe.data, recipe.tensor, recipe.cuda_graph


def _alone(point: Point, points: list[Point]) -> Point | None:
    """The same on one rank; None where that was not measured."""
    batch, changes = _recipe(point).batch, _changes(point)
    found = [
        other
        for other in points
        if _recipe(other).ranks == 1 and _recipe(other).batch == batch and _changes(other) == changes
    ]
    return min(found, key=lambda other: other.ratio.mean, default=None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of a study")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    sys.stdout.writelines(f"{line}\n" for line in lines(Front.of(Store.open(asked.runs / asked.name).results())))
