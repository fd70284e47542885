"""What each member of a front does to each layer: a map of layers × members.

    shade    how much of the layer's multiply-accumulates is gone
    letters  the scheme that it computes in
    ×        the layer is gone as a whole

Told by lightness and letters, never by hue.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from autogreen.evaluation import Evaluation
from autogreen.point import Point
from autogreen.report.markup import Html, box, joined, tag
from autogreen.wording import percent

COLUMNS = 16  # of one map: as wide as a printed page
LETTERS = {
    "bf16": "b",
    "fp16": "h",
    "fp8": "f8",
    "w8a8": "8d",
    "w8a8_static": "8",
    "w8a16": "8w",
    "w4a16": "4w",
}
SHADES = (0.01, 0.25, 0.5, 0.75, 0.9)  # of what is gone: from here on the next darker one


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is done to one layer. gone: of its multiply-accumulates, from 0 to 1. scheme: with what is unusual in it, or
    nothing. sparse: in words."""

    gone: float = 0.0
    words: str = ""
    scheme: str = ""
    sparse: str = ""

    @property
    def shade(self) -> int:
        return sum(self.gone >= least for least in SHADES)

    @property
    def letters(self) -> str:
        if self.words == REMOVED:
            return "×"
        scheme = self.scheme.partition("+")[0]
        return LETTERS.get(scheme, scheme[:2]) + ("*" if self.sparse else "")

    @property
    def told(self) -> str:
        return ", ".join(filter(None, (self.words, self.scheme, self.sparse)))


REMOVED = "removed"
BREAK = Html("<wbr>")  # where a long name may go on in the next line


def names(baseline: Evaluation, members: Sequence[Point]) -> list[str]:
    """All layers, in the order of the model; of a study that kept none, those that policies name."""
    found = dict.fromkeys((*baseline.layer_work, *baseline.layers))
    if not found:
        found = dict.fromkeys(name for point in members for name in _named(point.evaluation.effect.parts))
    return list(found)


def cells(point: Point, baseline: Evaluation) -> dict[str, Cell]:
    """By layer, where something is done."""
    parts, own, before = point.evaluation.effect.parts, point.evaluation.layer_work, baseline.layer_work
    pruned: Mapping[str, Any] = parts.get("pruning", {})
    rest = parts.get("precision", {}).get("dtype")  # of all that no scheme names
    schemes: Mapping[str, str] = {**(dict.fromkeys(own, rest) if rest else {}), **parts.get("quantization", {})}
    sparse = {
        name: f"{percent(said['sparsity'])} of its weights are 0" for name, said in pruned.get("weight", {}).items()
    }
    sparse |= dict.fromkeys(pruned.get("n:m", {}), "2 of 4 weights are 0")
    gone: dict[str, tuple[float, str]] = {}
    if own and before:
        share = _items(baseline) / _items(point.evaluation)
        for name, work in before.items():
            if name not in own:
                gone[name] = (1.0, REMOVED)
            elif (left := own[name].macs / work.macs * share) < 1 - SHADES[0]:
                gone[name] = (1 - left, f"{own[name].width} of {work.width} wide, {percent(left)} of its work left")
    else:  # all that is known is what the policy names: what shrinks along with that is not
        for structure in ("channel", "neuron", "head"):
            for name, said in pruned.get(structure, {}).items():
                gone[name] = (1 - said["width"] / said["of"], f"{said['width']} of {said['of']} wide")
    found = {}
    for name in dict.fromkeys((*gone, *schemes, *sparse)):
        share_gone, words = gone.get(name, (0.0, ""))
        found[name] = Cell(gone=share_gone, words=words, scheme=schemes.get(name, ""), sparse=sparse.get(name, ""))
    return found


def heat_map(baseline: Evaluation, members: Sequence[Point], knee: Point) -> Html:
    """One map for every 16 members, and what its signs mean."""
    rows, columns = names(baseline, members), [cells(point, baseline) for point in members]
    if not rows:
        return tag("p", "The engine of this study does not tell layers, and no policy names one.")
    numbered = list(zip(range(1, len(members) + 1), members, columns, strict=True))
    maps = [_map(rows, numbered[start : start + COLUMNS], knee) for start in range(0, len(numbered), COLUMNS)]
    return joined((_legend(columns), *maps))


def _map(rows: Sequence[str], columns: Sequence[tuple[int, Point, Mapping[str, Cell]]], knee: Point) -> Html:
    heads = (
        tag(
            "th",
            str(number),
            tag("small", f"{point.ratio.mean:.2f}"),
            scope="col",
            title=point.id,
            cls=_marked(point, knee),
        )
        for number, point, _ in columns
    )
    lines, before = [], ""
    for name in rows:
        shared = _shared(before, name)
        known = joined((tag("span", name[:shared], cls="known"), BREAK)) if shared else None
        heading = tag("th", known, name[shared:], scope="row")
        found = (_cell(by_layer.get(name)) for _, _, by_layer in columns)
        lines.append(tag("tr", heading, *found, cls=None if shared else "first"))
        before = name
    corner = tag("th", "layer", tag("small", "energy over the baseline's"), scope="col")
    return box(tag("table", tag("thead", tag("tr", corner, *heads)), tag("tbody", *lines), cls="map"), tall=True)


def _cell(cell: Cell | None) -> Html:
    if cell is None:
        return Html("<td></td>")
    return tag("td", cell.letters, cls=f"s{cell.shade}" if cell.shade else None, title=cell.told)


def _legend(columns: Sequence[Mapping[str, Cell]]) -> Html:
    schemes = dict.fromkeys(cell.scheme.partition("+")[0] for column in columns for cell in column.values())
    schemes.pop("", None)
    ends = (*(f"{100 * least:.0f}" for least in SHADES), "100")
    shades = [
        tag("span", tag("b", cls=f"s{number}"), f" {low}–{high} %")
        for number, (low, high) in enumerate(pairwise(ends), 1)
    ]
    letters = [tag("span", tag("b", LETTERS.get(name, name[:2])), f" {name}") for name in schemes]
    if any(cell.words == REMOVED for column in columns for cell in column.values()):
        letters.append(tag("span", tag("b", "×"), " removed"))
    if any(cell.sparse for column in columns for cell in column.values()):
        letters.append(tag("span", tag("b", "*"), " weights that are 0"))
    computes = (("Computes in: ", *letters, " ") if letters else ()) + ("Empty: as it was.",)
    return joined(
        (
            tag("p", "Work of the layer that is gone (multiply-accumulates): ", *shades, cls="legend"),
            tag("p", *computes, cls="legend"),
        )
    )


def _shared(before: str, name: str) -> int:
    """Letters of whole parts that a name has in common with the one above it."""
    length = 0
    for part, other in zip(name.split(".")[:-1], before.split(".")[:-1], strict=False):
        if part != other:
            break
        length += len(part) + 1
    return length


def _marked(point: Point, knee: Point) -> str | None:
    return "knee" if point.id == knee.id else None


def _named(parts: Mapping[str, Any]) -> Iterator[str]:
    yield from parts.get("quantization", {})
    for structure, said in parts.get("pruning", {}).items():
        if structure != "global":
            yield from said


def _items(evaluation: Evaluation) -> int:
    return evaluation.measurement.items_per_call if evaluation.measurement else 1
