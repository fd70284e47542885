"""The page: its sections in the order in which they are read."""

from pathlib import Path

from autogreen import files
from autogreen.front import Front
from autogreen.picture import Picture, heights, title
from autogreen.point import Point
from autogreen.report import origin
from autogreen.report.joules import where
from autogreen.report.layers import heat_map
from autogreen.report.markup import Html, joined, tag
from autogreen.report.members import in_short, members, references
from autogreen.report.style import CSS

SHOWN = 48  # members on the page: three maps; of more, those proven distinct and those whose place is least certain
WIDE, NARROW = (860, 520), (400, 470)  # pixels of the picture on a desk, on a phone


def html(front: Front) -> str:
    """The report of a front: one file, without scripts, that asks no address outside."""
    heading, under = title(front)
    knee = front.pick("knee") if front.members else None
    held = {point.id for point in front.finalists(SHOWN)}
    shown = tuple(point for point in front.members if point.id in held)
    return page(
        heading,
        tag("header", tag("h1", heading), tag("p", under)),
        in_short(front, knee),
        *(tag("p", said, cls="warning") for said in front.verdicts()),
        *(_found(front, shown, knee) if knee else ()),
        _section("What the search cost", origin.bill(front, knee)),
        _section("Compared with", references(front)),
        _section("Hardware", origin.hardware(front)),
        _section("Method", origin.method(front)),
        _section("Warnings", origin.warnings(front, shown)),
        _section("How to have it again", origin.again(front, shown, knee)),
    )


def write(front: Front, path: Path) -> None:
    """Write the report; a reader never sees half of it.

    Raises:
        ConfigError: the file cannot be written.
    """
    files.write_page(html(front), path)


def page(heading: str, *content: Html) -> str:
    """A document of this look. Its policy lets a browser run no script and ask no address, whatever stands in it."""
    head = tag(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"),
        tag("title", heading),
        tag("style", Html(CSS)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', *content), lang='en')}\n"


def picture(drawn: Picture) -> Html:
    """Twice: for a desk and for a phone, where the larger one could not be read."""
    wide, narrow = (Html(drawn.svg(*size, headed=False)) for size in (WIDE, NARROW))
    return tag("figure", tag("div", wide, cls="wide"), tag("div", narrow, cls="narrow"))


def _found(front: Front, shown: tuple[Point, ...], knee: Point) -> tuple[Html, ...]:
    how = (
        "Down and to the left is better: less energy, and less quality lost or a sooner answer. Figures beside marks "
        "are energy over the baseline's."
    )
    drawn = (picture(Picture.of(front, height)) for height in heights(front).values())
    return (
        _section("The front", tag("p", how, cls="soft"), *drawn, members(front, shown, knee)),
        _section(
            "What each policy does to each layer",
            tag("p", "A row is a layer, a column a member of the front by its number above.", cls="soft"),
            heat_map(front.results.baseline, shown, knee),
        ),
        _section(
            "Where the joules go, before and after",
            tag(
                "p",
                f"The baseline (grey) and the knee (blue). Time share of a profile, times the joules per "
                f"{front.results.item} ({front.results.tier}): no counter tells the joules of a layer.",
                cls="soft",
            ),
            where(front, knee),
        ),
    )


def _section(heading: str, *content: Html) -> Html:
    return tag("section", tag("h2", heading), joined(content))
