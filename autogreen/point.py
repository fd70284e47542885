"""Point: something measured, placed on the axes of a front; when one dominates another; the area they cover."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

from autogreen.carbon import J_PER_WH, Carbon
from autogreen.evaluation import Evaluation, Published
from autogreen.measurement import Interval, Measurement
from autogreen.results import Results, TrialResult
from autogreen.wording import words


@dataclass(frozen=True, kw_only=True)
class Point:
    """Something measured, placed on the axes. id: the effect's; name: for people (an id, or `baseline`, ...).

    loss: against the baseline, above 0 is worse. ratio: energy per item over the baseline's.
    energy_per_item_j: ratio × the baseline's mean. range_per_item_j: the same, widened by the meter's own range.
    latency_s: the third axis; None where latency is no objective.
    seeds: the same policy trained from other seeds.
    ties: ids of the members that this one cannot be told from. probability: of being on the true front; None where
    that was not asked.
    """

    id: str
    name: str
    evaluation: Evaluation
    measurement: Measurement
    loss: Interval
    ratio: Interval
    energy_per_item_j: Interval
    latency_s: Interval | None = None
    trial: TrialResult | None = None
    published: Published | None = None
    seeds: tuple[Published, ...] = ()
    ties: tuple[str, ...] = ()
    probability: float | None = None

    @property
    def axes(self) -> tuple[Interval, ...]:
        """(loss, energy ratio), and latency where it is an objective; all are minimised."""
        return (self.loss, self.ratio) if self.latency_s is None else (self.loss, self.ratio, self.latency_s)

    @property
    def quality(self) -> Interval:
        return self.evaluation.quality

    @property
    def words(self) -> str:
        said = words(self.evaluation.effect.parts)
        if (share := self.evaluation.communication) is not None:
            said += f" ({100 * share:.0f} % of the time between ranks)"
        return f"half the width, trained from scratch: {said}" if self.evaluation.start == "scratch" else said

    @property
    def proven_loss(self) -> float:
        """Upper end of the loss interval: on test data once published, on validation before."""
        return (self.published.test_loss if self.published else self.loss).high

    @property
    def test_loss_over_seeds(self) -> Interval | None:
        """Mean over trainings from several seeds, and Student's 95 % interval of it: how far a seed's luck carries.
        It does not hold the luck of the test examples, which all trainings share. None for a single training."""
        if self.published is None or not self.seeds:
            return None
        return mean_of([found.test_loss.mean for found in (self.published, *self.seeds)])

    @property
    def net_energy_per_item_j(self) -> Interval | None:
        """Joules per item above those of the device at rest for as long; None where rest was not looked at."""
        net, own, energy = self.measurement.net_energy_per_item_j, self.measurement, self.energy_per_item_j
        if net is None:
            return None
        rest_j = own.energy_per_item_j.mean - net.mean
        return Interval(**{end: value - rest_j for end, value in asdict(energy).items()})

    @property
    def energy_delay_js(self) -> float:
        """Energy-delay product of one call, joule-seconds (see `Measurement.energy_delay_js`)."""
        own = self.measurement
        return self.energy_per_item_j.mean * own.items_per_call * own.latency_s.mean

    @property
    def times_above_floor(self) -> float | None:
        """Joules over the least that the work can cost on the device; None where nothing bounds it."""
        return (self.published or self.evaluation).times_above_floor

    def figures(self, carbon: Carbon | None) -> dict[str, float]:
        """What else is told of its energy, as far as it is known, by name and unit."""
        joules = self.energy_per_item_j.mean
        found = {
            "energy_per_item_wh": joules / J_PER_WH,
            "energy_delay_js": self.energy_delay_js,
            "emission_per_item_g": None if carbon is None else carbon.emission_g(joules),
            "idle_w": self.measurement.idle_w,
            "times_above_floor": self.times_above_floor,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def range_per_item_j(self) -> Interval:
        own, wide = self.measurement.energy_per_item_j, self.measurement.range_per_item_j
        low, high = (wide.low / own.low if own.low > 0 else 0.0), wide.high / own.high
        energy = self.energy_per_item_j
        return Interval(mean=energy.mean, low=energy.low * low, high=energy.high * high)


def dominates(a: Point, b: Point) -> bool:
    """A is no worse in all means, and better beyond the intervals in at least one."""
    pairs = list(zip(a.axes, b.axes, strict=True))
    return all(ours.mean <= theirs.mean for ours, theirs in pairs) and any(
        ours.high < theirs.low for ours, theirs in pairs
    )


def hypervolume(points: Iterable[Iterable[float]], reference: Sequence[float]) -> float:
    """Area, or volume, between the points and the reference point, all axes to be minimised; exact, O(n log n) for two
    axes, O(n² log n) for three.

    points: [n, 2 or 3], finite. One that is not better than the reference on every axis adds nothing.

    Source: Zitzler and Thiele, Multiobjective Evolutionary Algorithms: A Comparative Case Study and the Strength
    Pareto Approach, IEEE Transactions on Evolutionary Computation 3(4), 1999 (the size of the space covered); While
    et al., A Faster Algorithm for Calculating Hypervolume, same journal 10(1), 2006 (slices).

    Raises:
        ValueError: a coordinate is NaN or infinite.
    """
    places = [tuple(map(float, point)) for point in points]
    if not all(map(math.isfinite, (*reference, *(value for place in places for value in place)))):
        raise ValueError("hypervolume needs finite points and a finite reference")
    if len(reference) == 2:
        return _area(places, reference)
    ordered = sorted((place for place in places if place[2] < reference[2]), key=lambda place: place[2])
    heights = [*(place[2] for place in ordered), reference[2]]
    # between two heights, what lies below the lower one counts
    slices = ((top - bottom, ordered[:count]) for count, (bottom, top) in enumerate(pairwise(heights), 1))
    return math.fsum(height * _area(below, reference) for height, below in slices if height > 0)


def _area(places: Sequence[tuple[float, ...]], reference: Sequence[float]) -> float:
    """Over the first two axes."""
    area, ceiling = 0.0, reference[1]
    for x, y, *_ in sorted(places):
        if x < reference[0] and y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return area


def place(results: Results, found: Evaluation, name: str, published: Published | None = None) -> Point | None:
    """Place an evaluation on the axes; None where it was not measured or is not finite."""
    reference, measurement = results.baseline, (published or found).measurement
    if measurement is None or reference.measurement is None:
        return None
    base_j, own = reference.measurement.energy_per_item_j, measurement.energy_per_item_j
    loss, ratio = found.loss, (published or found).ratio
    if found.key == reference.key:
        loss, ratio, energy = Interval(mean=0.0, low=0.0, high=0.0), Interval(mean=1.0, low=1.0, high=1.0), own
    else:
        if loss is None:  # not paired: the intervals of both count
            loss = _difference(reference.quality, found.quality)
        if ratio is None and base_j.low > 0:
            ratio = Interval(mean=own.mean / base_j.mean, low=own.low / base_j.high, high=own.high / base_j.low)
        if ratio is None:
            return None
        energy = Interval(**{end: value * base_j.mean for end, value in asdict(ratio).items()})
    numbers = (*asdict(loss).values(), *asdict(ratio).values(), *asdict(energy).values())
    if not all(map(math.isfinite, numbers)) or ratio.mean <= 0:
        return None
    return Point(
        id=found.effect.id,
        name=name,
        evaluation=found,
        measurement=measurement,
        loss=loss,
        ratio=ratio,
        energy_per_item_j=energy,
        latency_s=measurement.judged_latency_s if results.by_latency else None,
        published=published,
    )


def place_trial(results: Results, trial: TrialResult, fresh: bool = True) -> Point | None:
    found = trial.evaluation
    if found is None or trial.state != "measured":
        return None
    point = place(results, found, found.effect.id, results.published.get(found.key) if fresh else None)
    return None if point is None else replace(point, trial=trial, seeds=results.seeds.get(found.key, ()))


def mean_of(values: Sequence[float]) -> Interval:
    """Of two or more independent values: their mean, and Student's 95 % interval."""
    from scipy.stats import t  # slow to load, seldom needed

    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def _difference(a: Interval, b: Interval) -> Interval:
    return Interval(mean=a.mean - b.mean, low=a.low - b.high, high=a.high - b.low)


def logarithmic(place: Sequence[float]) -> tuple[float, ...]:
    """All axes but that of loss."""
    return place[0], *map(math.log, place[1:])
