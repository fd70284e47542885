"""The page of two fronts side by side."""

from pathlib import Path

from autogreen import files
from autogreen.picture import Picture, Series, title
from autogreen.point import Point
from autogreen.report.markup import Html, joined, table, tag
from autogreen.report.page import page, picture
from autogreen.sides import Line, Sides
from autogreen.wording import plain_spread

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's, as everywhere; the marks differ in shape as well


def html(sides: Sides) -> str:
    """One file, without scripts, that asks no address outside."""
    a, b = sides.names
    heading = f"{a} and {b}, side by side"
    signs = "● on that study's front, ○ measured there but not on it. Ranges are 95 % intervals. Cheapest first."
    heads = ("policy", f"in {a}", f"in {b}", "beaten by")
    return page(
        heading,
        tag("header", tag("h1", heading), tag("p", f"{sides.a.results.task} · {title(sides.a)[1]}")),
        tag("p", sides.summary(), cls="lead"),
        *(tag("p", said, cls="warning") for said in sides.warnings()),
        picture(drawing(sides)),
        tag("h2", "Policies of either front"),
        table(heads, [_row(line) for line in sides.lines], cls="members"),
        tag("p", signs, cls="soft"),
    )


def write_sides(sides: Sides, path: Path) -> None:
    """Write the page; a reader never sees half of it.

    Raises:
        ConfigError: the file cannot be written.
    """
    files.write_page(html(sides), path)


def drawing(sides: Sides) -> Picture:
    """Both fronts on one pair of axes, in joules of a's baseline; what the other front beats is open."""
    (a, b), results = sides.names, sides.a.results
    beaten = {line.id for line in sides.lines if line.beaten_by}
    kinds = (
        Series("baseline", "diamond", "#000000", (sides.a.baseline,)),
        Series(f"{b}, beaten by {a}", "triangle-up-open", ORANGE, _those(sides.theirs, beaten, True)),
        Series(f"{a}, beaten by {b}", "circle-open", BLUE, _those(sides.ours, beaten, True)),
        Series(b, "triangle-up", ORANGE, _those(sides.theirs, beaten, False)),
        Series(a, "circle", BLUE, _those(sides.ours, beaten, False)),
    )
    return Picture(
        heading=f"{a} and {b}",
        under=title(sides.a)[1],
        kinds=tuple(kind for kind in kinds if kind.points),
        shown=(*sides.ours, *sides.theirs, sides.a.baseline),
        labelled=(sides.a.baseline,),
        energy=f"energy per {results.item} on the scale of {a}, {results.tier}",
    )


def _those(points: tuple[Point, ...], beaten: set[str], wanted: bool) -> tuple[Point, ...]:
    return tuple(point for point in points if (point.id in beaten) == wanted)


def _row(line: Line) -> tuple[Html, Html, Html, Html]:
    name = joined((tag("code", line.id), tag("small", line.words, cls="does")))
    by = joined(tag("div", tag("code", other)) for other in line.beaten_by[:3])
    more = tag("small", f"and {len(line.beaten_by) - 3} more") if line.beaten_by[3:] else Html("")
    return name, _placed(line.a, line.on_a), _placed(line.b, line.on_b), joined((by, more))


def _placed(point: Point | None, on_front: bool) -> Html:
    if point is None:
        return Html("")
    mark = "●" if on_front else "○"
    return joined(
        (f"{mark} {plain_spread(point.ratio, 3)} × the baseline's", tag("small", f"loss {plain_spread(point.loss)}"))
    )
