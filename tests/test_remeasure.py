"""A front measured again: the same policies with the weights that they had; nothing is trained."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from nets import Bert, Lm, Residual, images, rows, settled, tokens
from pruning_toys import context, labelled, units
from torch import nn

from autogreen.compress import compress, restore
from autogreen.errors import ConfigError, RefusedError, StudyError
from autogreen.experiment import from_json
from autogreen.front import Front
from autogreen.heritage import Heritage
from autogreen.policy import Effect
from autogreen.remeasure import Remeasured, remeasure, remeasured
from autogreen.store import Store
from autogreen.sweep import sweep
from autogreen.techniques.pruning import Pruning

# --- the model, built again -------------------------------------------------------------------------------------------


def bert() -> tuple[nn.Module, Any]:
    given = {"input_ids": tokens(), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
    return settled(Bert(layers=4)), ((), given)


def mlp() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)), ((rows(),), {})


CASES = {
    "channels, ranked together": (
        lambda: (settled(Residual()), ((images(),), {})),
        (Pruning(target="*", ratio=0.5, ranking="global", round_to=2),),
    ),
    "heads, neurons and blocks": (
        bert,
        (
            Pruning(target="*", structure="head", ratio=0.5),
            Pruning(target="*", structure="neuron", ratio=0.5, ranking="global"),
            Pruning(target="*", structure="depth", ratio=0.5),
        ),
    ),
    "a decoder": (
        lambda: (settled(Lm(layers=4)), ((tokens(),), {})),
        (
            Pruning(target="*", structure="neuron", ratio=0.5),
            Pruning(target="*", structure="head", ratio=0.5),
            Pruning(target="*", structure="depth", ratio=0.5, importance="activation"),
        ),
    ),
    "single weights": (mlp, (Pruning(target="*", structure="weight", ratio=0.5),)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pruned_model_is_built_again_from_its_weights(name: str) -> None:
    make, rules = CASES[name]
    model, example = make()
    parts = {"pruning": Pruning.effect(rules, units(model, example))}
    task = labelled(*example[0], *([example[1]] if example[1] else []))
    first = compress(parts, copy.deepcopy(model), context(model, example, task))
    kept = {name: leaf.clone() for name, leaf in first.state_dict().items()}
    assert sum(leaf.numel() for leaf in kept.values()) < sum(leaf.numel() for leaf in model.state_dict().values()) or (
        name == "single weights"
    )
    fresh, _ = make()
    with torch.no_grad():
        for parameter in fresh.parameters():  # scores would choose others now
            parameter.copy_(torch.randn_like(parameter))
    again = restore(parts, fresh, kept, context(fresh, example))
    args, kwargs = example
    with torch.no_grad():
        assert torch.equal(again(*args, **kwargs), first(*args, **kwargs))


def test_weights_of_another_model_are_refused() -> None:
    model, example = mlp()
    parts = {"pruning": Pruning.effect((Pruning(target="*", structure="neuron", ratio=0.5),), units(model, example))}
    wider = {name: torch.zeros([2 * size for size in leaf.shape]) for name, leaf in model.state_dict().items()}
    with pytest.raises(RefusedError, match="of another model"):
        restore(parts, copy.deepcopy(model), wider, context(model, example))
    with pytest.raises(RefusedError, match="of another model"):
        restore({}, model, {}, context(model, example))


# --- a study ----------------------------------------------------------------------------------------------------------

SPACE = {
    "pruning": [{"each": "*", "ratio": 0.5, "ranking": "global", "round_to": {"choice": [2, 4]}}],
    "distillation": {"epochs": 2, "rounds": 2},
    "runtime": {"engine": "eager"},
}


def experiment(name: str, **changes: Any) -> Any:
    data = {**toys.experiment(space=SPACE).to_json(), "task": {"toys:Corners": {"width": 16}}, **changes}
    return from_json(data, name=name, folder=Path())


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("searched")
    asked = {"constraints": {}, "budget": {"trials": 2}, "objectives": ["quality", "energy", "latency"]}
    list(sweep(experiment("toy", **asked), runs / "toy", runs / ".cache"))
    return runs


@pytest.fixture
def runs(searched: Path, tmp_path: Path) -> Path:
    """A copy of the whole folder, as on another machine."""
    shutil.copytree(searched, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fine-tunes fails; the task still builds its baseline."""

    def fails(*arguments: Any) -> Any:
        raise AssertionError("something was trained")

    monkeypatch.setattr("autogreen.techniques.distillation.Distillation.apply", fails)


def front(runs: Path, name: str) -> Front:
    return Front.of(Store.open(runs / name).results())


def again(runs: Path, **settings: Any) -> Remeasured:
    list(remeasure("toy", runs, to="toy-here", **settings))
    return remeasured("toy-here", runs)


@pytest.mark.usefixtures("untrained")
def test_the_front_is_measured_again_with_the_weights_it_had(runs: Path) -> None:
    (runs / "toy" / "artifacts" / front(runs, "toy").baseline.evaluation.key / "model.pt2").unlink()  # weights suffice
    found = again(runs)
    assert len(found.there.members) >= 1 and not found.refused
    for old, new in found.rows():
        assert new is not None and new.trial is not None and old.trial is not None
        assert (new.id, new.trial.params, new.trial.policy) == (old.id, old.trial.params, old.trial.policy)
        assert new.quality.mean == old.quality.mean and new.loss.mean == old.loss.mean  # the same weights, run eagerly
        assert new.measurement.windows != old.measurement.windows and new.published is not None
    assert front(runs, "toy-here").results.controls.keys() == front(runs, "toy").results.controls.keys()
    assert found.here.baseline.quality == found.there.baseline.quality
    trials = Store.open(runs / "toy-here").study.trials
    assert all(trial.state.name == "COMPLETE" and len(trial.values) == 3 for trial in trials), "the same objectives"
    told = json.loads(json.dumps(found.to_json()))
    assert [row["id"] for row in told["policies"]] == [point.id for point in found.there.members]
    assert "measured again" in str(found.table().title)


@pytest.mark.usefixtures("untrained")
def test_it_goes_on_where_it_was_stopped(runs: Path) -> None:
    steps = remeasure("toy", runs, to="toy-here")
    for step in steps:
        if step.stage == "searching" and step.measured:
            break
    steps.close()
    store = Store.open(runs / "toy-here")
    began = [trial.number for trial in store.trials()]
    first = next(trial.evaluation for trial in store.results().measured)
    found = again(runs)
    evaluations = [trial.evaluation for trial in found.here.results.measured]
    assert first in evaluations and len(evaluations) == len(found.there.members) and began
    assert len({one.key for one in evaluations if one}) == len(evaluations)


def test_a_policy_without_a_kernel_here_is_named(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, refuse = front(runs, "toy").members[0].id, Effect.refusal
    monkeypatch.setattr(
        Effect, "refusal", lambda self, *where: "no such kernel here" if self.id == first else refuse(self, *where)
    )
    if len(front(runs, "toy").members) == 1:
        with pytest.raises(StudyError, match="no such kernel here"):
            again(runs)
    else:
        found = again(runs)
        assert found.refused == {first: "no such kernel here"} and found.rows()[0][1] is None


def test_what_cannot_be_measured_again_says_why(runs: Path) -> None:
    with pytest.raises(ConfigError, match="the study itself"):
        next(remeasure("toy", runs, to="toy"))
    with pytest.raises(StudyError, match="no study 'tyo'"):
        next(remeasure("tyo", runs, to="x"))
    with pytest.raises(ConfigError, match="unknown key"):
        next(remeasure("toy", runs, to="x", overrides=("devise=cpu",)))
    with pytest.raises(ConfigError, match="not measured again"):
        remeasured("toy", runs)
    assert not (runs / "x").exists()
    Store.create(runs / "own").put("facts", {"experiment": toys.experiment("own").to_json()})
    with pytest.raises(ConfigError, match="given in Python"):
        next(remeasure("own", runs, to="x"))
    shutil.rmtree(runs / "toy" / "artifacts" / front(runs, "toy").members[0].evaluation.key)
    with pytest.raises(StudyError, match="warm_start: toy"):
        next(remeasure("toy", runs, to="x"))


def test_a_heritage_round_trips(runs: Path) -> None:
    found = Heritage.of(Store.open(runs / "toy"))
    assert Heritage.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.weights(runs, "nobody") is None and replace(found, controls={"x": "y"}).control_weights(runs) == {}
