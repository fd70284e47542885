"""Trials that are stopped while they train."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from safetensors.torch import load_file
from torch import nn

from autogreen import fidelity, page
from autogreen.evaluate import Evaluator
from autogreen.evaluation import Evaluation, Request
from autogreen.fidelity import FEWEST, SHARES, Look, Rung, Stakes, StopTraining
from autogreen.front import Front
from autogreen.measurement import Interval, Protocol
from autogreen.policy import Effect
from autogreen.store import Store
from autogreen.sweep import sweep
from autogreen.testing import ScriptedMeter, scripted_evaluation, scripted_results
from autogreen.workbench import Setup
from autogreen.workload import Workload

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch", "ignore::UserWarning:torch_pruning"
)


def around(mean: float, half: float = 0.001) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half)


def rung(place: int, loss: float, epochs: int = 0) -> Rung:
    return Rung(place=place, epochs=epochs, loss=around(loss))


def trained(results, losses_at_rungs, *, training=100.0, other=10.0, epochs=9):
    """Every trial of scripted results, as if trained, with such losses above its last one at each rung."""
    trials = []
    for trial, more in zip(results.trials, losses_at_rungs, strict=True):
        parts = {**trial.evaluation.effect.parts, "distillation": {"epochs": epochs}}
        evaluation = replace(
            trial.evaluation,
            effect=Effect.of(parts),
            joules={"training": training, "measuring": other},
            rungs=tuple(rung(place, trial.evaluation.loss.mean + extra) for place, extra in enumerate(more)),
        )
        trials.append(replace(trial, evaluation=evaluation))
    return replace(results, trials=tuple(trials))


PLACES = [(0.00, 0.5), (0.01, 0.4), (0.02, 0.3), (0.03, 0.2), (0.04, 0.19)]
GAINED = [(0.5, 0.02, 0.010), (0.6, 0.03, 0.012), (0.4, 0.02, 0.008), (0.7, 0.04, 0.02), (0.3, 0.01, 0.005)]


def stakes() -> Stakes:
    found = Stakes.of(trained(scripted_results(PLACES), GAINED))
    assert found is not None
    return found


def test_stakes_are_told_by_finished_trials() -> None:
    found = stakes()
    assert set(found.front) == set(PLACES)
    assert found.gained[0] == pytest.approx((0.5, 0.6, 0.4, 0.7, 0.3))
    assert found.gained[2] == pytest.approx((0.010, 0.012, 0.008, 0.02, 0.005))
    assert found.epoch_j == pytest.approx(100 / 9)


def test_nothing_is_looked_at_where_training_is_cheap_or_little_is_known() -> None:
    results = scripted_results(PLACES)
    assert Stakes.of(results) is None  # nothing was trained
    assert Stakes.of(trained(results, GAINED, training=15.0)) is None
    fewer = trained(results, GAINED)
    assert Stakes.of(replace(fewer, trials=fewer.trials[: FEWEST - 1])) is None
    unseen = Stakes.of(trained(results, [()] * 5))
    assert unseen is not None and unseen.gained == {} and not unseen.hopeless(rung(2, 9.0), around(2.0), around(1.0))


@pytest.mark.parametrize(
    ("loss", "ratio", "hopeless"),
    [
        (0.060, 0.305, True),  # a lucky end at 0.040 and 0.3: (0.03, 0.2) loses less and takes less
        (0.045, 0.305, True),  # at 0.025: (0.02, 0.3)
        (0.039, 0.305, False),  # at 0.019: nothing that cheap loses so little
        (0.060, 0.185, False),  # cheaper than all
        (0.019, 0.900, False),  # dear, but it may lose less than any
        (0.021, 0.900, True),
    ],
)
def test_a_trial_is_hopeless_when_its_lucky_end_is_beaten_on_both_axes(loss, ratio, hopeless) -> None:
    assert stakes().hopeless(rung(2, loss), around(ratio), around(0.001)) is hopeless


def test_what_answers_sooner_than_all_that_is_cheaper_has_hope_where_latency_counts() -> None:
    timed = Stakes.of(trained(scripted_results([(*place, 0.02) for place in PLACES]), GAINED))
    assert timed is not None and timed.front[0] == (*PLACES[0], 0.02)
    assert timed.hopeless(rung(2, 0.060), around(0.305), around(0.03))
    assert not timed.hopeless(rung(2, 0.060), around(0.305), around(0.01))


def test_an_end_is_expected_as_the_others_fared() -> None:
    expected = stakes().expected(rung(2, 0.060))
    assert expected.mean == pytest.approx(0.060 - 0.011)
    assert expected.high - expected.mean == pytest.approx(1.96 * 0.0056568, rel=0.02)


def look(stakes: Stakes, losses: list[float], ratio: float, calls: list[str], epochs: int = 18) -> Look:
    left = iter(losses)

    def judge(model):
        calls.append("judge")
        return around(next(left))

    def weigh(model):
        calls.append("weigh")
        return {"ratio": around(ratio), "measurement": scripted_evaluation(0.0, ratio).measurement}

    return Look(stakes=stakes, reference=around(0.98), epochs=epochs, judge=judge, weigh=weigh)


def test_a_look_climbs_the_rungs_and_measures_once() -> None:
    calls: list[str] = []
    seen = look(stakes(), [0.5, 0.03, 0.02], 0.2, calls)
    for epochs in range(19):
        seen(nn.Identity(), epochs)
    assert calls == ["judge", "weigh", "judge", "judge"]
    assert [(one.place, one.epochs) for one in seen.rungs] == [(0, 0), (1, 2), (2, 6)]
    assert [one.epochs / 18 for one in seen.rungs] == pytest.approx(SHARES)


def test_energy_is_not_measured_early_before_anything_is_known() -> None:
    calls: list[str] = []
    seen = look(replace(stakes(), gained={}), [9.0, 9.0, 9.0], 0.9, calls)
    for epochs in range(19):
        seen(nn.Identity(), epochs)
    assert calls == ["judge"] * 3


def test_stopping_tells_what_was_expected_and_what_it_saved() -> None:
    seen = look(stakes(), [0.5, 0.03, 0.06], 0.305, [])
    with pytest.raises(StopTraining) as stopped:
        for epochs in range(19):
            seen(nn.Identity(), epochs)
    stop = stopped.value
    assert stop.look.rungs[-1].epochs == 6
    assert stop.saved_j == pytest.approx(12 * 100 / 9)
    assert stop.loss.mean == pytest.approx(0.049) and stop.quality.mean == pytest.approx(0.98 - 0.049)


def test_a_stopped_evaluation_survives_json() -> None:
    found = replace(
        scripted_evaluation(0.05, 0.3, name="a"), status="stopped", rungs=(rung(0, 0.4), rung(1, 0.1, 2)), saved_j=12.5
    )
    assert Evaluation.from_json(found.to_json()) == found


# --- in a worker ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    folder = tmp_path_factory.mktemp("study")
    (folder / "artifacts").mkdir()
    protocol = Protocol(**toys.QUICK)  # type: ignore[arg-type]
    made = Evaluator(
        Setup(
            task=toys.Corners(),
            workload=Workload(batch=64),
            protocol=protocol,
            device="cpu",
            folder=folder,
            cache=folder,
        )
    )
    made.prepare()
    return made


def test_a_model_that_trains_elsewhere_is_looked_at_where_it_runs(
    evaluator: Evaluator, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cpu:0` is another name of the same device: all that changes is the road."""
    monkeypatch.setattr("autogreen.evaluate.choose", lambda device: ScriptedMeter())
    elsewhere = Evaluator(replace(evaluator.setup, training_device="cpu:0"))
    easy = Stakes(front=(), gained={0: (0.1,) * 5}, epoch_j=1.0)
    here = evaluator.evaluate(request(reference, easy, **PRUNED, **SLOWLY))
    there = elsewhere.evaluate(request(reference, easy, **PRUNED, **SLOWLY))
    assert [one.loss for one in there.rungs] == [one.loss for one in here.rungs]
    assert there.loss == here.loss and there.status == "measured"


def request(reference: str | None = None, stakes: Stakes | None = None, **parts: Any) -> Request:
    runtime = {"runtime": {"engine": "eager"}, "parallelism": {"threads": 1}}
    return Request(effect=Effect.of({**parts, **runtime}), reference=reference, stakes=stakes)


PRUNED = {"pruning": {"channel": {"0": {"importance": "magnitude", "of": 16, "width": 8}}}}
SLOWLY = {"distillation": {"epochs": 9, "alpha": 0.5, "temperature": 2.0, "learning_rate": 1e-3}}


@pytest.fixture(scope="module")
def reference(evaluator: Evaluator) -> str:
    return evaluator.evaluate(request()).key


def weights(evaluator: Evaluator, key: str) -> dict[str, torch.Tensor]:
    return load_file(evaluator.setup.folder / "artifacts" / key / "weights.safetensors")


def test_looking_changes_nothing_that_is_learnt(evaluator: Evaluator, reference: str) -> None:
    plain = evaluator.evaluate(request(reference, **PRUNED, **SLOWLY))
    before = weights(evaluator, plain.key)
    easy = Stakes(front=(), gained={0: (0.1,) * 5, 1: (0.1,) * 5, 2: (0.1,) * 5}, epoch_j=1.0)
    seen = evaluator.evaluate(request(reference, easy, **PRUNED, **SLOWLY))
    assert (seen.status, seen.key) == ("measured", plain.key)
    assert [(one.place, one.epochs) for one in seen.rungs] == [(0, 0), (1, 1), (2, 3)]
    after = weights(evaluator, plain.key)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert plain.rungs == () and not [*(evaluator.setup.folder / "artifacts").glob(".*")]
    assert sum(seen.joules.values()) == pytest.approx(seen.spent_j, rel=0.15)  # no phase counts twice


@pytest.mark.parametrize(("place", "epochs"), [(0, 0), (1, 1), (2, 3)])
def test_a_trial_that_nothing_would_help_is_stopped_at_its_rung(
    evaluator: Evaluator, reference: str, place: int, epochs: int
) -> None:
    hard = Stakes(front=((-1.0, 0.01),), gained={place: (0.0, 0.001, 0.0, 0.0, 0.0)}, epoch_j=7.0)
    found = evaluator.evaluate(request(reference, hard, **PRUNED, **SLOWLY))
    assert found.status == "stopped" and found.rungs[-1].epochs == epochs
    assert found.saved_j == pytest.approx((9 - epochs) * 7.0)
    assert found.ratio is not None and found.measurement is not None and found.loss is not None
    assert found.loss.low < found.rungs[-1].loss.mean < found.loss.high + 0.002
    assert set(found.seconds) == {"training", "scoring", "compiling", "measuring"}
    assert not [*(evaluator.setup.folder / "artifacts").glob(".*")]


def test_in_rounds_only_the_final_shape_is_looked_at(evaluator: Evaluator, reference: str) -> None:
    easy = Stakes(front=(), gained={}, epoch_j=1.0)
    rounds = {"distillation": {**SLOWLY["distillation"], "rounds": 3}}
    found = evaluator.evaluate(request(reference, easy, **PRUNED, **rounds))
    assert [(one.place, one.epochs) for one in found.rungs] == [(2, 6)]


def test_what_does_not_train_is_not_looked_at(evaluator: Evaluator, reference: str) -> None:
    assert evaluator.evaluate(request(reference, stakes(), **PRUNED)).rungs == ()


# --- in a sweep -----------------------------------------------------------------------------------------------------

SPACE = {
    "pruning": [{"each": "*", "ratio": {"choice": [0.0, 0.5, 0.75]}}],
    "distillation": {"epochs": 3, "learning_rate": {"float": {"low": 0.001, "high": 0.01}}},
    "runtime": {"engine": "eager"},
}


@pytest.mark.parametrize(("strategy", "sampler"), [("direct", "nsgaii"), ("guided", "tpe")])
def test_a_sweep_goes_on_after_stopped_trials_and_says_what_they_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, sampler: str
) -> None:
    """Of this toy nothing is really hopeless, and training it is not what it costs: both are patched."""
    monkeypatch.setattr(fidelity, "FEWEST", 2)
    monkeypatch.setattr(fidelity, "DOMINANT", 0.0)
    monkeypatch.setattr(Stakes, "hopeless", lambda self, rung, ratio, latency_s: rung.place == 2)
    experiment = toys.experiment(space=SPACE, strategy=strategy, sampler=sampler, budget={"trials": 8})
    list(sweep(experiment, tmp_path / "toy", tmp_path / ".cache"))
    results = Store.open(tmp_path / "toy").results()
    assert [trial.state for trial in results.trials] == ["measured"] * 4 + ["stopped"] * 4
    assert [bool(trial.evaluation and trial.evaluation.rungs) for trial in results.trials] == [False] * 2 + [True] * 6
    assert all(trial.evaluation and trial.evaluation.saved_j > 0 for trial in results.stopped)
    assert results.bill.joules["wasted"] > 0 and not any(trial.feasible for trial in results.stopped)
    front = Front.of(results)
    told = front.to_json()["search"]
    assert told["stopped"] == 4 and told["saved_j"] == pytest.approx(results.saved_j) and results.saved_j > 0
    assert "4 trials were stopped early" in page.html(front)
