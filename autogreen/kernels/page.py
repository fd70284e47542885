"""Kernels as a heat map that works offline: one file, plotly.js inside."""

import math
from html import escape
from pathlib import Path
from textwrap import wrap

from autogreen import files
from autogreen.kernels import Cell, Kernels
from autogreen.kernels.table import columns, figure, heading, lines, reading, remarks
from autogreen.wording import spread

# Blue saves, red costs, white is 1: told apart by eyes without colour vision too (ColorBrewer's RdBu).
COLOURS = ((0.0, "#2166ac"), (0.25, "#92c5de"), (0.5, "#f7f7f7"), (0.75, "#f4a582"), (1.0, "#b2182b"))
AXIS = {"type": "category", "fixedrange": True, "showgrid": False}
FAR = 3.0  # octaves from 1 at which the colours end
LINE_PX, FRAME_PX = 30, 190  # height of a line, and of all around


def html(kernels: Kernels) -> str:
    """One self-contained page of about 5 MB, plotly.js included; no address outside is asked."""
    import plotly.graph_objects as go

    shown, counts = lines(kernels), columns(kernels)
    cells = [[by_rows.get(count) for count in counts] for _, _, by_rows in shown]
    names = [escape(f"{shape}  {scheme}", quote=False) for shape, scheme, _ in shown]
    drawing = go.Figure(
        data=go.Heatmap(
            x=[str(count) for count in counts],
            y=names,
            z=[[None if cell is None else _octaves(cell) for cell in line] for line in cells],
            text=[["" if cell is None else figure(cell) for cell in line] for line in cells],
            customdata=[[_hover(cell) for cell in line] for line in cells],
            texttemplate="%{text}",
            hovertemplate="%{customdata}<extra></extra>",
            colorscale=[list(stop) for stop in COLOURS],
            zmid=0,
            zmin=-FAR,
            zmax=FAR,
            xgap=2,
            ygap=2,
            colorbar={
                "title": {"text": "energy over plain"},
                "tickvals": [-3, -2, -1, 0, 1, 2, 3],
                "ticktext": ["⅛ or less", "¼", "½", "1", "2", "4", "8 or more"],
            },
        ),
        layout=go.Layout(
            template="plotly_white",
            height=FRAME_PX + LINE_PX * len(names),
            margin={"t": 30, "l": 20, "r": 20},
            plot_bgcolor="#cccccc",  # what has no figure is no white 1
            xaxis={"title": {"text": "rows of the matrix product"}, **AXIS},
            yaxis={"autorange": "reversed", "automargin": True, **AXIS},
        ),
    ).to_html(
        full_html=False,
        include_plotlyjs=True,
        include_mathjax=False,
        div_id="kernels",
        config={"responsive": True, "displaylogo": False},
    )
    notes = "".join(f"<li>{escape(remark)}</li>" for remark in remarks(kernels))
    return PAGE.format(
        heading=escape(heading(kernels)), reading=escape(reading(kernels)), drawing=drawing, notes=f"<ul>{notes}</ul>"
    )


def write_page(kernels: Kernels, path: Path) -> None:
    """Write the page; a reader never sees half of it.

    Raises:
        ConfigError: the file cannot be written.
    """
    files.write_page(html(kernels), path)


def _octaves(cell: Cell) -> float | None:
    return None if cell.ratio is None else math.log2(cell.ratio.mean)


def _hover(cell: Cell | None) -> str:
    """Lines about one cell, escaped."""
    if cell is None:
        return "not asked"
    said = [str(cell.case)]
    if cell.ratio is None or cell.row_j is None or cell.plain_row_j is None:
        said.append(f"no figure: {cell.refused}")
    else:
        said += [
            f"{figure(cell, intervals=True)} times the plain layer",
            f"{spread(cell.row_j, 'J')} per row; plain {spread(cell.plain_row_j, 'J')}",
            f"kernels: {', '.join(cell.kernels)}; plain: {', '.join(cell.plain_kernels)}",
            *cell.warnings,
        ]
    return "<br>".join(escape(part, quote=False) for line in said for part in wrap(line, 90))


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>
html {{ overflow-y: scroll }}
body {{ margin: 0; padding: 0.6em; font: 16px/1.4 system-ui, sans-serif; color: #222; background: #fff }}
h1 {{ font-size: 1.25em; margin: 0 }}
p, li {{ margin: 0.4em 0; max-width: 60em; overflow-wrap: anywhere }}
#kernels {{ width: 100% }}
</style>
</head>
<body>
<h1>{heading}</h1>
<p>{reading}</p>
{drawing}
{notes}
</body>
</html>
"""
