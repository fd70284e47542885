"""The front as an SVG, for documents and for viewers that show no HTML; and what every picture of it shows.

    loss  ^            ●  proven distinct from the other ●      ◆  baseline (best runtime)
          |  ●         ○  on the front, tied with another       ■  plain use
          |     ●   ◆  ×  measured, not on the front            ▲  control
          +------->                                             bars: 95 % intervals
            J per item (logarithmic)

Where latency is an objective a second picture has it in the place of loss.

Marks differ in shape, not in colour alone. Gated trials have no energy and no place here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from autogreen import hardware
from autogreen.front import Front
from autogreen.measurement import Interval
from autogreen.point import Point
from autogreen.wording import quantity

CROWD = 300  # dominated marks beyond which they have neither bars nor words: nobody reads them, and a page stays small
LEGEND_PX, TICK_PX = 260, 54  # room for a line of the legend, for a label of the axis of energy
LETTER_PX = 6.4  # of a label, on average
# Where a label may stand: to the right of its mark or not, and by how many pixels below it.
BESIDE = ((True, -8), (True, 18), (False, -8), (False, 18), (True, -24), (False, -24), (True, 32), (False, 32))


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


class Height(NamedTuple):
    """What stands on the upright axis. of: a point's interval; told: a value there, in words."""

    label: str
    of: Callable[[Point], Interval]
    told: Callable[[float], str]


LOSS = Height(
    "quality loss against the baseline", lambda point: point.loss, lambda loss: f"{loss:.4g}".replace("-", "−")
)


def heights(front: Front) -> dict[str, Height]:
    """Of each picture of a front, by name."""
    if not front.results.by_latency:
        return {"front": LOSS}
    server = front.results.workload.get("kind") == "server"
    label = "95th percentile of latency" if server else "latency of a call"
    latency = Height(label, lambda point: point.measurement.judged_latency_s, lambda value: quantity(value, "s"))
    return {"front": LOSS, "latency": latency}


def title(front: Front) -> tuple[str, str]:
    """Heading and subheading, as plain text."""
    results = front.results
    workload = ", ".join(f"{key} {value}" if key != "kind" else f"{value}" for key, value in results.workload.items())
    machine = hardware.name(dict(results.hardware)) if results.hardware else "unknown hardware"
    return f"{results.study}: {results.task}", f"{workload} · {machine} · energy {results.tier} ({results.boundary})"


def window(points: Sequence[Point], height: Height) -> tuple[tuple[float, float], tuple[float, float]]:
    """What of the plane is shown first: these points, bars included."""
    energies = [
        end
        for p in points
        for end in (max(p.energy_per_item_j.low, p.energy_per_item_j.mean / 10), p.energy_per_item_j.high)
    ]
    ends = [end for p in points for end in (height.of(p).low, height.of(p).high)]
    stretch = (max(energies) / min(energies)) ** 0.06 * 1.02
    room = 0.06 * (max(ends) - min(ends)) or 0.01
    return (min(energies) / stretch, max(energies) * stretch), (min(ends) - room, max(ends) + room)


def shown(front: Front) -> tuple[Point, ...]:
    """What decides how much of the plane is shown: members and what they are compared with."""
    return (*front.members, *front.references)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What is drawn. kinds: the least important first. shown: what must be in view; labelled: with words beside it.
    energy: what the axis of energy is called; height: the other."""

    heading: str
    under: str
    kinds: tuple[Series, ...]
    shown: tuple[Point, ...]
    labelled: tuple[Point, ...]
    energy: str
    height: Height = LOSS

    @classmethod
    def of(cls, front: Front, height: Height = LOSS) -> "Picture":
        heading, under = title(front)
        return cls(
            heading=heading,
            under=under,
            kinds=series(front),
            shown=shown(front),
            labelled=(*front.steps, *front.references),
            energy=f"energy per {front.results.item}, {front.results.tier}",
            height=height,
        )

    def svg(self, width: int = 800, height: int = 540, *, headed: bool = True) -> str:
        """The picture alone, without scripts. headed: with its heading; a page has one of its own."""
        canvas = _Canvas(self, width, height, top=60 if headed else 14)
        marks = [mark for kind in self.kinds for mark in canvas.series(kind)]
        held = [point for point in self.shown if canvas.holds(point)]
        labels = canvas.labels([point for point in self.labelled if canvas.holds(point)], held)
        outside = sum(not canvas.holds(point) for kind in self.kinds for point in kind.points)
        described = f"{self.under}. {self.height.label.capitalize()} against {self.energy}."
        note = f"bars: 95 % intervals{f'; {outside} dominated outside the picture' if outside else ''}"
        heading = [
            _text(16, 24, _shortened(self.heading, width // 8), 'font-size="17" font-weight="600"'),
            _text(16, 44, _shortened(self.under, width // 8), 'font-size="12" fill="#555555"'),
        ]
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
                'font-family="system-ui, sans-serif" font-size="14" fill="#222222">',
                f"<title>{escape(self.heading)}</title>",
                f"<desc>{escape(described)}</desc>",
                '<rect width="100%" height="100%" fill="#ffffff"/>',
                *(heading if headed else ()),
                *canvas.axes(),
                *marks,
                *labels,
                *canvas.legend(self.kinds),
                _text(width - 12, height - 6, note, 'font-size="12" text-anchor="end" fill="#555555"'),
                "</svg>\n",
            ]
        )


def svg(front: Front, width: int = 800, height: int = 540) -> str:
    """The front for a document, and for viewers that show no HTML."""
    return Picture.of(front).svg(width, height)


class _Canvas:
    """Maps joules (logarithmic) and heights to pixels of the SVG."""

    def __init__(self, picture: Picture, width: int, height: int, top: int) -> None:
        (self.x0, self.x1), (self.y0, self.y1) = window(picture.shown, picture.height)
        self.columns = max(1, width // LEGEND_PX)
        legend = 20 * math.ceil(len(picture.kinds) / self.columns)
        self.left, self.right, self.top, self.bottom = 76, width - 20, top, height - 70 - legend
        self.energy, self.height = picture.energy, picture.height

    def x(self, energy_j: float) -> float:
        share = math.log(max(energy_j, self.x0) / self.x0) / math.log(self.x1 / self.x0)
        return self.left + min(share, 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        share = (min(max(value, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return self.bottom - share * (self.bottom - self.top)

    def place(self, point: Point) -> tuple[float, float]:
        return self.x(point.energy_per_item_j.mean), self.y(self.height.of(point).mean)

    def holds(self, point: Point) -> bool:
        return self.x0 <= point.energy_per_item_j.mean <= self.x1 and self.y0 <= self.height.of(point).mean <= self.y1

    def series(self, kind: Series) -> Iterator[str]:
        held = [point for point in kind.points if self.holds(point)]
        if kind.symbol.startswith("x") and len(held) > CROWD:
            crosses = "".join(f"M{x - 2:.1f} {y - 2:.1f}l4 4m0-4l-4 4" for x, y in map(self.place, held))
            yield f'<path d="{crosses}" stroke="{kind.colour}" stroke-opacity="0.5" fill="none"/>'
            return
        for point in held:
            yield from self.mark(kind, point)

    def mark(self, kind: Series, point: Point) -> Iterator[str]:
        energy, height = point.energy_per_item_j, self.height.of(point)
        x, y = self.place(point)
        bars = (
            f"M{self.x(energy.low):.1f} {y:.1f}H{self.x(energy.high):.1f}"
            f"M{x:.1f} {self.y(height.low):.1f}V{self.y(height.high):.1f}"
        )
        faint = 0.35 if kind.symbol.startswith("x") else 0.8
        yield f'<path d="{bars}" stroke="{kind.colour}" stroke-opacity="{faint}" fill="none"/>'
        yield f"<g><title>{escape(point.name)}: {escape(point.words)}</title>{_symbol(kind, x, y)}</g>"

    def labels(self, points: Sequence[Point], marked: Sequence[Point]) -> Iterator[str]:
        """Words beside marks, where they do not lie over each other; a mark without them still has its shape."""
        taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in map(self.place, marked)]
        for point in points:
            x, y = self.place(point)
            text = _shortened(f"{point.ratio.mean:.2f}×" if point.trial else point.name, 32)
            width = LETTER_PX * len(text)
            places = sorted(BESIDE, key=lambda place: place[1] < 0) if point.name == "baseline" else BESIDE
            for to_right, below in places:
                left = x + 8 if to_right else x - 8 - width
                box = (left, y + below - 11, left + width, y + below + 3)
                inside = self.left < box[0] and box[2] < self.right + 10 and self.top <= box[1] and box[3] < self.bottom
                if inside and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    yield _text(left, y + below, text, 'font-size="12"')
                    break

    def axes(self) -> Iterator[str]:
        for energy_j in _decades(self.x0, self.x1, (self.right - self.left) // TICK_PX):
            x = self.x(energy_j)
            yield f'<path d="M{x:.1f} {self.top}V{self.bottom}" stroke="#e5e5e5"/>'
            yield _text(x, self.bottom + 18, quantity(energy_j, "J"), 'font-size="12" text-anchor="middle"')
        for value in _round_steps(self.y0, self.y1):
            y = self.y(value)
            yield f'<path d="M{self.left} {y:.1f}H{self.right}" stroke="#e5e5e5"/>'
            yield _text(self.left - 8, y + 4, self.height.told(value), 'font-size="12" text-anchor="end"')
        yield f'<path d="M{self.left} {self.top}V{self.bottom}H{self.right}" stroke="#222222" fill="none"/>'
        middle = (self.left + self.right) / 2
        yield _text(middle, self.bottom + 38, self.energy, 'text-anchor="middle"')
        up = (self.top + self.bottom) / 2
        turned = f'text-anchor="middle" transform="rotate(-90 18 {up:.1f})"'
        yield _text(18, up, self.height.label, turned)

    def legend(self, kinds: Sequence[Series]) -> Iterator[str]:
        for index, kind in enumerate(reversed(kinds)):
            x = self.left + (index % self.columns) * (self.right - self.left) / self.columns
            y = self.bottom + 60 + 20 * (index // self.columns)
            yield _symbol(kind, x, y)
            yield _text(x + 12, y + 4, kind.label, 'font-size="12"')


def _symbol(kind: Series, x: float, y: float) -> str:
    fill, edge = kind.colour, f'stroke="{kind.colour}" stroke-width="2"'
    shape = kind.symbol.removesuffix("-open")
    if kind.symbol != shape:
        fill = "#ffffff"
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" {edge}/>'
    shapes = {
        "diamond": "m0 -7l7 7l-7 7l-7 -7z",
        "square": "m-5 -5h10v10h-10z",
        "triangle-up": "m0 -7l7 12h-14z",
        "x-thin": "m-4 -4l8 8m0 -8l-8 8",
    }
    return f'<path d="M{x:.1f} {y:.1f}{shapes[shape]}" fill="{fill}" {edge}/>'


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _decades(low: float, high: float, most: int) -> list[float]:
    """1, 2, 5 of each decade; fewer of each where there would be more than `most`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    return ticks or [low, high]


def _round_steps(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
