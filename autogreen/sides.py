"""Sides: the fronts of two studies on shared axes, to one reference point.

    loss  ^   ●  ▲            ●  on a's front        ▲  on b's front         open: the other front beats it
          |     ●  ▲          energies of both over a's baseline
          |        ○  ▲       shared reference point: the worse of the two on each axis
          +------------->

Only what was measured alike is put side by side: one task, workload, device, tier and boundary. Each study measured
its policies in turns with its own baseline. Where that was the same program in both, ratios to it are one scale, and
drift between the studies cancels. Where it was not, b's ratios are brought to a's baseline by the joules of the two,
and their intervals widen by those of both.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from autogreen import hardware
from autogreen.errors import StudyError
from autogreen.front import Front
from autogreen.measurement import Interval
from autogreen.point import Point, dominates, hypervolume, logarithmic
from autogreen.results import Results
from autogreen.wording import plain_spread, quantity

# Of a fingerprint: what two studies may differ in, and what is compared anyway.
FREE = {
    "space",
    "constraints",
    "objectives",
    "torch",
    "driver",
    "training device",
    "workload",
    "machine",
    "boundary of the energy",
}
DRAWS = 1000
DRIFT = 0.02  # of the baseline's joules between two studies that is worth a word
ONE = Interval(mean=1.0, low=1.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One policy that is on at least one of the fronts. a, b: its place as each study measured it, on the shared axes;
    None where a study did not. on_a, on_b: whether it is on that front. beaten_by: where it is on one front alone, what
    the other front has besides and is better beyond the noise."""

    id: str
    words: str
    a: Point | None
    b: Point | None
    on_a: bool
    on_b: bool
    beaten_by: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Energy over the baseline's, as the first study that knows it measured it."""
        place = self.a or self.b
        assert place is not None, "it is on a front"
        return place.ratio.mean


@dataclass(frozen=True, kw_only=True)
class Sides:
    """a, b: the fronts. ours, theirs: their members on shared axes. scale: of b's energy ratios, to a's baseline."""

    a: Front
    b: Front
    scale: Interval
    ours: tuple[Point, ...]
    theirs: tuple[Point, ...]

    @classmethod
    def of(cls, a: Front, b: Front) -> "Sides":
        """Put two fronts side by side.

        Raises:
            StudyError: what they measured is not the same, so that no figure of one says anything of the other.
        """
        _refuse_unlike(a.results, b.results)
        scale = _scale(a.baseline, b.baseline)
        theirs = tuple(_onto(point, scale, a.baseline) for point in b.members)
        return cls(a=a, b=b, scale=scale, ours=tuple(map(_untimed, a.members)), theirs=theirs)

    @property
    def names(self) -> tuple[str, str]:
        return self.a.results.study, self.b.results.study

    @property
    def reference_point(self) -> tuple[float, float]:
        """(loss, energy ratio) of both hypervolumes: on each axis the worse of the two studies' own."""
        (loss, ratio, *_), (other_loss, other_ratio, *_) = (side.results.reference_point for side in (self.a, self.b))
        return max(loss, other_loss), max(ratio, other_ratio * self.scale.mean)

    @property
    def hypervolumes(self) -> tuple[float, float]:
        """Of a and of b, in (loss, ln ratio)."""
        return self._area(self.ours), self._area(self.theirs)

    @cached_property
    def gain(self) -> Interval:
        """By how much b's hypervolume is larger. Its spread is that of the area when every member moves within its own
        intervals; it does not hold the luck by which a longer search finds luckier measurements."""
        import numpy as np

        a, b = self.hypervolumes
        drawn = [self._drawn(points, name) for points, name in zip((self.ours, self.theirs), self.names, strict=True)]
        half = 1.96 * float(np.std(np.subtract(drawn[1], drawn[0])))
        return Interval(mean=b - a, low=b - a - half, high=b - a + half)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Every policy of either front, cheapest first."""
        ours, theirs = ({point.id: point for point in points} for points in (self.ours, self.theirs))
        in_a = ours | {point.id: _untimed(point) for point in self.a.others}
        in_b = theirs | {point.id: _onto(point, self.scale, self.a.baseline) for point in self.b.others}
        found = []
        for name in {**ours, **theirs}:
            beaten = _beaten(name, ours, theirs) + _beaten(name, theirs, ours)
            a, b = in_a.get(name), in_b.get(name)
            found.append(
                Line(
                    id=name,
                    words=(ours.get(name) or theirs[name]).words,
                    a=a,
                    b=b,
                    on_a=name in ours,
                    on_b=name in theirs,
                    beaten_by=tuple(beaten),
                )
            )
        return tuple(sorted(found, key=lambda line: (line.ratio, line.id)))

    @property
    def gained(self) -> tuple[Line, ...]:
        """What b found and a did not: on b's front alone, beaten by none of a's."""
        return tuple(line for line in self.lines if line.on_b and not line.on_a and not line.beaten_by)

    @property
    def lost(self) -> tuple[Line, ...]:
        """What a's front had and b's beats."""
        return tuple(line for line in self.lines if line.on_a and line.beaten_by)

    def summary(self) -> str:
        """What came out, in sentences."""
        (a, b), (area_a, area_b), gain = self.names, self.hypervolumes, self.gain
        if gain.low <= 0 <= gain.high:
            verdict = "the intervals do not tell which reaches further"
        else:
            verdict = f"{b if gain.mean > 0 else a} reaches further, beyond the intervals"
        behind = sum(line.on_b and bool(line.beaten_by) for line in self.lines)
        both = sum(line.on_a and line.on_b for line in self.lines)
        loss, ratio = self.reference_point
        return " ".join(
            [
                f"From {a} to {b}: {len(self.gained)} of {len(self.theirs)} members are gained, {len(self.lost)} of "
                f"{len(self.ours)} lost to better ones; {both} on both fronts, {behind} of {b} beaten by {a}.",
                f"Hypervolume to a loss of {loss:g} and {ratio:.3g} times the baseline's energy: {area_a:.4f} and "
                f"{area_b:.4f}, a difference of {plain_spread(gain)}: {verdict}.",
                self.axis,
            ]
        )

    @property
    def axis(self) -> str:
        """What the energies are, in one sentence."""
        (a, b), base = self.names, self.a.baseline
        tier, item = self.a.results.tier, self.a.results.item
        same = f"Energy ({tier}) is a ratio to the baseline, which is the same program in both: {base.words}."
        if self.scale == ONE:
            return same
        return (
            f"Energy ({tier}) is a ratio to the baseline of {a} ({base.words}, "
            f"{quantity(base.energy_per_item_j.mean, 'J')} per {item}). {b} has another ({self.b.baseline.words}), "
            f"which took {self.scale.mean:.3f} ({self.scale.low:.3f}–{self.scale.high:.3f}) times as much; its ratios "
            "are brought to the first by that, and their intervals are wider for it."
        )

    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before trusting a small difference."""
        (a, b), said = self.names, []
        ours, theirs = self.a.baseline.energy_per_item_j, self.b.baseline.energy_per_item_j
        moved = theirs.mean / ours.mean - 1
        if self.scale == ONE and abs(moved) > DRIFT and not (ours.low <= theirs.high and theirs.low <= ours.high):
            said.append(
                f"The same baseline took {quantity(ours.mean, 'J')} in {a} and {quantity(theirs.mean, 'J')} in {b} "
                f"({100 * moved:+.1f} %): the machine was not in the same state. Ratios cancel that as far as it moves "
                "all programs alike."
            )
        if (quality := self.a.baseline.quality.mean - self.b.baseline.quality.mean) != 0:
            said.append(
                f"The baselines' quality differs by {abs(quality):.4f}, and each loss is against its own study's "
                "baseline."
            )
        for key in ("torch", "driver"):
            one, other = (front.results.hardware.get(key) for front in (self.a, self.b))
            if one != other:
                said.append(f"{a} ran with {key} {one}, {b} with {other}.")
        return tuple(said)

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        loss, ratio = self.reference_point
        areas = dict(zip(("a", "b"), self.hypervolumes, strict=True))
        return {
            "a": self.names[0],
            "b": self.names[1],
            "tier": self.a.results.tier,
            "boundary": self.a.results.boundary,
            "unit": f"energy per {self.a.results.item} over that of the baseline of a",
            "baseline_scale": asdict(self.scale),
            "reference_point": {"loss": loss, "ratio": ratio},
            "hypervolume": {**areas, "gain": asdict(self.gain)},
            "gained": [line.id for line in self.gained],
            "lost": [line.id for line in self.lost],
            "policies": [
                {
                    "id": line.id,
                    "does": line.words,
                    "on": [side for side, on in (("a", line.on_a), ("b", line.on_b)) if on],
                    "beaten_by": list(line.beaten_by),
                    "a": _told(line.a),
                    "b": _told(line.b),
                }
                for line in self.lines
            ],
            "warnings": list(self.warnings()),
        }

    def _area(self, points: Sequence[Point]) -> float:
        places = (logarithmic((point.loss.mean, point.ratio.mean)) for point in points)
        return hypervolume(places, logarithmic(self.reference_point))

    def _drawn(self, points: Sequence[Point], study: str) -> list[float]:
        """Areas when every point moves; two studies measured the same policy independently."""
        import numpy as np

        reference = logarithmic(self.reference_point)
        if not points:
            return [0.0] * DRAWS
        means = np.array([logarithmic((point.loss.mean, point.ratio.mean)) for point in points])
        spreads = np.array([(point.loss.standard_error, _logarithmic_error(point.ratio)) for point in points])
        chance = np.random.default_rng(zlib.crc32(study.encode()))
        return [
            hypervolume(places.tolist(), reference)
            for places in means + spreads * chance.standard_normal((DRAWS, len(points), 2))
        ]


def _beaten(name: str, own: Mapping[str, Point], other: Mapping[str, Point]) -> list[str]:
    """By what the other front alone has; what its own front has too stands beside it there."""
    if name not in own or name in other:
        return []
    return [point.id for point in other.values() if point.id not in own and dominates(point, own[name])]


def _refuse_unlike(a: Results, b: Results) -> None:
    def told(results: Results) -> Mapping[str, Any]:
        return {
            "workload": dict(results.workload),
            "item": results.item,
            "device": hardware.name(dict(results.hardware)) if results.hardware else None,
            "tier": results.tier,
            "boundary": results.boundary,
            **{key: value for key, value in results.fingerprint.items() if key not in FREE},
        }

    ours, theirs = told(a), told(b)
    unlike = [key for key in dict.fromkeys((*ours, *theirs)) if ours.get(key) != theirs.get(key)]
    if unlike:
        said = "; ".join(f"{key}: {_short(ours.get(key))} and {_short(theirs.get(key))}" for key in unlike)
        raise StudyError(
            f"{a.study!r} and {b.study!r} cannot stand side by side, they did not measure the same. {said}. Run one of "
            "them again as the other was, or measure two policies beside each other with autogreen compare."
        )


def _scale(a: Point, b: Point) -> Interval:
    if (a.id, a.evaluation.start) == (b.id, b.evaluation.start):
        return ONE
    ours, theirs = a.energy_per_item_j, b.energy_per_item_j
    return _wider(theirs, ours, theirs.mean / ours.mean)


def _onto(point: Point, scale: Interval, baseline: Point) -> Point:
    """A point of b, at its place on the shared axes."""
    ratio = point.ratio if scale == ONE else _wider(point.ratio, scale, point.ratio.mean * scale.mean)
    base_j = baseline.energy_per_item_j.mean
    energy = Interval(**{end: value * base_j for end, value in asdict(ratio).items()})
    return replace(_untimed(point), ratio=ratio, energy_per_item_j=energy)


def _untimed(point: Point) -> Point:
    """Fronts are compared on two axes, whatever each had."""
    return replace(point, latency_s=None)


def _wider(one: Interval, other: Interval, mean: float) -> Interval:
    """A product or quotient of two independent figures: their relative errors add in squares."""
    error = max(other.high / other.mean - 1, 1 - other.low / other.mean)
    below, above = math.hypot(1 - one.low / one.mean, error), math.hypot(one.high / one.mean - 1, error)
    return Interval(mean=mean, low=mean * max(0.0, 1 - below), high=mean * (1 + above))


def _logarithmic_error(ratio: Interval) -> float:
    return ratio.standard_error / ratio.mean


def _told(point: Point | None) -> dict[str, Any] | None:
    return None if point is None else {"quality_loss": asdict(point.loss), "energy_ratio": asdict(point.ratio)}


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")
