"""A guided sweep on a toy: probes first, then trials that the forecast proposes; killed, and going on."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import toys

from autogreen import hardware, proposals
from autogreen.errors import ConfigError, EvaluationError, MeterError
from autogreen.evaluate import Evaluator
from autogreen.kernels import Case, Cell, Kernels, keep
from autogreen.measurement import Interval
from autogreen.probe import Probed
from autogreen.store import Store
from autogreen.sweep import sweep

cloudpickle.register_pickle_by_value(toys)
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch", "ignore::UserWarning:torch_pruning"
)
SPACE = {
    "pruning": [{"each": "*", "ratio": {"choice": [0.0, 0.5]}}],
    "distillation": {"epochs": 1, "learning_rate": {"float": {"low": 0.001, "high": 0.01}}},
    "runtime": {"engine": "eager"},
}


def run(folder: Path, **changes: Any) -> list[Any]:
    experiment = toys.experiment(strategy="guided", space=SPACE, **changes)
    return list(sweep(experiment, folder, folder.parent / ".cache"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Effects that workers were asked to probe, job by job."""
    seen: list[list[Any]] = []
    probe = Evaluator.probe

    def spy(self: Evaluator, section: str, effects: Any) -> dict[str, Any]:
        seen.append(list(effects))
        return probe(self, section, effects)

    monkeypatch.setattr(Evaluator, "probe", spy)
    return seen


def test_probes_come_first_and_every_trial_answers_every_hole(tmp_path: Path, asked: list[list[Any]]) -> None:
    stages = [step.stage for step in run(tmp_path / "toy")]
    assert stages.index("controls") < stages.index("probing") < stages.index("searching")
    assert sum(map(len, asked)) == 5  # two groups at two ratios, and both at once
    store = Store.open(tmp_path / "toy")
    results = store.results()
    assert len(results.trials) == 4 and {trial.state for trial in results.trials} == {"measured"}
    for trial in results.trials:
        assert set(trial.params) == {"pruning[0].ratio", "pruning[3].ratio", "distillation.learning_rate"}
        assert 0.001 <= trial.params["distillation.learning_rate"] <= 0.01
    assert results.bill.seconds["probing"] > 0
    effects = {trial.evaluation.effect.id for trial in results.trials if trial.evaluation}
    assert len(effects) == 4  # the forecast knows what was tried; a stock sampler repeats itself


def test_a_search_killed_while_it_probes_goes_on_there(
    tmp_path: Path, asked: list[list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "AT_ONCE", 1)
    steps = sweep(toys.experiment(strategy="guided", space=SPACE), tmp_path / "toy", tmp_path / ".cache")
    while len(asked) < 2:
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert len(Store.open(tmp_path / "toy").get("probes")) == 2
    run(tmp_path / "toy", budget={"trials": 1}, finalists=0)
    assert len(asked) == 5  # and not the first two again; the last is the pair
    assert len(Store.open(tmp_path / "toy").results().trials) == 1


def test_a_study_that_goes_on_proposes_what_it_would_have(tmp_path: Path) -> None:
    run(tmp_path / "whole", finalists=0)
    run(tmp_path / "parts", budget={"trials": 2}, finalists=0)
    run(tmp_path / "parts", finalists=0)
    whole, parts = (
        [trial.user_attrs["proposal"].get("turn") for trial in Store.open(tmp_path / name).study.trials]
        for name in ("whole", "parts")
    )
    assert whole == parts


def test_a_layer_that_cannot_be_probed_is_left_to_the_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Evaluator.probe

    def broken(self: Evaluator, section: str, effects: Any) -> dict[str, Any]:
        found = probe(self, section, effects)
        for effect, answer in zip(effects, found["probed"], strict=True):
            if "3" in str(effect):
                answer.update(vars(Probed(refused="no outputs")))
        return found

    monkeypatch.setattr(Evaluator, "probe", broken)
    notes = [step.note for step in run(tmp_path / "toy", budget={"trials": 1}, finalists=0)]
    assert any("pruning[3].ratio is searched without a forecast" in note and "no outputs" in note for note in notes)
    for trial in Store.open(tmp_path / "toy").results().trials:
        assert "pruning[3].ratio" in trial.params


def test_a_space_of_which_nothing_can_be_probed_is_searched_directly(tmp_path: Path) -> None:
    space = {"distillation": SPACE["distillation"], "runtime": {"engine": "eager"}}
    experiment = toys.experiment(strategy="guided", space=space, budget={"trials": 1}, finalists=0)
    steps = list(sweep(experiment, tmp_path / "toy", tmp_path / ".cache"))
    assert any("searched without a forecast: nothing could be probed" in step.note for step in steps)
    assert steps[-1].measured == 1


def probed(folder: Path, **changes: Any) -> list[str]:
    """What a sweep over int8 says while it probes; it ends there."""
    rules = [{"each": "*", "scheme": {"choice": ["none", "w8a8_static"]}}]
    space = {"quantization": rules, "runtime": {"engine": "inductor"}}
    experiment = toys.experiment(strategy="guided", space=space, **changes)
    notes = []
    for step in sweep(experiment, folder, folder.parent / ".cache"):
        if step.stage == "searching":
            break
        notes += [step.note] if step.stage == "probing" else []
    return notes


def test_kernels_that_nobody_measured_are_measured_while_it_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Case] = []

    def kernel(self: Evaluator, case: Case) -> dict[str, Any]:
        seen.append(case)
        if case.shape.kind == "linear":
            raise EvaluationError("the compiler fell over.")
        meter = self._meter()
        known = Kernels.none_yet(hardware.describe("cpu"), meter.tier, meter.boundary)
        keep(known.having(Cell(case=case, ratio=Interval(mean=0.6, low=0.5, high=0.7))), self.setup.cache)
        return {}

    monkeypatch.setattr(Evaluator, "kernel", kernel)
    monkeypatch.setattr(proposals, "TRIALS_WORTH", 1e6)
    notes = probed(tmp_path / "first")
    inputs = [(case.shape.kind, case.shape.inputs) for case in seen]
    assert inputs == [("conv", 16), ("conv", 1), ("linear", 576)]  # by their work
    assert {case.rows for case in seen} == {64, 64 * 36}
    assert any("is not known: the compiler fell over." in note for note in notes)
    assert any("what w8a8_static save in some layers is guessed" in note for note in notes)
    seen.clear()
    probed(tmp_path / "second")
    assert [case.shape.kind for case in seen] == ["linear"]  # the others are kept for this device


@pytest.mark.parametrize(
    ("worth", "error", "asked_for"), [(0.0, None, 0), (1e6, MeterError("too many others are running."), 1)]
)
def test_when_kernels_stay_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: float, error: MeterError | None, asked_for: int
) -> None:
    seen: list[Case] = []

    def kernel(self: Evaluator, case: Case) -> dict[str, Any]:
        seen.append(case)
        raise error or AssertionError

    monkeypatch.setattr(Evaluator, "kernel", kernel)
    monkeypatch.setattr(proposals, "TRIALS_WORTH", worth)
    notes = probed(tmp_path / "toy")
    assert len(seen) == asked_for and any("is guessed until trials tell" in note for note in notes)
    assert any("kernels are not measured: too many others" in note for note in notes) == (error is not None)


def test_an_unknown_strategy_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'guided'"):
        toys.experiment(strategy="guide")


@pytest.mark.parametrize("stage", ["controls", "probing", "finalists"])
def test_a_search_killed_at_any_stage_goes_on(tmp_path: Path, stage: str) -> None:
    """kill -9 on the coordinator, whose worker dies with it, and the same command again."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(toys.__file__).parent)!r})
import cloudpickle, toys; cloudpickle.register_pickle_by_value(toys)
import subprocess
import sys
import time
from pathlib import Path
from autogreen.sweep import sweep
experiment = toys.experiment(executor="local", strategy="guided", space={SPACE!r})
for step in sweep(experiment, Path({str(tmp_path / "toy")!r}), Path({str(tmp_path)!r})):
    print(step.stage, step.note, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(stage):
            time.sleep(0.2)  # in the middle of the job
            process.kill()
            break
    process.wait()
    process.stdout.close()
    before = {name: Store.open(tmp_path / "toy").get(name, {}) for name in ("references", "controls", "probes")}
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1].startswith("done")
    store = Store.open(tmp_path / "toy")
    results = store.results()
    for name, known in before.items():
        assert {key: store.get(name)[key] for key in known} == known  # what was known was not measured again
    assert len(results.trials) == 4 == len({trial.evaluation.key for trial in results.trials if trial.evaluation})
    assert len(store.get("probes")) == 5
    assert set(store.get("finalists")["keys"]) <= set(results.published)
