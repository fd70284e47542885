"""HTML as values: whatever is not known to be HTML is text, and is escaped."""

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is HTML already. Only what is written in this room, or drawn by us, is made one."""


def tag(name: str, *children: str | None, **attributes: str | None) -> Html:
    """``tag("p", "a < b", cls="note")``. None is left out; ``cls`` is ``class``, an underscore a hyphen."""
    told = "".join(
        f' {"class" if key == "cls" else key.replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{told}>{joined(children)}</{name}>")


def joined(children: Iterable[str | None]) -> Html:
    """Children one after another, escaped where they are plain text."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children if child is not None))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], cls: str = "") -> Html:
    """In a box of its own that scrolls where the page is narrower. The first cell of a row is its heading. Cells carry
    their column's heading, for where a phone shows a row as a card."""
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    body = tag(
        "tbody",
        *(
            tag(
                "tr",
                tag("th", first, scope="row"),
                *(tag("td", cell, data_head=head or None) for head, cell in zip(heads[1:], rest, strict=True)),
            )
            for first, *rest in rows
        ),
    )
    return box(tag("table", head, body, cls=cls or None))


def box(content: Html, *, tall: bool = False) -> Html:
    """What may be wider than the page; the keyboard can scroll it too. tall: no higher than the window either."""
    return tag("div", content, cls="tall box" if tall else "box", tabindex="0")


def folded(summary: str, *children: str | None) -> Html:
    """What few readers want, behind a line that opens it; printed open where it was opened."""
    return tag("details", tag("summary", summary), *children)


def meter_bar(share: float, cls: str) -> Html:
    """A bar of that share, from 0 to 1, of the room that it has."""
    return tag("i", cls=f"bar {cls}", style=f"width:{100 * min(max(share, 0.0), 1.0):.1f}%")
