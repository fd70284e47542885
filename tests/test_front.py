"""The front: dominance beyond noise against definitions and brute force, every pick rule, and what is printed."""

import io
import json
import math
import random
import subprocess
import sys
from dataclasses import asdict, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from autogreen.errors import ConfigError, StudyError
from autogreen.evaluation import Evaluation, Published
from autogreen.front import Front, hypervolume, progress, standing
from autogreen.measurement import Interval
from autogreen.membership import probabilities
from autogreen.point import place_trial
from autogreen.results import Results, TrialResult
from autogreen.testing import scripted_evaluation, scripted_results
from autogreen.wording import plain_spread, quantity, spread, words


def front(*places: tuple[float, ...], **settings: Any) -> Front:
    return Front.of(scripted_results(places, **settings))


def numbers(found: Front) -> list[int]:
    return [point.trial.number for point in found.members if point.trial]


def changed(results: Results, number: int, **fields: Any) -> Results:
    trials = list(results.trials)
    trials[number] = replace(trials[number], **fields)
    return replace(results, trials=tuple(trials))


def published(evaluation: Evaluation, *, loss: Interval, ratio: Interval) -> dict[str, Published]:
    assert evaluation.measurement is not None
    test = Interval(mean=0.9, low=0.85, high=0.95)
    fresh = Published(key=evaluation.key, test=test, test_loss=loss, ratio=ratio, measurement=evaluation.measurement)
    return {evaluation.key: fresh}


# --- membership -------------------------------------------------------------------------------------------------------


def test_what_is_clearly_beaten_leaves_and_what_is_within_noise_stays() -> None:
    found = front((0.00, 0.50), (0.05, 0.20), (0.06, 0.40), (0.0005, 0.503), (0.02, 0.30))
    assert numbers(found) == [1, 4, 0, 3]  # cheapest first; 2 is dominated by 1 and 4; 3 only by luck behind 0
    assert [point.trial.number for point in found.others if point.trial] == [2]
    by_number = {point.trial.number: point for point in found.members if point.trial}
    assert by_number[0].ties == (by_number[3].id,) and by_number[3].ties == (by_number[0].id,)
    assert by_number[1].ties == ()


@pytest.mark.parametrize(("loss", "ratio"), [(0.010, 0.51), (0.0105, 0.505), (0.012, 0.49), (0.02, 0.6)])
def test_of_two_the_probability_is_the_closed_form(loss: float, ratio: float) -> None:
    """B is dominated where both differences, each normal, come out below 0."""
    places = [(0.010, 0.50), (loss, ratio)]
    first, second = (place_trial(results, trial) for results in [scripted_results(places)] for trial in results.trials)
    assert first is not None and second is not None
    worse = NormalDist(loss - 0.010, math.hypot(0.002, 0.002) / 1.96).cdf(0)
    spread = [math.log(point.ratio.high / point.ratio.low) / 2 / 1.96 for point in (first, second)]
    dearer = NormalDist(math.log(ratio / 0.50), math.hypot(*spread)).cdf(0)
    expected = [1 - worse * dearer, 1 - (1 - worse) * (1 - dearer)]
    assert probabilities([first, second]) == pytest.approx(expected, abs=0.04)  # of 1,000 draws


def test_membership_is_the_definition_on_random_points() -> None:
    """Draws of our own, every pair looked at: who is undominated in a tenth of them."""
    chance, rng = random.Random(1), np.random.default_rng(5)
    places = [(chance.uniform(0, 0.05), chance.uniform(0.1, 1.5)) for _ in range(60)]
    found = front(*places, noise=(0.004, 0.1))
    means = np.array([(loss, math.log(ratio)) for loss, ratio in places])
    errors = np.array([0.004, (math.log(1.1) - math.log(0.9)) / 2]) / 1.96
    held = np.zeros(60)
    for _ in range(1000):
        drawn = means + errors * rng.standard_normal((60, 2))
        held += [not (drawn < place).all(1).any() for place in drawn]
    shares = {point.trial.number: point.probability for point in found.members if point.trial}
    assert all(share == pytest.approx(held[number] / 1000, abs=0.06) for number, share in shares.items())
    assert {i for i in range(60) if held[i] > 160} <= set(shares) <= {i for i in range(60) if held[i] > 40}
    assert len(found.members) + len(found.others) == 60


def test_what_is_far_behind_does_not_change_what_is_told_of_the_others() -> None:
    near = [(0.05 - 0.002 * i, 0.2 + 0.03 * i) for i in range(20)]
    alone = {point.id: point.probability for point in front(*near).members}
    beside = front(*near, *[(0.3 + 0.001 * i, 5.0) for i in range(50)])
    assert {point.id: point.probability for point in beside.members} == alone
    assert len(beside.others) >= 50


def test_equals_stay_both_and_what_has_no_spread_is_decided_by_means() -> None:
    found = front((0.01, 0.5), (0.01, 0.5), (0.02, 0.6), (0.02, 0.4), noise=(0.0, 0.0))
    assert numbers(found) == [3, 0, 1] and {point.probability for point in found.members} == {1.0}


def test_steps_are_the_longest_chain_and_pairwise_proven() -> None:
    found = front(*[(0.05 - 0.001 * i, 0.2 + 0.02 * i) for i in range(40)], noise=(0.002, 0.05))
    assert len(found.members) == 40
    steps = found.steps
    assert len(steps) >= 5
    for i, cheap in enumerate(steps):
        for good in steps[i + 1 :]:
            assert cheap.ratio.high < good.ratio.low and good.loss.high < cheap.loss.low
    assert not any(other.id in step.ties for step in steps for other in steps)


def test_steps_are_proven_by_pairs_where_intervals_touch() -> None:
    """Loss intervals overlap, but example by example the dearer policy is better: 0 -> 1 -> 2, not 2 -> 3."""
    results = scripted_results([(0.05, 0.2), (0.045, 0.3), (0.04, 0.4), (0.039, 0.5)], noise=(0.01, 0.01))
    keys = {trial.evaluation.key: trial.number for trial in results.trials if trial.evaluation}

    def between(worse: str, better: str) -> Interval | None:
        proven = keys[worse] < keys[better] <= 2
        return Interval(mean=0.005, low=0.001 if proven else -0.001, high=0.009)

    assert len(Front.of(results).steps) == 1
    found = Front.of(replace(results, between=between)).steps
    assert [point.trial.number for point in found if point.trial] == [0, 1, 2]


def test_only_measured_feasible_trials_and_one_an_effect() -> None:
    results = scripted_results([(0.0, 0.5), (0.01, 0.1), (0.01, 0.2), (0.02, 0.05)])
    results = changed(results, 1, feasible=False)
    results = changed(results, 2, state="gated", evaluation=scripted_evaluation(0.01, 0.2, name="g", status="gated"))
    twin = replace(results.trials[0], number=4, evaluation=scripted_evaluation(0.0, 0.4, name="layer0"))
    waiting = TrialResult(number=5, state="waiting", params={}, policy={})
    found = Front.of(replace(results, trials=(*results.trials, twin, waiting)))
    assert numbers(found) == [3, 0]
    assert len({point.id for point in found.members}) == 2


def test_a_trial_that_is_not_finite_never_enters() -> None:
    results = scripted_results([(0.0, 0.5), (0.01, 0.1)])
    nan = Interval(mean=math.nan, low=math.nan, high=math.nan)
    broken = replace(results.trials[1].evaluation, ratio=nan) if results.trials[1].evaluation else None
    assert numbers(Front.of(changed(results, 1, evaluation=broken))) == [0]


def test_a_published_member_counts_with_its_fresh_energy() -> None:
    results = scripted_results([(0.0, 0.5), (0.01, 0.2), (0.016, 0.22)])
    evaluation = results.trials[1].evaluation
    assert evaluation is not None
    fresh = published(
        evaluation, loss=Interval(mean=0.02, low=0.01, high=0.03), ratio=Interval(mean=0.3, low=0.29, high=0.31)
    )
    assert numbers(Front.of(results)) == [1, 0]
    found = Front.of(replace(results, published=fresh))
    assert numbers(found) == [1, 0]  # 1 was lucky, but 2, beaten in the search, has no artifact any more
    assert found.members[0].energy_per_item_j.mean == pytest.approx(0.3e-3)
    assert found.members[0].proven_loss == 0.03
    assert [point.trial.number for point in found.others if point.trial] == [2]


def test_trainings_from_other_seeds_give_an_interval_of_their_own() -> None:
    """Losses 0.01, 0.02, 0.03 on test: mean 0.02, Student's t of 2 degrees of freedom 4.303 (a table's)."""
    results = scripted_results([(0.01, 0.5)])
    evaluation = results.trials[0].evaluation
    assert evaluation is not None
    ratio = Interval(mean=0.5, low=0.49, high=0.51)
    found = [
        published(evaluation, loss=Interval(mean=loss, low=0.0, high=0.05), ratio=ratio)[evaluation.key]
        for loss in (0.01, 0.02, 0.03)
    ]
    (point,) = Front.of(replace(results, published={evaluation.key: found[0]})).members
    assert point.test_loss_over_seeds is None
    both = replace(results, published={evaluation.key: found[0]}, seeds={evaluation.key: tuple(found[1:])})
    (point,) = Front.of(both).members
    over = point.test_loss_over_seeds
    assert over is not None and over.mean == pytest.approx(0.02)
    assert over.high - over.mean == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-3)
    told = Front.of(both).to_json()["front"][0]["test"]["over_seeds"]
    assert told == {"trainings": 3, "quality_loss": pytest.approx(asdict(over))}
    cells = [str(cell) for column in Front.of(both).table().columns for cell in column.cells]
    assert any("test, 3 trainings:" in cell for cell in cells)


def test_what_is_published_can_beat_what_stands_but_bring_nothing_back() -> None:
    chance = random.Random(2)
    results = scripted_results([(chance.uniform(0, 0.05), chance.uniform(0.1, 1.0)) for _ in range(30)])
    stood: set[str] | None = None
    for end in range(len(results.trials), 3, -3):  # fewer trials: whatever stands among more stood among them too
        now = set(standing(replace(results, trials=results.trials[:end])))
        assert stood is None or stood & {trial.evaluation.effect.id for trial in results.trials[:end]} <= now  # type: ignore[union-attr]
        stood = now
    for trial in results.measured:
        assert trial.evaluation is not None and trial.evaluation.ratio is not None
        worse = Interval(**{end: 1.2 * value for end, value in asdict(trial.evaluation.ratio).items()})
        fresh = published(trial.evaluation, loss=Interval(mean=0.02, low=0.01, high=0.03), ratio=worse)
        members = {point.id for point in Front.of(replace(results, published=fresh)).members}
        assert members <= set(standing(results))


def test_references_without_a_pair_get_a_wide_interval_and_gated_controls_no_place() -> None:
    results = scripted_results([(0.0, 0.5)])
    results = replace(
        results,
        plain=replace(results.plain, loss=None, ratio=None),
        controls={"hopeless": scripted_evaluation(0.5, 0.1, name="h", status="gated")},
    )
    found = Front.of(results)
    assert found.plain is not None and found.controls == ()
    assert found.plain.ratio.mean == pytest.approx(1.5) and found.plain.ratio.high > 1.5 * 1.03
    assert found.plain.loss.low == pytest.approx(-0.02)
    told = found.to_json()["controls"]["hopeless"]
    assert told["energy_per_item_j"] is None and told["quality_loss"]["mean"] == pytest.approx(0.5)


def test_without_a_measured_baseline_there_is_no_front() -> None:
    results = scripted_results([(0.0, 0.5)])
    with pytest.raises(StudyError, match="baseline is not measured"):
        Front.of(replace(results, baseline=replace(results.baseline, measurement=None)))


# --- hypervolume ------------------------------------------------------------------------------------------------------


def test_hypervolume_closed_forms() -> None:
    assert hypervolume([], (1, 1)) == 0
    assert hypervolume([(0.25, 0.5)], (1, 1)) == pytest.approx(0.375)
    assert hypervolume([(0, 0.5), (0.5, 0), (0.5, 0.5), (0, 0.5)], (1, 1)) == pytest.approx(0.75)
    assert hypervolume([(1, 0), (0, 1), (2, -5), (-5, 2)], (1, 1)) == 0
    assert hypervolume([(-1, -1)], (1, 1)) == pytest.approx(4)
    for broken in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            hypervolume([(0, broken)], (1, 1))


def test_hypervolume_against_monte_carlo() -> None:
    import numpy as np

    random_ = np.random.default_rng(0)
    points = random_.uniform(0, 1.1, (25, 2)) ** 0.5
    samples = random_.uniform(0, 1, (200_000, 2))
    covered = np.zeros(len(samples), dtype=bool)
    for point in points:
        covered |= (samples >= point).all(1)
    assert hypervolume(points, (1, 1)) == pytest.approx(covered.mean(), abs=0.004)


def test_hypervolume_of_three_axes_against_another_library() -> None:
    from optuna._hypervolume import compute_hypervolume

    random_ = np.random.default_rng(1)
    points = random_.uniform(0, 1.1, (30, 3)) ** 0.5
    inside = points[(points < 1).all(1)]
    assert hypervolume(points, (1, 1, 1)) == pytest.approx(compute_hypervolume(inside, np.ones(3)))
    assert hypervolume([], (1, 1, 1)) == hypervolume([(0, 0, 2)], (1, 1, 1)) == 0
    assert hypervolume([(0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0, 0, 2)], (1, 1, 1)) == pytest.approx(0.125)


def test_hypervolume_of_the_front_is_in_loss_and_log_energy_and_grows_over_trials() -> None:
    results = scripted_results([(0.05, 1.0), (0.2, 0.1), (0.05, 0.5), (0.06, 0.6)])
    expected = 0.05 * math.log(2.0 / 0.5)
    assert Front.of(results).hypervolume == pytest.approx(expected)
    areas = progress(results)
    assert [number for number, _ in areas] == [0, 1, 2, 3]
    assert [area for _, area in areas] == pytest.approx([0.05 * math.log(2), 0.05 * math.log(2), expected, expected])


# --- latency ----------------------------------------------------------------------------------------------------------


def test_two_devices_stand_where_latency_is_an_objective_and_nowhere_else() -> None:
    places = ((0.0, 0.9), (0.0, 1.7), (0.0, 1.8))
    same = (0.0, 0.02)  # outputs, and so losses, are equal
    assert numbers(front(*places, noise=same)) == [0]
    timed = ((*place, latency_s) for place, latency_s in zip(places, (0.010, 0.006, 0.007), strict=True))
    found = front(*timed, noise=same)
    assert numbers(found) == [0, 1], "the third is slower and dearer than the second"
    assert found.pick("fastest").trial.number == 1 and found.pick("cheapest:latency<=0.0065").trial.number == 1
    assert [point.trial.number for point in found.finalists(2)] == [0, 1]
    volume = 0.1 * (math.log(2 / 0.9) * math.log(0.02 / 0.01) + math.log(2 / 1.7) * math.log(0.01 / 0.006))
    assert found.hypervolume == pytest.approx(volume)
    assert progress(found.results)[-1][1] == pytest.approx(volume)
    assert found.to_json()["objectives"] == ["quality", "energy", "latency"]
    with pytest.raises(ConfigError, match=r"The nearest is .* its latency is at most 0\.00606 s"):
        found.pick("cheapest:latency<=0.001")


def test_losses_that_differ_by_rounding_are_equal() -> None:
    """Two programs that compute the same; the second costs twice as much."""
    assert numbers(front((1e-9, 0.5), (0.0, 1.0), noise=(2e-9, 0.02))) == [0]
    assert numbers(front((1e-3, 0.5), (0.0, 1.0), noise=(2e-9, 0.02))) == [0, 1], "a hundredth of what is tolerated"


def test_membership_on_three_axes_is_as_counted_one_by_one() -> None:
    from autogreen.membership import _undominated

    places = np.random.default_rng(0).integers(0, 4, (20, 12, 3)).astype(float)
    found = _undominated(places)
    for draw, held in zip(places, found, strict=True):
        for mine, stays in zip(draw, held, strict=True):
            beaten = any((other <= mine).all() and (other < mine).any() for other in draw)
            assert stays == (not beaten)
    flat = np.random.default_rng(1).uniform(size=(20, 12, 3))
    flat[..., 2] = 1.0
    assert (_undominated(flat) == _undominated(flat[..., :2])).all(), "an axis that says nothing changes nothing"


# --- pick -------------------------------------------------------------------------------------------------------------


PLACES = ((0.0, 0.8), (0.004, 0.3), (0.02, 0.2), (0.05, 0.15))


def picked(rule: str, results: Results | None = None) -> int:
    trial = Front.of(results or scripted_results(PLACES, noise=(0.001, 0.02))).pick(rule).trial
    assert trial is not None
    return trial.number


@pytest.mark.parametrize(
    ("rule", "number"),
    [
        ("knee", 1),
        ("cheapest", 3),
        ("best", 0),
        ("cheapest:loss<=0.021", 2),
        ("cheapest: loss <= 0.0209", 1),
        ("best:energy<=0.00031", 1),
        ("best:energy<=0.0003", 2),
        ("best:energy<=1e9", 0),
        ("cheapest:latency<=0.0101", 3),
    ],
)
def test_rules(rule: str, number: int) -> None:
    assert picked(rule) == number


def test_an_id_or_its_beginning_picks_that_member() -> None:
    found = front(*PLACES)
    for point in found.members:
        assert found.pick(point.id) is point
        shortest = next(
            point.id[:n] for n in range(1, 13) if sum(o.id.startswith(point.id[:n]) for o in found.members) == 1
        )
        assert found.pick(shortest) is point


def test_once_published_the_loss_on_test_data_decides() -> None:
    results = scripted_results(PLACES, noise=(0.001, 0.02))
    evaluation = results.trials[3].evaluation
    assert evaluation is not None and evaluation.ratio is not None
    good, bad = Interval(mean=0.001, low=0.0, high=0.002), Interval(mean=0.2, low=0.1, high=0.3)
    for rule, loss, number in (("cheapest:loss<=0.01", good, 3), ("cheapest:loss<=0.06", bad, 2)):
        fresh = published(evaluation, loss=loss, ratio=evaluation.ratio)
        assert picked(rule, replace(results, published=fresh)) == number


def test_knee_of_one_of_two_and_of_a_flat_front() -> None:
    assert numbers(front((0.01, 0.5))) == [0] and front((0.01, 0.5)).pick("knee").trial is not None
    assert picked("knee", scripted_results([(0.0, 0.5), (0.05, 0.1)])) == 1
    assert picked("knee", scripted_results([(0.0101, 0.5), (0.0101, 0.501)])) == 0


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("kne", "no rule or member 'kne'. Did you mean 'knee'"),
        ("", "Rules: knee, cheapest"),
        ("cheapest:loss<=-1", "The nearest is .* its quality loss is at most 0.0010"),
        ("cheapest:loss<=lots", "'lots' is not a number"),
        ("cheapest:loss<=nan", "'nan' is not a number"),
        ("best:energy<=1e-9", r"energy per sample is at most 0.000153 J \(estimated\)"),
        ("cheapest:energy<=1", "no rule"),
        ("zzzz", "Members: "),
    ],
)
def test_rules_that_nothing_satisfies(rule: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        picked(rule)


def test_an_ambiguous_id_names_those_it_begins() -> None:
    found = front(*[(0.05 - 0.001 * i, 0.2 + 0.02 * i) for i in range(20)])
    letter = next(p.id[0] for p in found.members if sum(o.id[0] == p.id[0] for o in found.members) > 1)
    with pytest.raises(ConfigError, match=f"'{letter}' begins . ids"):
        found.pick(letter)


def test_an_empty_front_says_why() -> None:
    results = changed(scripted_results([(0.0, 0.5)]), 0, feasible=False)
    with pytest.raises(ConfigError, match="1 of 1 trials were measured and none of them is feasible"):
        Front.of(results).pick("knee")
    assert Front.of(results).break_even_items is None
    assert Front.of(results).hypervolume == 0


# --- what is told -----------------------------------------------------------------------------------------------------


def test_json_is_the_promised_object() -> None:
    results = scripted_results(PLACES)
    evaluation = results.trials[3].evaluation
    assert evaluation is not None and evaluation.ratio is not None
    fresh = published(evaluation, loss=Interval(mean=0.001, low=0.0, high=0.002), ratio=evaluation.ratio)
    data = Front.of(replace(results, published=fresh)).to_json()
    promised = "study task workload hardware unit repeatability objectives baseline plain controls front search"
    assert list(data) == promised.split()
    told = {
        "quality",
        "quality_low",
        "quality_high",
        "energy_per_item_j",
        "latency_s",
        "size_bytes",
        "communication",
        "tier",
        "boundary",
    }
    told |= {"net_energy_per_item_j", "energy_per_item_wh", "energy_delay_js"}
    assert set(data["baseline"]) == set(data["plain"]) == told
    assert set(data["controls"]["scratch"]) == told | {"quality_loss"}
    assert set(data["front"][1]) == told | {"id", "probability", "policy", "kernels", "layers", "quality_loss"}
    assert data["front"][0]["test"] == {"quality": 0.9, "quality_loss": {"mean": 0.001, "low": 0.0, "high": 0.002}}
    assert data["front"][0]["energy_per_item_j"]["tier"] == "estimated"
    assert data["front"][0]["energy_per_item_j"]["mean"] == pytest.approx(0.15e-3)
    assert data["front"][0]["policy"] == {"quantization": [{"target": "layer3", "scheme": "w8a8_static"}]}
    assert data["front"][0]["kernels"] == [{"name": "qlinear", "precision": "int8", "calls": 1}]
    assert data["search"] == {
        "trials": 4,
        "measured": 4,
        "stopped": 0,
        "saved_j": 0.0,
        "energy_j": 900.0,
        "joules": {"training": 540.0, "measuring": 270.0, "wasted": 90.0},
        "energy_wh": 0.25,
        "tier": "estimated",
        "boundary": "scripted",
        "seconds": 100.0,
        "break_even_items": pytest.approx(900 / 0.85e-3),
    }
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_json_has_no_nan_whatever_the_user_put_in() -> None:
    results = scripted_results([(0.0, 1.5)])
    results = replace(results, hardware={"watts": math.inf, "list": (math.nan, 1)}, experiment={})
    data = Front.of(results).to_json()
    assert data["hardware"] == {"watts": None, "list": [None, 1]}
    assert data["search"]["break_even_items"] is None  # dearer than the baseline: it never pays
    json.dumps(data, allow_nan=False)


def shown(found: Front) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(found.table())
    return console.export_text()


def test_table_says_tier_range_and_steps() -> None:
    text = shown(front(*PLACES, (0.0005, 0.801), noise=(0.001, 0.02)))
    assert "estimated" in text and "150 µJ (147–153)" in text
    assert "73.5 µJ to 459 µJ" in text  # half to three times: the scripted meter's own range
    assert text.count("●") == 4 + 1 and "○" in text
    assert "baseline" in text and "plain use" in text and "scratch" in text and "w8a8_static ×1, inductor" in text
    words = " ".join(text.split())
    assert "900 J = 250 mWh (estimated; training 60%, measuring 30%, wasted 10%): paid back after" in words
    assert "after 1,058,824 samples. Energy of: scripted." in words
    assert "floor" not in text  # no column where nothing is known


def test_table_takes_names_as_they_are() -> None:
    results = scripted_results([(0.0, 0.5)], study="[red]x[/red]", tier="measured")
    results = replace(results, controls={"[/bold]": results.controls["scratch"]})
    text = shown(Front.of(results))
    assert "[red]x[/red]" in text and "[/bold]" in text and "energy per sample, measured" in text
    assert "possible" not in text


def test_a_control_that_wins_is_said() -> None:
    results = scripted_results(PLACES)
    assert Front.of(results).verdicts() == ()
    better = replace(results, controls={"scratch": scripted_evaluation(0.01, 0.1, name="s")})
    (said,) = Front.of(better).verdicts()
    assert "control 'scratch' (loss 0.0100, 100 µJ per sample, estimated) beats 2 of 4 members" in said
    dear = scripted_results([(0.01, 1.2)])
    assert "reference 'baseline'" in Front.of(dear).verdicts()[0]


def test_wording() -> None:
    assert quantity(0.00231, "J") == "2.31 mJ" and quantity(1234, "J") == "1.23 kJ" and quantity(0, "J") == "0 J"
    assert quantity(0.0009999, "s") == "1000 µs" and quantity(1e-3, "J") == "1.00 mJ"
    assert quantity(-0.002, "J") == "-2.00 mJ" and quantity(math.inf, "J") == "inf J"
    assert spread(Interval(mean=2.31e-3, low=2.2e-3, high=2.42e-3), "J") == "2.31 mJ (2.20–2.42)"
    assert plain_spread(Interval(mean=0.003, low=-0.001, high=-0.0)) == "0.0030 (−0.0010 to 0.0000)"
    effect = {
        "pruning": {"channel": {"a": {"width": 16, "of": 32, "importance": "magnitude"}, "b": {"width": 64, "of": 64}}},
        "distillation": {"epochs": 3, "alpha": 0.5},
        "quantization": {"a": "w8a8_static", "b": "bf16", "c": "w8a8_static"},
        "parallelism": {"threads": 1, "batch": 64},
        "runtime": {"engine": "inductor", "mode": "max-autotune", "cuda_graph": True},
        "sparsity": {"kind": "2:4"},
    }
    said = words(effect)
    for part in (
        "−17 % channels ×2",
        "distilled 3 epochs",
        "bf16 ×1, w8a8_static ×2",
        "1 thread, batch 64",
        "inductor max-autotune, CUDA graph",
        "sparsity",
    ):
        assert part in said
    assert words({"parallelism": {"threads": 2}, "runtime": {"engine": "eager"}}) == "uncompressed, 2 threads, eager"


def test_importing_it_is_light() -> None:
    heavy = ["torch", "mlflow", "plotly", "rich", "numpy", "pandas"]
    code = "import sys, autogreen.front, autogreen.tracking, autogreen.page\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
