"""What a front claims when the finalists' two measurements differ by more than their intervals: by nominal coverage, by
the tables of Student's distribution, and by what is then told apart."""

import math
from dataclasses import replace

import numpy as np
import pytest

from autogreen.evaluation import Published
from autogreen.front import Front, standing
from autogreen.measurement import Interval
from autogreen.repeatability import Repeatability, at_least, half_width
from autogreen.results import Results
from autogreen.testing import scripted_results

PLACES = [(0.05 - 0.01 * number, 0.2 * 1.1**number) for number in range(5)]  # 10 % of energy apart, known to 1 %


def again(results: Results, factors: list[float], slower: float = 1.0) -> Results:
    """With a second measurement of the first trials, so many times as high."""
    found = {}
    for trial, factor in zip(results.trials, factors, strict=False):
        one = trial.evaluation
        assert one is not None and one.ratio is not None and one.loss is not None and one.measurement is not None
        ends = {name: getattr(one.ratio, name) * factor for name in ("mean", "low", "high")}
        latency = replace(one.measurement.latency_s, mean=one.measurement.latency_s.mean * slower)
        found[one.key] = Published(
            key=one.key,
            test=one.quality,
            test_loss=one.loss,
            ratio=Interval(**ends),
            measurement=replace(one.measurement, latency_s=latency),
        )
    return replace(results, published=found)


@pytest.mark.parametrize(("count", "between"), [(3, 0.1), (8, 0.03)])
def test_95_of_100_intervals_hold_the_truth(count: int, between: float) -> None:
    """Lognormal errors of whole processes; an interval of one process would hold it in some 20 of 100."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(2000):
        first, second = rng.normal(0.0, between, (2, count))
        interval = at_least(Interval(mean=0.5 * math.exp(second[0]), low=0.5, high=0.5), half_width(second - first))
        low, high = (interval.mean * math.exp(sign * half_width(second - first)) for sign in (-1, 1))
        held += low <= 0.5 <= high
    assert 0.945 < held / 2000 < 0.99, "never below what it says; its own difference is among those it is made from"


def test_students_table_and_too_few() -> None:
    assert half_width([0.2, -0.2, 0.2]) == pytest.approx(3.182 * 0.2 / math.sqrt(2), rel=1e-3)
    assert half_width([0.1] * 8) == pytest.approx(2.306 * 0.1 / math.sqrt(2), rel=1e-3)
    assert half_width([0.2, 0.2]) == half_width([]) == 0.0


def test_what_a_study_could_not_repeat_is_not_told_apart() -> None:
    results = scripted_results(PLACES, noise=(0.001, 0.01))
    assert len(Front.of(results).steps) == 5 and Front.of(results).repeatability.words == ""
    steady, loose = again(results, [1.001, 0.999, 1.001]), again(results, [1.08, 0.93, 1.06])
    assert len(Front.of(steady).steps) == 5
    found = Front.of(loose)
    assert len(found.steps) == 2, "±17 % each: the two ends only"
    assert found.repeatability.words.startswith("No interval of energy is narrower than ±17 %")
    assert found.to_json()["repeatability"]["ratio"] == pytest.approx(math.log(1.17), abs=0.01)
    for point in (*found.members, *found.controls, *([found.plain] if found.plain else [])):
        assert point.ratio.high / point.ratio.mean == pytest.approx(math.exp(found.repeatability.ratio))
        base_j = found.baseline.energy_per_item_j.mean
        assert point.energy_per_item_j.high == pytest.approx(point.ratio.high * base_j)
    assert (found.baseline.ratio.low, found.baseline.ratio.high) == (1.0, 1.0), "by definition"
    assert standing(loose) == standing(results), "who stands is the search's affair: what fell does not come back"


def test_two_repeats_tell_nothing_and_a_control_is_a_third() -> None:
    results = scripted_results(PLACES, noise=(0.001, 0.01))
    twice = again(results, [1.08, 0.93])
    assert Front.of(twice).repeatability == Repeatability(ratio=0.0, latency=0.0)
    control = results.controls["scratch"]
    assert control.measurement is not None and control.ratio is not None
    (some, *_) = twice.published.values()
    found = replace(some, key=control.key, ratio=control.ratio, measurement=control.measurement)
    third = Repeatability.of(replace(twice, published={**twice.published, control.key: found}))
    assert third.ratio == pytest.approx(half_width([math.log(1.08), math.log(0.93), 0.0]))


def test_latency_is_told_apart_by_its_own_repeats() -> None:
    results = scripted_results([(*place, 0.01) for place in PLACES], noise=(0.001, 0.01))
    found = Front.of(again(results, [1.0, 1.0, 1.0], slower=1.2))
    assert found.repeatability.ratio == pytest.approx(0.0, abs=1e-9)
    assert found.repeatability.latency == pytest.approx(3.182 * math.log(1.2) / math.sqrt(2), rel=1e-3)
    latencies = [point.latency_s for point in found.members]
    assert all(one is not None and one.high >= one.mean * 1.5 for one in latencies)
