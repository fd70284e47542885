"""Where the joules go, layer by layer, before and after: shares of the time of a profiled call, times measured joules.

No counter tells the joules of a layer, but a profile shows its time. Multiplied, power counts as the same throughout a
call, which it is not quite: it is an attribution, and the page says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from autogreen.front import Front
from autogreen.point import Point
from autogreen.report.markup import Html, folded, joined, meter_bar, table, tag
from autogreen.wording import quantity

MOST = 15  # layers of the first table; the others stand together in one line
REST = "everything else"


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Joules per item of one program, by layer; `REST` among them: what no layer alone took."""

    joules: Mapping[str, float]

    @classmethod
    def of(cls, point: Point) -> "Spent | None":
        """None where no layer's time is known."""
        energy_j = point.energy_per_item_j.mean
        known = point.evaluation.layer_work.items()
        shares = {name: work.time_share for name, work in known if work.time_share is not None}
        if not shares:
            return None
        rest = max(0.0, 1.0 - sum(shares.values()))
        return cls(joules={name: share * energy_j for name, share in {**shares, REST: rest}.items()})


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
    total_j = front.baseline.energy_per_item_j.mean
    lines = sorted(
        (name for name in {**before.joules, **now.joules} if name != REST), key=lambda n: -_most(n, before, now)
    )
    first, others = (lines, []) if len(lines) <= MOST + 1 else (lines[:MOST], lines[MOST:])
    rows = [(name, *_both(before, now, [name])) for name in first]
    if others:
        rows.append((f"{len(others)} other layers", *_both(before, now, others)))
    rows.append((REST, *_both(before, now, [REST])))
    rows.append(("all", *_both(before, now, list({**before.joules, **now.joules}))))
    scale = max(max(left, right) for _, left, right in rows[:-1])
    unit = f"J per {front.results.item}, {front.results.tier}"
    heads = ("layer", f"before and after ({unit})", "before", "after", "change")
    shown = [_row(*row, scale=scale, total_j=total_j) for row in rows]
    return joined(
        (
            table(heads, shown, cls="joules"),
            folded(
                f"All {len(lines)} layers",
                table(
                    heads,
                    [_row(n, *_both(before, now, [n]), scale=scale, total_j=total_j) for n in lines],
                    cls="joules",
                ),
            )
            if others
            else None,
        )
    )


def _row(
    name: str, before_j: float, after_j: float, *, scale: float, total_j: float
) -> tuple[str, Html, str, str, str]:
    bars = joined((meter_bar(before_j / scale, "before"), meter_bar(after_j / scale, "after")))
    if name == "all":
        bars = Html("")
    change = f"{100 * (after_j - before_j) / total_j:+.1f} % of all".replace("-", "−")
    return name, bars, quantity(before_j, "J"), quantity(after_j, "J"), change


def _both(before: Spent, after: Spent, names: list[str]) -> tuple[float, float]:
    return sum(before.joules.get(name, 0.0) for name in names), sum(after.joules.get(name, 0.0) for name in names)


def _most(name: str, before: Spent, after: Spent) -> float:
    return max(_both(before, after, [name]))
