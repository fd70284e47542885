"""Two fronts side by side: shared axes and reference point, what is gained and lost, and what is refused."""

import json
import math
from dataclasses import asdict, replace
from typing import Any
from xml.etree import ElementTree

import pytest

from autogreen.errors import StudyError
from autogreen.front import Front
from autogreen.measurement import Interval
from autogreen.point import dominates, hypervolume
from autogreen.policy import Effect
from autogreen.report.sides import drawing, html
from autogreen.results import Results
from autogreen.sides import ONE, Sides
from autogreen.table import sides_table
from autogreen.testing import scripted_evaluation, scripted_results

A = ((0.0, 0.8), (0.004, 0.3), (0.02, 0.2), (0.05, 0.15))
B = ((0.001, 0.5), (0.004, 0.31), (0.01, 0.12), (0.03, 0.09))
SAME = {"task": "toy", "task code": "abc", "space": "1"}


def results(places: Any = A, study: str = "a", first: int = 0, **fields: Any) -> Results:
    """The policies are named by where they stand in the list, from `first` on."""
    found = scripted_results(places, noise=(0.001, 0.02), study=study)
    trials = [
        replace(trial, evaluation=scripted_evaluation(loss, ratio, name=f"layer{first + n}", noise=(0.001, 0.02)))
        for n, (trial, (loss, ratio)) in enumerate(zip(found.trials, places, strict=True))
    ]
    return replace(found, **{"trials": tuple(trials), "fingerprint": SAME, **fields})


def sides(a: Results, b: Results) -> Sides:
    return Sides.of(Front.of(a), Front.of(b))


def other_baseline(found: Results, times: float) -> Results:
    """Another program as baseline, which takes so many times the energy; policies take what they took."""

    def scaled(energy: Interval) -> Interval:
        return Interval(**{end: times * value for end, value in asdict(energy).items()})

    base = found.baseline
    assert base.measurement is not None
    measured = replace(base.measurement, energy_per_item_j=scaled(base.measurement.energy_per_item_j))
    effect = Effect.of({"runtime": {"engine": "eager"}})
    trials = tuple(
        replace(
            t,
            evaluation=replace(
                t.evaluation, ratio=Interval(**{e: v / times for e, v in asdict(t.evaluation.ratio).items()})
            ),
        )
        for t in found.trials
        if t.evaluation and t.evaluation.ratio
    )
    return replace(found, trials=trials, baseline=replace(base, effect=effect, measurement=measured))


# --- what is gained and lost ------------------------------------------------------------------------------------------


def test_policies_gained_lost_and_on_both() -> None:
    """b measures layer2 and layer3 again, elsewhere, and two of its own: 4 (0.01, 0.12), 5 (0.03, 0.09)."""
    b = results((*A[2:], (0.01, 0.12), (0.03, 0.09)), "b", first=2)
    found = sides(results(), b)
    places = [(line, line.a or line.b) for line in found.lines]
    by_name = {next(iter(point.evaluation.effect.parts["quantization"])): line for line, point in places if point}
    assert [by_name[f"layer{n}"].on_a for n in range(6)] == [True, True, True, True, False, False]
    assert [by_name[f"layer{n}"].on_b for n in range(6)] == [False, False, False, False, True, True]
    assert {line.id for line in found.gained} == {by_name["layer4"].id, by_name["layer5"].id}
    assert {line.id for line in found.lost} == {by_name["layer2"].id, by_name["layer3"].id}
    assert by_name["layer2"].b is not None and not by_name["layer1"].beaten_by  # measured in b too, not on its front
    assert set(by_name["layer3"].beaten_by) == {by_name["layer4"].id, by_name["layer5"].id}
    assert "From a to b: 2 of 2 members are gained, 2 of 4 lost to better ones; 0 on both fronts" in found.summary()


def test_fronts_with_latency_are_compared_in_loss_and_joules() -> None:
    """And one that was searched without it may stand beside."""
    timed = scripted_results([(0.0, 0.5, 0.01), (0.0, 0.9, 0.005)], study="timed", noise=(0.0, 0.02))
    plain = scripted_results([(0.0, 0.5)], study="plain", noise=(0.0, 0.02))
    timed = replace(timed, fingerprint={"objectives": "quality, energy, latency"})
    plain = replace(plain, fingerprint={"objectives": "quality, energy"})
    for a, b in ((timed, plain), (plain, timed), (timed, timed)):
        found = Sides.of(Front.of(a), Front.of(b))
        assert found.gain.mean == pytest.approx(0.0) and not any(
            point.latency_s for point in (*found.ours, *found.theirs)
        )


def test_a_study_beside_its_like_gains_nothing() -> None:
    found = sides(results(), results(study="b"))
    assert found.gained == found.lost == () and all(line.on_a and line.on_b for line in found.lines)
    assert not any(line.beaten_by for line in found.lines)
    assert found.gain.mean == 0 and found.gain.low < 0 < found.gain.high
    assert "do not tell which reaches further" in found.summary() and found.warnings() == ()


def test_what_both_fronts_hold_beats_no_member_of_either() -> None:
    """By means layer0 is better than layer1, yet each study lets it stand, for nothing tells their losses apart."""
    places = [(0.0010, 0.3), (0.0011, 0.31)]
    found = sides(*(scripted_results(places, noise=(0.004, 0.001), study=name) for name in "ab"))
    first, second = found.ours
    assert dominates(first, second) and all(line.on_a and line.on_b for line in found.lines)
    assert not any(line.beaten_by for line in found.lines)


# --- axes -------------------------------------------------------------------------------------------------------------


def test_both_hypervolumes_are_taken_to_the_worse_of_both_reference_points() -> None:
    found = sides(results(reference_point=(0.1, 1.5)), results(B, "b", first=4, reference_point=(0.08, 3.0)))
    assert found.reference_point == (0.1, 3.0)
    expected = [
        hypervolume([(point.loss.mean, math.log(point.ratio.mean)) for point in points], (0.1, math.log(3.0)))
        for points in (found.ours, found.theirs)
    ]
    assert found.hypervolumes == pytest.approx(tuple(expected))
    assert found.gain.mean == pytest.approx(expected[1] - expected[0]) and found.gain.low > 0
    assert "b reaches further, beyond the intervals" in found.summary()


def test_the_spread_of_a_gain_is_that_of_its_members_errors() -> None:
    """One member each at (0.02, 0.2), reference (0.1, 2): area (0.1 - x) * ln(2 / r); its error by derivatives."""
    found = sides(results([(0.02, 0.2)]), results([(0.02, 0.2)], "b", first=1))
    error = math.hypot(math.log(10) * 0.001 / 1.96, 0.08 * 0.02 / 1.96)
    assert (found.gain.high - found.gain.low) / 2 == pytest.approx(1.96 * math.sqrt(2) * error, rel=0.1)


def test_with_one_baseline_ratios_are_the_scale_and_drift_is_told() -> None:
    drifted = results(B, "b", first=4)
    base = drifted.baseline
    assert base.measurement is not None
    warm = Interval(mean=1.1e-3, low=1.09e-3, high=1.11e-3)
    drifted = replace(drifted, baseline=replace(base, measurement=replace(base.measurement, energy_per_item_j=warm)))
    found = sides(results(), drifted)
    assert found.scale == ONE
    assert [point.ratio for point in found.theirs] == [point.ratio for point in Front.of(drifted).members]
    cheapest = found.theirs[0]
    assert cheapest.energy_per_item_j.mean == pytest.approx(cheapest.ratio.mean * 1e-3)  # drawn on a's scale
    assert "1.00 mJ in a and 1.10 mJ in b (+10.0 %)" in " ".join(found.warnings())


def test_another_baseline_is_brought_to_the_first_and_intervals_widen() -> None:
    plain, other = results(B, "b", first=4), other_baseline(results(B, "b", first=4), 2.0)
    one, found = sides(results(), plain), sides(results(), other)
    assert found.scale.mean == pytest.approx(2.0)
    for before, after in zip(one.theirs, found.theirs, strict=True):
        assert after.ratio.mean == pytest.approx(before.ratio.mean)
        width = math.sqrt(3) * 0.02  # its own 2 %, and those of both baselines
        assert after.ratio.high / after.ratio.mean - 1 == pytest.approx(width, rel=0.02)
    assert found.hypervolumes[1] != one.hypervolumes[1]  # its reference point lies at twice the energy
    assert "has another (uncompressed, eager), which took 2.000" in found.summary()


def test_other_versions_and_another_quality_of_the_baseline_are_told() -> None:
    b = results(study="b", hardware={**results().hardware, "torch": "3.0"})
    b = replace(b, baseline=replace(b.baseline, quality=Interval(mean=0.97, low=0.96, high=0.98)))
    said = " ".join(sides(results(), b).warnings())
    assert "quality differs by 0.0100" in said and "b with 3.0" in said


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tier": "measured"}, "tier: 'estimated' and 'measured'"),
        ({"workload": {"kind": "single", "batch": 1}}, "workload: .*single"),
        ({"hardware": {"device": "cpu", "cpu": "Other", "cores": 2, "cpu_capability": "AVX2"}}, "device: .*Other"),
        ({"boundary": "GPU 3"}, "boundary: 'scripted' and 'GPU 3'"),
        ({"item": "token"}, "item: 'sample' and 'token'"),
        ({"fingerprint": {**SAME, "task": "digits"}}, "task: 'toy' and 'digits'"),
        ({"fingerprint": {**SAME, "task code": "xyz"}}, "task code: 'abc' and 'xyz'"),
        ({"fingerprint": {**SAME, "data": "new"}}, "data: 'None' and 'new'"),
    ],
)
def test_what_was_not_measured_alike_is_refused_by_name(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=f"'a' and 'b' cannot stand side by side.*{said}.*autogreen compare"):
        sides(results(), results(B, "b", **changed))


def test_another_space_or_constraint_is_what_studies_may_differ_in() -> None:
    assert sides(results(), results(B, "b", fingerprint={**SAME, "space": "2", "constraints": "x"})).theirs


# --- what is told -----------------------------------------------------------------------------------------------------


def test_json_table_and_page_tell_every_policy() -> None:
    found = sides(results(), results(B, "<b>", first=3))
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {policy["id"] for policy in told["policies"]} == {line.id for line in found.lines}
    assert told["reference_point"] == {"loss": 0.1, "ratio": 2.0} and told["tier"] == "estimated"
    assert told["hypervolume"]["gain"]["mean"] == pytest.approx(told["hypervolume"]["b"] - told["hypervolume"]["a"])
    assert told["gained"] == [line.id for line in found.gained]
    cells = [str(cell) for column in sides_table(found).columns for cell in column.cells]
    page = html(found)
    for line in found.lines:
        assert line.id in cells and line.id in page
    assert "<b>, side" not in page and "&lt;b&gt;" in page and "<script" not in page
    root = ElementTree.fromstring(drawing(found).svg())
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    beaten = sum(line.on_a and bool(line.beaten_by) for line in found.lines)
    assert len(circles) == len(found.ours) + 2 and sum(c.get("fill") == "#ffffff" for c in circles) == beaten + 1


def test_an_empty_front_has_no_area() -> None:
    nothing = results(study="b")
    nothing = replace(nothing, trials=tuple(replace(trial, feasible=False) for trial in nothing.trials))
    found = sides(results(), nothing)
    assert found.hypervolumes[1] == 0 and found.gain.high < 0 and found.theirs == ()
    assert "a reaches further" in found.summary() and "<svg" in html(found)
