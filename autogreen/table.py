"""The front, and two of them side by side, as tables for the terminal."""

from rich.table import Table
from rich.text import Text

from autogreen.carbon import J_PER_WH
from autogreen.front import Front
from autogreen.point import Point
from autogreen.sides import Sides
from autogreen.wording import latency, plain_spread, quantity, spread, times


def front_table(front: Front) -> Table:
    """Members, then what they are compared with. ● proven distinct from the other ●, ○ not; and how likely it is on the
    true front. floor: times the least energy that the work can cost here, where that is known."""
    results, estimated = front.results, front.results.tier == "estimated"
    table = Table(title=Text(f"{results.study}: {results.task}, energy {results.tier}"), caption=Text(_bill(front)))
    energy = f"energy per {results.item}, {results.tier}" + (" (95 %; possible)" if estimated else " (95 %)")
    floor = ("floor",) if any(point.times_above_floor for point in (*front.members, *front.references)) else ()
    for head in ("", "policy", "quality", "loss (95 %)", energy, "ratio", *floor, "latency", "size", "what it does"):
        table.add_column(Text(head), no_wrap=head in ("", "policy"), overflow="fold")

    def add(mark: str, point: Point) -> None:
        joules, size = spread(point.energy_per_item_j, "J"), point.evaluation.size_bytes
        if estimated:
            possible = point.range_per_item_j
            joules += f"\n{quantity(possible.low, 'J')} to {quantity(possible.high, 'J')}"
        loss = plain_spread(point.loss)
        if over := point.test_loss_over_seeds:
            loss += f"\ntest, {1 + len(point.seeds)} trainings: {plain_spread(over)}"
        cells = (
            mark,
            point.name,
            f"{point.quality.mean:.4f}",
            loss,
            joules,
            f"{point.ratio.mean:.3f}",
            *("" if point.times_above_floor is None else times(point.times_above_floor) for _ in floor),
            latency(point.measurement),
            "" if size is None else quantity(size, "B"),
            point.words,
        )
        if point.probability is not None:
            cells = (f"{mark} {point.probability:.0%}", *cells[1:])
        table.add_row(*(Text(cell) for cell in cells))

    steps = {point.id for point in front.steps}
    for point in front.members:
        add("●" if point.id in steps else "○", point)
    table.add_section()
    for point in front.references:
        add("", point)
    return table


def sides_table(sides: Sides) -> Table:
    """Every policy of either front at its place in both studies. ● on that study's front, ○ measured but not on it."""
    a, b = sides.names
    results = sides.a.results
    table = Table(title=Text(f"{a} and {b}: {results.task}, energy {results.tier} over the baseline of {a}"))
    for head in ("policy", f"loss in {a}", "energy", f"loss in {b}", "energy", "beaten by", "what it does"):
        table.add_column(Text(head), no_wrap=head == "policy", overflow="fold")
    for line in sides.lines:
        cells = (
            line.id,
            *_placed(line.a, line.on_a),
            *_placed(line.b, line.on_b),
            ", ".join(line.beaten_by[:3]) + (" …" if line.beaten_by[3:] else ""),
            line.words,
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _placed(point: Point | None, on_front: bool) -> tuple[str, str]:
    if point is None:
        return "", ""
    return plain_spread(point.loss), f"{'●' if on_front else '○'} {plain_spread(point.ratio, 3)}"


def _bill(front: Front) -> str:
    results, bill, paid = front.results, front.results.bill, front.break_even_items
    spent = f"{quantity(bill.energy_j, 'J')} = {quantity(bill.energy_j / J_PER_WH, 'Wh')}"
    if results.carbon is not None:
        spent += f" = {quantity(results.carbon.emission_g(bill.energy_j), 'gCO2e')} at {results.carbon.words}"
    back = "nothing saves, so it is never paid back" if paid is None else f"paid back after {paid:,.0f}"
    items = "" if paid is None else f" {results.item}s"
    stopped = f"{front.stopped_words} " if front.stopped_words else ""
    repeated = f"{words} " if (words := front.repeatability.words) else ""
    known = "; ".join(filter(None, (results.tier, bill.words)))
    return (
        f"{len(front.members)} on the front, {len(front.steps)} of them (●) beyond each other's intervals. "
        f"The search spent {spent} ({known}): {back}{items}. {stopped}{repeated}Energy of: {results.boundary}."
    )
