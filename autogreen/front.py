"""Front: the policies that nothing beats, decided beyond the noise of all axes.

    loss  ^   o                     loss    quality loss against the baseline, paired per example; above 0 is worse
          |     o    x              ratio   energy per item over the baseline's, measured in turns
          |       o     o           o       a member: likely enough, nothing dominates it
          |    x      o             x       dominated
          +------------------> ratio

Where latency is an objective it is the third axis of all this: of two GPUs that answer sooner and cost twice the joules
neither dominates the other.

By means alone noise would decide: a lucky window throws a better policy out. So each policy has a probability of being
on the true front, as far as the intervals of all tell (see `membership`), and a member is what is measured, feasible
and on it with a probability of at least 0.1. Where policies lie close together all of them are likely enough and none
is certain: `ties` names those that cannot be told apart; what is *proven* distinct is `steps`.

Two rounds. The search's own measurements decide who stands (a probability of at least 0.02); what falls there never
returns, so its artifact can be deleted. Then, among those, a published trial counts with its fresh energy: measured
after it was chosen, it is free of the luck that got it chosen; and no interval is narrower than the finalists' two
measurements differ (see `repeatability`). Joules per item are ratio × the baseline's, so that drift between windows
cancels.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from autogreen.carbon import J_PER_WH, Carbon
from autogreen.errors import ConfigError, StudyError
from autogreen.evaluation import Evaluation
from autogreen.measurement import Interval
from autogreen.point import Point, dominates, hypervolume, logarithmic, place, place_trial
from autogreen.registry import nearest
from autogreen.repeatability import Repeatability
from autogreen.results import Results
from autogreen.wording import latency, quantity

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Front", "Point", "dominates", "hypervolume", "progress"]

STANDING = 0.02  # a probability below which a policy is beaten for sure
MEMBER = 0.1  # from here on it belongs to the front
NEGLIGIBLE = 1e-5  # of the loss that is tolerated: by less than that nothing is better
RULES = (
    "knee",
    "cheapest",
    "cheapest:loss<=0.01",
    "cheapest:latency<=0.02",
    "best",
    "best:energy<=0.002",
    "fastest",
    "a member's id",
)


def progress(results: Results) -> list[tuple[int, float]]:
    """(trial number, hypervolume of all feasible trials up to it), for every finished trial, as the search saw them."""
    best: list[tuple[float, ...]] = []
    found: list[tuple[int, float]] = []
    reference, volume = logarithmic(results.reference_point), 0.0
    for trial in sorted(results.trials, key=lambda trial: trial.number):
        if trial.state == "waiting":
            continue
        point = place_trial(results, trial, fresh=False) if trial.feasible else None
        if point is not None:
            here = _place(point)
            if not any(_no_worse(other, here) for other in best):
                best = [*(other for other in best if not _no_worse(here, other)), here]
                volume = hypervolume(best, reference)
        found.append((trial.number, volume))
    return found


def _place(point: Point) -> tuple[float, ...]:
    return logarithmic([axis.mean for axis in point.axes])


def _no_worse(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


def _probabilities(points: list[Point], results: Results) -> list[float]:
    from autogreen.membership import probabilities  # numpy: a front is also opened where nothing is computed

    return probabilities(points, NEGLIGIBLE * results.reference_point[0])


def standing(results: Results) -> dict[str, Point]:
    """By id: what is feasible and, as the search measured it, not beaten for sure; cheapest first.

    More trials only ever take away from what stands among the trials so far.
    """
    found: dict[str, Point] = {}
    for trial in sorted(results.measured, key=lambda trial: trial.number):
        if trial.feasible and (point := place_trial(results, trial, fresh=False)) is not None:
            found.setdefault(point.id, point)
    candidates = sorted(found.values(), key=_cheapest_first)
    likely = zip(candidates, _probabilities(candidates, results), strict=True)
    return {point.id: point for point, probability in likely if probability >= STANDING}


@dataclass(frozen=True, kw_only=True)
class Front:
    """members: cheapest first. others: measured, but dominated or infeasible.

    hypervolume: of the members' means in (loss, ln ratio), and ln latency where that is an objective, to the study's
    reference point.
    """

    results: Results
    baseline: Point
    plain: Point | None
    controls: tuple[Point, ...]
    members: tuple[Point, ...]
    others: tuple[Point, ...]
    hypervolume: float
    repeatability: Repeatability

    @classmethod
    def of(cls, results: Results) -> "Front":
        """Decide the front; one member an effect.

        Raises:
            StudyError: the baseline has no measurement, so nothing can be compared with it.
        """
        known = Repeatability.of(results)
        baseline = place(results, results.baseline, "baseline")
        if baseline is None:
            raise StudyError("the baseline is not measured yet, so there is no front. Let the sweep run on.")
        points: dict[str, Point] = {}
        for trial in sorted(results.measured, key=lambda trial: (not trial.feasible, trial.number)):
            if (point := place_trial(results, trial)) is not None:
                points.setdefault(point.id, known.widened(point))
        stand = sorted((points[name] for name in standing(results) if name in points), key=_cheapest_first)
        likely = zip(stand, _probabilities(stand, results), strict=True)
        chosen = [replace(point, probability=share) for point, share in likely if share >= MEMBER]
        members = tuple(replace(point, ties=_ties(point, chosen)) for point in chosen)
        held = {point.id for point in members}
        plain = place(results, results.plain, "plain use")
        controls = [place(results, found, name) for name, found in results.controls.items()]
        return cls(
            results=results,
            baseline=baseline,
            plain=known.widened(plain) if plain else None,
            controls=tuple(known.widened(point) for point in controls if point is not None),
            members=members,
            others=tuple(point for name, point in points.items() if name not in held),
            hypervolume=hypervolume(map(_place, members), logarithmic(results.reference_point)),
            repeatability=known,
        )

    @cached_property
    def steps(self) -> tuple[Point, ...]:
        """The longest chain found, cheapest first, in which each member costs more and loses less than *every* one
        before it: its energy interval lies above theirs, and so does theirs of loss above its, or the interval of the
        loss between the two, paired on the same examples, lies above 0."""

        @cache
        def paired(worse: str, better: str) -> Interval | None:
            return self.results.between(worse, better)

        def beyond(cheaper: Point, better: Point) -> bool:
            if cheaper.ratio.high >= better.ratio.low or better.loss.mean >= cheaper.loss.mean:
                return False
            if better.loss.high < cheaper.loss.low:
                return True
            between = paired(cheaper.evaluation.key, better.evaluation.key)
            return between is not None and between.low > 0

        chains: list[tuple[Point, ...]] = []
        for point in self.members:
            before = (chain for chain in chains if all(beyond(earlier, point) for earlier in reversed(chain)))
            chains.append((*max(before, key=len, default=()), point))
        return max(chains, key=len, default=())

    @property
    def references(self) -> tuple[Point, ...]:
        """Baseline, plain use and controls, as far as they are measured."""
        return (self.baseline, *([self.plain] if self.plain else []), *self.controls)

    @property
    def break_even_items(self) -> float | None:
        """Items after which the cheapest member has paid the search's joules back; None when nothing saves."""
        return self.paid_back_after(self.members[0]) if self.members else None

    def paid_back_after(self, point: Point) -> float | None:
        """Items after which a policy has paid the search's joules back; None when it saves nothing."""
        saved_j = self.baseline.energy_per_item_j.mean - point.energy_per_item_j.mean
        return self.results.bill.energy_j / saved_j if saved_j > 0 else None

    def pick(self, rule: str) -> Point:
        """Choose one member.

            knee                 furthest below the chord from the cheapest to the best, both axes normalised by it
            cheapest             least energy
            cheapest:loss<=X     least energy among those whose loss is proven to be at most X (test once published)
            cheapest:latency<=X  least energy among those whose latency is proven to be at most X seconds
            best                 least loss
            best:energy<=X       least loss among those whose energy is proven to be at most X joules per item
            fastest              least latency: of a call, or of a server's requests the 95th percentile
            ID                   that member; the beginning is enough where it is unique

        Source: Das, On characterizing the "knee" of the Pareto curve based on normal-boundary intersection,
        Structural Optimization 18, 1999.

        Raises:
            ConfigError: the rule is unknown, or nothing satisfies it (what there is, and the nearest miss, are named).
        """
        if not self.members:
            raise ConfigError(
                f"the front of {self.results.study!r} is empty: {len(self.results.measured)} of "
                f"{len(self.results.trials)} trials were measured and none of them is feasible. Search on, or loosen "
                "the constraints."
            )
        best = min(self.members, key=lambda point: (point.loss.mean, point.ratio.mean))
        text = "".join(rule.split())
        simple = {
            "knee": lambda: _knee(self.members, best),
            "cheapest": lambda: self.members[0],
            "best": lambda: best,
            "fastest": lambda: min(self.members, key=lambda point: point.measurement.judged_latency_s.mean),
        }
        if text in simple:
            return simple[text]()
        if bound := re.fullmatch(r"(cheapest:loss|cheapest:latency|best:energy)<=(.+)", text):
            return self._bounded(rule, bound[1], bound[2])
        found = [point for point in self.members if text and point.id.startswith(text)]
        if len(found) == 1:
            return found[0]
        ids = ", ".join(point.id for point in found or self.members)
        if found:
            raise ConfigError(f"{rule!r} begins {len(found)} ids: {ids}. Write more of the one you mean.")
        hint = nearest(text, [*RULES[:-1], *(point.id for point in self.members)])
        raise ConfigError(f"no rule or member {rule!r}.{hint} Rules: {', '.join(RULES)}. Members: {ids}.")

    def finalists(self, count: int) -> list[Point]:
        """Members to look at more closely: the knee, which is exported unless something else is asked for; the fastest
        where latency is an objective; those proven distinct; then those whose place is least certain."""
        if not self.members:
            return []
        rules = ("knee", "fastest") if self.results.by_latency else ("knee",)
        first = list({point.id: point for point in (*map(self.pick, rules), *self.steps)}.values())[:count]
        others = sorted((point for point in self.members if point not in first), key=_certainty)
        return [*first, *others[: count - len(first)]]

    def _bounded(self, rule: str, kind: str, number: str) -> Point:
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if not math.isfinite(limit):
            examples = " or ".join(repr(known) for known in RULES if "<=" in known)
            raise ConfigError(f"{rule!r}: {number!r} is not a number. Write for example {examples}.")
        aim, _, what = kind.partition(":")

        def bound(point: Point) -> float:
            proven = {"energy": point.energy_per_item_j.high, "latency": point.measurement.judged_latency_s.high}
            return proven.get(what, point.proven_loss)

        fit = [point for point in self.members if bound(point) <= limit]
        if fit:
            return fit[0] if aim == "cheapest" else min(fit, key=lambda point: (point.loss.mean, point.ratio.mean))
        miss = min(self.members, key=bound)
        told = {
            "loss": f"quality loss is at most {bound(miss):.4f}",
            "energy": f"energy per {self.results.item} is at most {bound(miss):.4g} J ({self.results.tier})",
            "latency": f"latency is at most {bound(miss):.4g} s",
        }
        raise ConfigError(
            f"{rule!r}: none of {len(self.members)} members is proven to keep to it (the upper end of the 95 % "
            f"interval counts). The nearest is {miss.id}: its {told[what]}."
        )

    def verdicts(self) -> tuple[str, ...]:
        """Plain sentences for what should give a user pause: who misses a server's limit, as measured last, and
        references and controls that beat members."""
        said = [self._late(point) for point in (*self.references, *self.members) if self._is_late(point)]
        for other in self.references:
            beaten = [point for point in self.members if dominates(other, point)]
            kind = "control" if other in self.controls else "reference"
            if beaten:
                figures = f"loss {other.loss.mean:.4f}, {quantity(other.energy_per_item_j.mean, 'J')}"
                told = "; ".join(
                    f"{point.id}: loss {point.loss.mean:.4f}, {quantity(point.energy_per_item_j.mean, 'J')}"
                    for point in beaten
                )
                said.append(
                    f"The {kind} {other.name!r} ({figures} per {self.results.item}, {self.results.tier}) beats "
                    f"{len(beaten)} of {len(self.members)} members of the front beyond the noise: {told}."
                )
        return tuple(said)

    def _is_late(self, point: Point) -> bool:
        served = point.measurement.served
        return served is not None and not (served.stable and served.p95_s.mean <= self.results.workload["p95_s"])

    def _late(self, point: Point) -> str:
        role = "control" if point in self.controls else "member" if point in self.members else "reference"
        return (
            f"The {role} {point.name!r} misses the limit of {quantity(self.results.workload['p95_s'], 's')}: "
            f"{latency(point.measurement)}."
        )

    def to_json(self) -> dict[str, Any]:
        """One JSON object without NaN or infinity; what is unknown is None."""
        results, carbon = self.results, self.results.carbon
        bill_j = results.bill.energy_j
        gated = {name: found for name, found in results.controls.items() if found.measurement is None}
        data: dict[str, Any] = {
            "study": results.study,
            "task": results.task,
            "workload": results.workload,
            "hardware": results.hardware,
            "unit": f"J per {results.item}",
            "repeatability": asdict(self.repeatability),
            "objectives": ["quality", "energy", *(["latency"] if results.by_latency else [])],
            "baseline": _told(self.baseline, carbon),
            "plain": _told(self.plain, carbon) if self.plain else None,
            "controls": {
                point.name: {**_told(point, carbon), "quality_loss": asdict(point.loss)} for point in self.controls
            }
            | {name: _unmeasured(found) for name, found in gated.items()},
            "front": [self._told_member(point) for point in self.members],
            "search": {
                "trials": len(results.trials),
                "measured": len(results.measured),
                "stopped": len(results.stopped),
                "saved_j": results.saved_j,
                "energy_j": bill_j,
                "energy_wh": bill_j / J_PER_WH,
                "joules": dict(results.bill.joules),
                "tier": results.tier,
                "boundary": results.boundary,
                "seconds": results.bill.total_s,
                "break_even_items": self.break_even_items,
            },
        }
        if carbon is not None:
            data["carbon"] = asdict(carbon)
            data["search"]["emission_g"] = carbon.emission_g(bill_j)
        cleaned: dict[str, Any] = _plain(data)
        return cleaned

    def _told_member(self, point: Point) -> dict[str, Any]:
        told = {
            "id": point.id,
            "probability": point.probability,
            **_told(point, self.results.carbon),
            "policy": point.trial.policy if point.trial else None,
            "kernels": [asdict(kernel) for kernel in point.evaluation.kernels],
            "layers": dict(point.evaluation.layers),
            "quality_loss": asdict(point.loss),
        }
        if point.published:
            test, test_loss = point.published.test, point.published.test_loss
            told["test"] = {"quality": test.mean, "quality_loss": asdict(test_loss)}
        if over := point.test_loss_over_seeds:
            told["test"]["over_seeds"] = {"trainings": 1 + len(point.seeds), "quality_loss": asdict(over)}
        return told

    @property
    def stopped_words(self) -> str:
        """What stopping trials early saved, as a sentence; nothing where none was."""
        count = len(self.results.stopped)
        said = f"{count} trials were stopped early" if count > 1 else "One trial was stopped early"
        return f"{said}, which saved about {quantity(self.results.saved_j, 'J')} of training." if count else ""

    def table(self) -> "Table":
        """For the terminal (rich): members, then what they are compared with."""
        from autogreen.table import front_table

        return front_table(self)


def _cheapest_first(point: Point) -> tuple[float, float, str]:
    return point.ratio.mean, point.loss.mean, point.id


def _certainty(point: Point) -> float:
    return abs((point.probability or 0.0) - 0.5)


def _overlap(a: Interval, b: Interval) -> bool:
    return a.low <= b.high and b.low <= a.high


def _ties(point: Point, others: Iterable[Point]) -> tuple[str, ...]:
    return tuple(other.id for other in others if other.id != point.id and all(map(_overlap, point.axes, other.axes)))


def _knee(members: tuple[Point, ...], best: Point) -> Point:
    """Normalised by the chord's ends, (1, 0) is the cheapest and (0, 1) the best: least x + y is furthest below it."""
    cheapest = members[0]
    width = cheapest.loss.mean - best.loss.mean
    height = math.log(best.ratio.mean / cheapest.ratio.mean)
    if width <= 0 or height <= 0:  # one policy is both
        return best if width > 0 else cheapest

    def height_over_ideal(point: Point) -> float:
        x = (point.loss.mean - best.loss.mean) / width
        return x + math.log(point.ratio.mean / cheapest.ratio.mean) / height

    return min(members, key=height_over_ideal)


def _told(point: Point, carbon: Carbon | None) -> dict[str, Any]:
    """tier and boundary hold for every figure of energy."""
    net, served = point.net_energy_per_item_j, point.measurement.served
    return {
        "quality": point.quality.mean,
        "quality_low": point.quality.low,
        "quality_high": point.quality.high,
        "energy_per_item_j": {**asdict(point.energy_per_item_j), "tier": point.measurement.tier},
        "net_energy_per_item_j": None if net is None else {**asdict(net), "tier": point.measurement.tier},
        **point.figures(carbon),
        "tier": point.measurement.tier,
        "boundary": point.measurement.boundary,
        "latency_s": point.measurement.latency_s.mean,
        **({} if served is None else {"p50_s": asdict(served.p50_s), "p95_s": asdict(served.p95_s)}),
        "size_bytes": point.evaluation.size_bytes,
        "communication": point.evaluation.communication,
    }


def _unmeasured(found: Evaluation) -> dict[str, Any]:
    """A control that was gated: its quality is known, its energy is not."""
    return {
        "quality": found.quality.mean,
        "quality_low": found.quality.low,
        "quality_high": found.quality.high,
        "energy_per_item_j": None,
        "latency_s": None,
        "size_bytes": found.size_bytes,
        "quality_loss": asdict(found.loss) if found.loss else None,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
