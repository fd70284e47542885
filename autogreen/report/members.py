"""The front in words and figures: in short, its members, and what they are compared with."""

from collections.abc import Sequence

from autogreen.front import Front
from autogreen.point import Point
from autogreen.report.markup import Html, folded, joined, table, tag
from autogreen.wording import about, latency, percent, plain_spread, quantity, spread, times

MANY = 12  # members beyond which a table of all of them is folded


def in_short(front: Front, knee: Point | None) -> Html:
    """What a reader takes away in half a minute."""
    results = front.results
    tried = f"{len(results.trials)} {_plural(len(results.trials), 'policy', 'policies')}"
    if knee is None:
        return tag(
            "p", f"{tried} tried, and none of them is both measured and feasible: the front is empty.", cls="lead"
        )
    cheapest, after = front.members[0], front.paid_back_after(knee)
    lead = (
        f"The knee of the front takes {_less(knee)} the uncompressed model in its best runtime ({results.tier}), and "
        f"loses {_lost(knee)}. It is: {knee.words}."
    )
    tiles = (
        (
            f"Energy per {results.item}, {results.tier}",
            f"{knee.ratio.mean:.2f}×",
            f"of the baseline's: {spread(knee.energy_per_item_j, 'J')}, was {_joules(front.baseline)}",
        ),
        ("Quality lost", *_loss(knee)),
        (
            "The front",
            f"{len(front.members)} {_plural(len(front.members), 'member', 'members')}",
            f"of {tried} tried, {len(front.steps)} proven distinct; the cheapest takes {cheapest.ratio.mean:.2f}×",
        ),
        (
            f"The search took, {results.tier}",
            quantity(results.bill.energy_j, "J"),
            "the knee saves nothing, so it is never paid back"
            if after is None
            else f"paid back after {about(after)} {results.item}s",
        ),
    )
    told = (tag("div", tag("dt", head), tag("dd", tag("b", figure), under)) for head, figure, under in tiles)
    return joined((tag("p", lead, cls="lead"), tag("dl", *told, cls="tiles")))


def members(front: Front, shown: Sequence[Point], knee: Point) -> Html:
    """The members that the page shows, cheapest first. Where they are many, those proven distinct and the knee stand
    open, and all of them are folded."""
    steps = {point.id for point in front.steps}
    rows = []
    for number, point in enumerate(shown, 1):
        marks = ("● " if point.id in steps else "○ ") + f"{percent(point.probability or 0.0)}"
        name = joined(
            (f"{number} ", tag("code", point.name), " knee" if point.id == knee.id else None, _does(point.words))
        )
        rows.append((point.id, (name, marks, *_figures(point))))
    heads = ("policy", "likely", *_heads(front))
    whole = table(heads, [row for _, row in rows], cls="members")
    few = table(heads, [row for name, row in rows if name in {*steps, knee.id}], cls="members")
    left = len(front.members) - len(shown)
    note = f" {left} more members, which these stand for, are in the JSON of the front." if left else ""
    signs = (
        "Cheapest first. ● proven distinct from every other ●, ○ not; likely: to be on the true front, as far as the "
        f"intervals tell. Ranges are 95 % intervals.{note}"
    )
    shown_now = (whole,) if len(rows) <= MANY else (few, folded(f"All {len(rows)} members on this page", whole))
    return joined((*shown_now, tag("p", signs, cls="soft")))


def references(front: Front) -> Html:
    """Baseline, plain use and controls, and what of them beats members."""
    controls = {point.name for point in front.controls}
    rows = [
        (
            joined((point.name, _does(point.words))),
            "control" if point.name in controls else "reference",
            *_figures(point),
        )
        for point in front.references
    ]
    for name, found in front.results.controls.items():
        if found.measurement is None:
            loss = "unknown" if found.loss is None else plain_spread(found.loss)
            lost = _cell(loss, f"quality {found.quality.mean:.4f}")
            why = "its quality was hopeless, so its energy was not measured"
            rows.append((joined((name, _does(why))), "control", lost, Html(""), Html("")))
    beaten = front.verdicts()
    fine = "" if beaten or not front.members else "None of them beats a member of the front beyond the noise. "
    told = (
        f"{fine}The baseline is the uncompressed model in its best runtime, plain use the same run eagerly. Controls "
        "show what the same training brings without compression, and what a smaller network does that was trained from "
        "scratch."
    )
    verdicts = (tag("p", said, cls="warning") for said in beaten)
    return joined((*verdicts, table(("", "", *_heads(front)), rows, cls="members"), tag("p", told, cls="soft")))


def _heads(front: Front) -> tuple[str, ...]:
    return ("quality lost", f"energy per {front.results.item}, {front.results.tier}", "latency and size")


def _figures(point: Point) -> tuple[Html, ...]:
    size, over, possible = point.evaluation.size_bytes, point.test_loss_over_seeds, point.range_per_item_j
    estimated = point.measurement.tier == "estimated"
    above = point.times_above_floor
    return (
        _cell(
            plain_spread(point.loss),
            f"test: {plain_spread(point.published.test_loss)}" if point.published else None,
            f"test, {1 + len(point.seeds)} trainings: {plain_spread(over)}" if over else None,
            f"quality {point.quality.mean:.4f}",
        ),
        _cell(
            f"{point.ratio.mean:.3f}× the baseline's",
            spread(point.energy_per_item_j, "J"),
            f"possible: {quantity(possible.low, 'J')} to {quantity(possible.high, 'J')}" if estimated else None,
            None if above is None else f"{times(above)} its floor",
        ),
        _cell(latency(point.measurement), None if size is None else quantity(size, "B")),
    )


def _cell(first: str, *under: str | None) -> Html:
    return joined((first, *(tag("small", said) for said in under if said is not None)))


def _does(words: str) -> Html:
    return tag("small", words, cls="does")


def _less(point: Point) -> str:
    """No more is said than the interval bears out."""
    if point.ratio.low <= 1 <= point.ratio.high:
        return "as much energy, as far as its interval tells, as"
    return f"{percent(abs(1 - point.ratio.mean))} {'less' if point.ratio.mean < 1 else 'more'} energy than"


def _lost(point: Point) -> str:
    loss = point.published.test_loss if point.published else point.loss
    if loss.low <= 0:
        return f"no quality that its examples show (at most {loss.high:.4f})" if loss.high > 0 else "no quality"
    return f"{loss.mean:.4f} of quality"


def _loss(point: Point) -> tuple[str, str]:
    if point.published:
        test = point.published.test_loss
        return f"{test.mean:.4f}".replace("-", "−"), f"on test data, 95 %: {plain_spread(test)}"
    return f"{point.loss.mean:.4f}".replace("-", "−"), f"on validation data, 95 %: {plain_spread(point.loss)}"


def _joules(point: Point) -> str:
    return quantity(point.energy_per_item_j.mean, "J")


def _plural(count: int, one: str, more: str) -> str:
    return one if count == 1 else more
