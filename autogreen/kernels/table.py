"""Kernels as a table for the terminal: below 1 saves."""

from typing import TYPE_CHECKING

from autogreen.kernels import Cell, Kernels
from autogreen.techniques.quantization.schemes import SCHEMES

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {"saves": "green", "costs": "red", "same": "", "refused": "dim"}


def heading(kernels: Kernels) -> str:
    """What the figures are, in one line."""
    return f"{kernels.machine}: energy over the plain {kernels.plain} layer, {kernels.tier}"


def reading(kernels: Kernels) -> str:
    """How to read them."""
    estimated = " Estimated from processor time, not measured." if kernels.tier == "estimated" else ""
    return (
        "Columns are rows of the matrix product: examples, tokens or positions at once. Below 1 saves; what is "
        f"coloured lies beyond its 95 % interval, - has no figure.{estimated} Energy of: {kernels.boundary}. "
        f"torch {kernels.torch}, driver {kernels.driver}."
    )


def lines(kernels: Kernels) -> list[tuple[str, str, dict[int, Cell]]]:
    """Shape, scheme, and its cells by rows; shapes in order, schemes from many bits to few."""
    found: dict[tuple[str, str], dict[int, Cell]] = {}
    for cell in sorted(kernels.cells, key=lambda cell: (cell.case.shape, list(SCHEMES).index(cell.case.scheme))):
        found.setdefault((str(cell.case.shape), cell.case.scheme), {})[cell.case.rows] = cell
    return [(shape, scheme, cells) for (shape, scheme), cells in found.items()]


def columns(kernels: Kernels) -> list[int]:
    """Every number of rows that was asked."""
    return sorted({cell.case.rows for cell in kernels.cells})


def figure(cell: Cell, intervals: bool = False) -> str:
    """``0.62``, or ``0.62 (0.60–0.64)``."""
    if cell.ratio is None:
        return "-"
    ends = f" ({cell.ratio.low:.2f}–{cell.ratio.high:.2f})" if intervals else ""
    return f"{cell.ratio.mean:.2f}{ends}"


def table(kernels: Kernels, *, intervals: bool = False) -> "Table":
    """A line for each scheme and shape, a column for each number of rows. It stands between heading and reading: a
    title of its own would be broken to its width."""
    from rich.table import Table
    from rich.text import Text

    shown = Table()
    shown.add_column(Text("layer"), no_wrap=True)
    shown.add_column(Text("scheme"), no_wrap=True)
    rows = columns(kernels)
    for count in rows:
        shown.add_column(Text(str(count)), justify="right", no_wrap=True)
    above = ""
    for shape, scheme, cells in lines(kernels):
        if above and shape != above:
            shown.add_section()
        texts = [
            Text(figure(cells[count], intervals), style=STYLES[cells[count].verdict]) if count in cells else Text("")
            for count in rows
        ]
        shown.add_row(Text("" if shape == above else shape), Text(scheme), *texts)
        above = shape
    return shown


def remarks(kernels: Kernels) -> list[str]:
    """Why cells have no figure, and what may be wrong with those that have one: each said once, with its cells."""
    where: dict[str, list[str]] = {}
    for cell in kernels.cells:
        for text in (f"no figure: {cell.refused}",) if cell.refused else cell.warnings:
            where.setdefault(text, []).append(str(cell.case))
    return [
        f"{', '.join(cases[:4])}{f' and {len(cases) - 4} more' if cases[4:] else ''}: {text}"
        for text, cases in where.items()
    ]
