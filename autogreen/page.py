"""The front as an interactive page that works offline: one file, plotly.js inside."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from autogreen import files
from autogreen.carbon import J_PER_WH
from autogreen.front import Front
from autogreen.picture import CROWD, Height, Series, heights, series, shown, title, window
from autogreen.point import Point
from autogreen.wording import latency, plain_spread, quantity, spread, times


def html(front: Front) -> str:
    """One self-contained page of about 5 MB, plotly.js included; no address outside is asked."""
    import plotly.graph_objects as go

    heading, under = title(front)
    drawings: list[str] = []
    for name, height in heights(front).items():
        figure = go.Figure(layout=_layout(front, height))
        for kind in series(front):
            figure.add_trace(go.Scatter(_marks(front, kind, height)))
        drawings.append(
            figure.to_html(
                full_html=False,
                include_plotlyjs=not drawings,
                include_mathjax=False,
                div_id=name,
                config={"responsive": True, "displaylogo": False},
            )
        )
    verdicts = "".join(f"<p><strong>{escape(said)}</strong></p>" for said in front.verdicts())
    return PAGE.format(
        heading=escape(heading), under=escape(under), drawing="\n".join(drawings), note=_note(front) + verdicts
    )


def _marks(front: Front, kind: Series, height: Height) -> dict[str, Any]:
    """A trace; where the marks are many, numbers go as they lie in memory, and each says no more than what it is."""
    energies, up = [p.energy_per_item_j for p in kind.points], [height.of(p) for p in kind.points]
    marks: dict[str, Any] = {
        "name": kind.label,
        "mode": "markers",
        "x": [energy.mean for energy in energies],
        "y": [value.mean for value in up],
        "error_x": _bars(energies),
        "error_y": _bars(up),
        "marker": {"symbol": kind.symbol, "color": kind.colour, "size": 11, "line": {"width": 2}},
    }
    if len(kind.points) <= CROWD:
        text = ["<br>".join(escape(line, quote=False) for line in hover(front, point)) for point in kind.points]
        return {**marks, "text": text, "hoverinfo": "text"}
    import numpy as np

    for held, key in ((marks, "x"), (marks, "y"), *((marks[bars], end) for bars in _BARS for end in _ENDS)):
        held[key] = np.array(held[key], dtype=np.float32)
    told = f"%{{text}}<br>%{{x:.4g}} J per {escape(front.results.item)}, {height.label} %{{y:.4g}}<extra></extra>"
    return {**marks, "text": [escape(point.name, quote=False) for point in kind.points], "hovertemplate": told}


_BARS, _ENDS = ("error_x", "error_y"), ("array", "arrayminus")


def write_page(front: Front, path: Path) -> None:
    """Write the page; a reader never sees half of it.

    Raises:
        ConfigError: the file cannot be written.
    """
    files.write_page(html(front), path)


def hover(front: Front, point: Point) -> list[str]:
    """Lines about one mark, as plain text."""
    item, tier = front.results.item, front.results.tier
    lines = [
        point.name,
        point.words,
        f"{spread(point.energy_per_item_j, 'J')} per {item}, {tier}; {point.ratio.mean:.3f} of the baseline's",
    ]
    if tier == "estimated":
        possible = point.range_per_item_j
        lines.append(f"the truth may lie from {quantity(possible.low, 'J')} to {quantity(possible.high, 'J')}")
    lines.append(_more(front, point))
    if point.times_above_floor is not None:
        lines.append(f"{times(point.times_above_floor)} the least energy that this work can cost here")
    lines.append(f"quality {point.quality.mean:.4f}, loss {plain_spread(point.loss)}")
    if point.published:
        lines.append(
            f"on test data: quality {point.published.test.mean:.4f}, loss {plain_spread(point.published.test_loss)}"
        )
    lines.append(f"{latency(point.measurement)} per {'call' if point.measurement.served is None else 'request'}")
    if point.evaluation.size_bytes is not None:
        lines[-1] += f", {quantity(point.evaluation.size_bytes, 'B')}"
    if point.trial and not point.trial.feasible:
        lines.append("infeasible")
    kernels = [f"{kernel.calls} × {kernel.name} ({kernel.precision})" for kernel in point.evaluation.kernels]
    if kernels:
        lines.append("kernels: " + ", ".join(kernels[:4]) + (f" and {len(kernels) - 4} more" if kernels[4:] else ""))
    if point.ties:
        lines.append("cannot be told from " + ", ".join(point.ties[:4]) + (" …" if point.ties[4:] else ""))
    return lines


def _more(front: Front, point: Point) -> str:
    """Other forms of the same energy, in one line."""
    carbon, joules = front.results.carbon, point.energy_per_item_j.mean
    said = [quantity(joules / J_PER_WH, "Wh")]
    if carbon is not None:
        said.append(quantity(carbon.emission_g(joules), "gCO2e"))
    said = [f"{' = '.join(said)} per {front.results.item}"]
    if (net := point.net_energy_per_item_j) is not None:
        said.append(f"{spread(net, 'J')} of it above the device at rest")
    said.append(f"energy-delay product {quantity(point.energy_delay_js, 'J·s')} per call")
    return "; ".join(said)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>
body {{ margin: 0; padding: 0.6em; font: 16px/1.4 system-ui, sans-serif; color: #222; background: #fff }}
h1 {{ font-size: 1.25em; margin: 0 }}
p {{ margin: 0.4em 0; max-width: 60em; overflow-wrap: anywhere }}
.plotly-graph-div {{ width: 100%; height: 70vh; min-height: 380px }}
</style>
</head>
<body>
<h1>{heading}</h1>
<p>{under}</p>
{drawing}
{note}
</body>
</html>
"""


def _note(front: Front) -> str:
    item, tier = escape(front.results.item), front.results.tier
    said = (
        f"Down and to the left is better. Bars are 95 % intervals; {len(front.steps)} of {len(front.members)} members "
        f"are proven distinct. Energy per {item} is {tier}: ratio to the baseline, measured in turns, times the "
        "baseline's own joules. Loss is paired with the baseline, example by example, on validation data."
    )
    bill, carbon = front.results.bill, front.results.carbon
    bill_j = bill.energy_j
    said += f" The search itself spent {quantity(bill_j, 'J')} ({quantity(bill_j / J_PER_WH, 'Wh')})"
    if carbon is not None:
        said += f", {quantity(carbon.emission_g(bill_j), 'gCO2e')} at {escape(carbon.words)}"
    if bill.words:
        said += f": {bill.words}"
    short = ""
    if (count := len(front.others)) > CROWD:
        short = (
            f" Of the {count} that are not on the front only name and place are told here; their runs hold the rest."
        )
    return f"<p>{said}. {front.stopped_words}{short}</p>"


def _layout(front: Front, height: Height) -> dict[str, Any]:
    (left, right), (bottom, top) = window(shown(front), height)
    energy = f"energy per {escape(front.results.item, quote=False)}, {front.results.tier} (J)"
    return {
        "template": "plotly_white",
        "autosize": True,
        "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "legend": {"orientation": "h", "y": -0.18, "yanchor": "top"},
        "hoverlabel": {"align": "left"},
        "xaxis": {"title": {"text": energy}, "type": "log", "range": [math.log10(left), math.log10(right)]},
        "yaxis": {"title": {"text": height.label}, "range": [bottom, top]},
    }


def _bars(intervals: Sequence[Any]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [found.high - found.mean for found in intervals],
        "arrayminus": [found.mean - found.low for found in intervals],
        "thickness": 1,
        "width": 3,
    }
