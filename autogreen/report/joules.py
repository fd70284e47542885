"""Where the joules go, layer by layer, before and after: shares of the time of a profiled call, times measured joules.

No counter tells the joules of a layer, but a profile shows its time. Multiplied, power counts as the same throughout a
call, which it is not quite: it is an attribution, and the page says so.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autogreen.front import Front
from autogreen.point import Point
from autogreen.report.markup import Html, folded, joined, meter_bar, table, tag
from autogreen.wording import quantity

MOST = 15  # layers of the first table; the others stand together in one line
UNSEEN = "not seen alone"


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Joules per item of one program. layers: by name; None where the profile does not show the layer alone, so that
    its joules are among the rest. rest_j: what no layer took alone."""

    layers: Mapping[str, float | None]
    rest_j: float

    @classmethod
    def of(cls, point: Point) -> "Spent | None":
        """None where no layer's time is known."""
        energy_j, known = point.energy_per_item_j.mean, point.evaluation.layer_work
        shares = {name: work.time_share for name, work in known.items()}
        seen = math.fsum(share for share in shares.values() if share is not None)
        if seen == 0:
            return None
        return cls(
            layers={name: None if share is None else share * energy_j for name, share in shares.items()},
            rest_j=max(0.0, 1.0 - seen) * energy_j,
        )


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table, joules per item; None: not seen alone."""

    name: str
    before_j: float | None
    after_j: float | None

    @property
    def most_j(self) -> float:
        return max(self.before_j or 0.0, self.after_j or 0.0)


def where(front: Front, after: Point) -> Html:
    """The baseline beside one member."""
    before, now = Spent.of(front.baseline), Spent.of(after)
    if before is None or now is None:
        missing = "the baseline" if before is None else "the policy"
        return tag(
            "p",
            f"Not known: no layer's time was seen in a profile of {missing}. Either its engine or its compiled code "
            "does not tell layers, or the study is older than this table: begin it anew with ",
            tag("code", "--fresh"),
            " to have them.",
        )
    lines = sorted(_lines(before, now), key=lambda line: -line.most_j)
    first, others = (lines, []) if len(lines) <= MOST + 1 else (lines[:MOST], lines[MOST:])
    together = [_sum(f"{len(others)} other layers", others)] if others else []
    bars = [*first, *together, Line(name="everything else", before_j=before.rest_j, after_j=now.rest_j)]
    total = Line(name="all", before_j=front.baseline.energy_per_item_j.mean, after_j=after.energy_per_item_j.mean)
    scale_j, total_j = max(line.most_j for line in bars), front.baseline.energy_per_item_j.mean

    def rows(shown: list[Line]) -> list[tuple[str | Html, ...]]:
        return [_row(line, scale_j, total_j) for line in shown]

    heads = ("layer", f"J per {front.results.item}, {front.results.tier}", "before", "after", "change")
    sums = [(total.name, Html(""), *_figures(total, total_j))]
    every = folded(f"All {len(lines)} layers", table(heads, rows(lines), cls="joules")) if others else None
    return joined((table(heads, [*rows(bars), *sums], cls="joules"), every))


def _lines(before: Spent, now: Spent) -> list[Line]:
    """A layer that is gone takes nothing."""
    names = {**before.layers, **now.layers}
    return [Line(name=name, before_j=before.layers.get(name, 0.0), after_j=now.layers.get(name, 0.0)) for name in names]


def _sum(name: str, lines: list[Line]) -> Line:
    return Line(
        name=name,
        before_j=math.fsum(line.before_j or 0.0 for line in lines),
        after_j=math.fsum(line.after_j or 0.0 for line in lines),
    )


def _row(line: Line, scale_j: float, total_j: float) -> tuple[str | Html, ...]:
    bars = (
        meter_bar((line.before_j or 0.0) / scale_j, "before"),
        meter_bar((line.after_j or 0.0) / scale_j, "after"),
    )
    return line.name, joined(bars), *_figures(line, total_j)


def _figures(line: Line, total_j: float) -> tuple[str, str, str]:
    before, after = (UNSEEN if joules is None else quantity(joules, "J") for joules in (line.before_j, line.after_j))
    if line.before_j is None or line.after_j is None:
        return before, after, ""
    change = f"{100 * (line.after_j - line.before_j) / total_j:+.1f} % of all"
    return before, after, change.replace("-", "−")
