"""The front as an SVG, for documents and for viewers that show no HTML; and what every picture of it shows.

    loss  ^            ●  proven distinct from the other ●      ◆  baseline (best runtime)
          |  ●         ○  on the front, tied with another       ■  plain use
          |     ●   ◆  ×  measured, not on the front            ▲  control
          +------->                                             bars: 95 % intervals
            J per item (logarithmic)

Marks differ in shape, not in colour alone. Gated trials have no energy and no place here.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from autogreen import hardware
from autogreen.front import Front
from autogreen.point import Point
from autogreen.wording import quantity

MANY = 300  # marks of one kind, from which on each tells its name and place alone: pictures of thousands stay small


class Series(NamedTuple):
    """Marks of one kind. symbol: of Plotly; colours are Okabe and Ito's, made for eyes without colour vision."""

    label: str
    symbol: str
    colour: str
    points: tuple[Point, ...]


def series(front: Front) -> tuple[Series, ...]:
    """What is drawn, the least important first, so that the front lies on top."""
    steps = {point.id for point in front.steps}
    plain = (front.plain,) if front.plain else ()
    kinds = (
        Series("measured, not on the front", "x-thin-open", "#999999", front.others),
        Series("control", "triangle-up", "#CC79A7", front.controls),
        Series("plain use", "square", "#D55E00", plain),
        Series("baseline (best runtime)", "diamond", "#000000", (front.baseline,)),
        Series("on the front, tied", "circle-open", "#0072B2", tuple(p for p in front.members if p.id not in steps)),
        Series("on the front, proven distinct", "circle", "#0072B2", front.steps),
    )
    return tuple(kind for kind in kinds if kind.points)


def title(front: Front) -> tuple[str, str]:
    """Heading and subheading, as plain text."""
    results = front.results
    workload = ", ".join(f"{key} {value}" if key != "kind" else f"{value}" for key, value in results.workload.items())
    machine = hardware.name(dict(results.hardware)) if results.hardware else "unknown hardware"
    return f"{results.study}: {results.task}", f"{workload} · {machine} · energy {results.tier} ({results.boundary})"


def window(front: Front) -> tuple[tuple[float, float], tuple[float, float]]:
    """What of the plane is shown first: members and what they are compared with, bars included."""
    shown = (*front.members, *front.references)
    energies = [
        end
        for p in shown
        for end in (max(p.energy_per_item_j.low, p.energy_per_item_j.mean / 10), p.energy_per_item_j.high)
    ]
    losses = [end for p in shown for end in (p.loss.low, p.loss.high)]
    stretch = (max(energies) / min(energies)) ** 0.06 * 1.02
    room = 0.06 * (max(losses) - min(losses)) or 0.01
    return (min(energies) / stretch, max(energies) * stretch), (min(losses) - room, max(losses) + room)


def svg(front: Front, width: int = 800, height: int = 540) -> str:
    """The picture alone, without scripts: for a document, and for viewers that show no HTML."""
    canvas = _Canvas(front, width, height)
    heading, under = title(front)
    marks = [mark for kind in series(front) for point in kind.points for mark in canvas.marks(kind, point)]
    labels = [canvas.label(point) for point in (*front.steps, *front.references) if canvas.holds(point)]
    outside = sum(not canvas.holds(point) for kind in series(front) for point in kind.points)
    note = f"bars: 95 % intervals{f'; {outside} dominated outside the picture' if outside else ''}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="system-ui, sans-serif" font-size="14" fill="#222222">',
            f"<title>{escape(heading)}</title>",
            f"<desc>{escape(under)}. Quality loss against energy per {escape(front.results.item)}.</desc>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            _text(16, 24, heading, 'font-size="17" font-weight="600"'),
            _text(16, 44, _shortened(under, width // 8), 'font-size="12" fill="#555555"'),
            *canvas.axes(),
            *marks,
            *labels,
            *canvas.legend(series(front)),
            _text(width - 12, height - 6, note, 'font-size="12" text-anchor="end" fill="#555555"'),
            "</svg>\n",
        ]
    )


class _Canvas:
    """Maps joules (logarithmic) and losses to pixels of the SVG."""

    def __init__(self, front: Front, width: int, height: int) -> None:
        (self.x0, self.x1), (self.y0, self.y1) = window(front)
        self.left, self.right, self.top, self.bottom = 76, width - 20, 60, height - 110
        self.item, self.tier = front.results.item, front.results.tier

    def x(self, energy_j: float) -> float:
        share = math.log(max(energy_j, self.x0) / self.x0) / math.log(self.x1 / self.x0)
        return self.left + min(share, 1.0) * (self.right - self.left)

    def y(self, loss: float) -> float:
        share = (min(max(loss, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return self.bottom - share * (self.bottom - self.top)

    def holds(self, point: Point) -> bool:
        return self.x0 <= point.energy_per_item_j.mean <= self.x1 and self.y0 <= point.loss.mean <= self.y1

    def marks(self, kind: Series, point: Point) -> Iterator[str]:
        if not self.holds(point):
            return
        energy, loss = point.energy_per_item_j, point.loss
        x, y = self.x(energy.mean), self.y(loss.mean)
        bars = (
            f"M{self.x(energy.low):.1f} {y:.1f}H{self.x(energy.high):.1f}"
            f"M{x:.1f} {self.y(loss.low):.1f}V{self.y(loss.high):.1f}"
        )
        if len(kind.points) > MANY:
            yield _symbol(kind, x, y)
            return
        faint = 0.35 if kind.symbol.startswith("x") else 0.8
        yield f'<path d="{bars}" stroke="{kind.colour}" stroke-opacity="{faint}" fill="none"/>'
        yield f"<g><title>{escape(point.name)}: {escape(point.words)}</title>{_symbol(kind, x, y)}</g>"

    def label(self, point: Point) -> str:
        x, y = self.x(point.energy_per_item_j.mean), self.y(point.loss.mean)
        text = f"{point.ratio.mean:.2f}×" if point.trial else point.name
        below = 20 if point.name == "baseline" else -8
        anchor, shift = ("end", -8) if x > self.right - 80 else ("start", 8)
        return _text(x + shift, y + below, _shortened(text, 28), f'font-size="12" text-anchor="{anchor}"')

    def axes(self) -> Iterator[str]:
        for energy_j in _decades(self.x0, self.x1):
            x = self.x(energy_j)
            yield f'<path d="M{x:.1f} {self.top}V{self.bottom}" stroke="#e5e5e5"/>'
            yield _text(x, self.bottom + 18, quantity(energy_j, "J"), 'font-size="12" text-anchor="middle"')
        for loss in _round_steps(self.y0, self.y1):
            y = self.y(loss)
            yield f'<path d="M{self.left} {y:.1f}H{self.right}" stroke="#e5e5e5"/>'
            said = f"{loss:.4g}".replace("-", "−")
            yield _text(self.left - 8, y + 4, said, 'font-size="12" text-anchor="end"')
        yield f'<path d="M{self.left} {self.top}V{self.bottom}H{self.right}" stroke="#222222" fill="none"/>'
        middle = (self.left + self.right) / 2
        yield _text(middle, self.bottom + 38, f"energy per {self.item}, {self.tier}", 'text-anchor="middle"')
        up = (self.top + self.bottom) / 2
        turned = f'text-anchor="middle" transform="rotate(-90 18 {up:.1f})"'
        yield _text(18, up, "quality loss against the baseline", turned)

    def legend(self, kinds: Sequence[Series]) -> Iterator[str]:
        for index, kind in enumerate(reversed(kinds)):
            x = self.left + (index % 3) * (self.right - self.left) / 3
            y = self.bottom + 60 + 20 * (index // 3)
            yield _symbol(kind, x, y)
            yield _text(x + 12, y + 4, kind.label, 'font-size="12"')


def _symbol(kind: Series, x: float, y: float) -> str:
    fill, edge = kind.colour, f'stroke="{kind.colour}" stroke-width="2"'
    if kind.symbol.startswith("circle"):
        inside = "#ffffff" if kind.symbol.endswith("open") else fill
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{inside}" {edge}/>'
    shapes = {
        "diamond": "m0 -7l7 7l-7 7l-7 -7z",
        "square": "m-5 -5h10v10h-10z",
        "triangle-up": "m0 -7l7 12h-14z",
        "x-thin-open": "m-4 -4l8 8m0 -8l-8 8",
    }
    return f'<path d="M{x:.1f} {y:.1f}{shapes[kind.symbol]}" fill="{fill}" {edge}/>'


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5 of each decade; only the powers of ten where those would crowd."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 4 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    return [tick for tick in ticks if low <= tick <= high] or [low, high]


def _round_steps(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
