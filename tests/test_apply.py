"""apply: a policy that was found, on new weights of the same network."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import Corners, experiment

from autogreen import api, cli
from autogreen import experiment as experiments
from autogreen.applying import applied, origin
from autogreen.bundle import load, read
from autogreen.errors import AutogreenError, BundleError, ConfigError, RefusedError
from autogreen.front import Front
from autogreen.store import Store
from autogreen.sweep import sweep
from autogreen.tasks.retrained import Retrained

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]
HALF = {
    "pruning": [{"target": "0", "ratio": 0.5, "round_to": 4}],
    "distillation": {"epochs": 1, "alpha": 0.0},
    "runtime": {"engine": "eager"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One study of one policy, and its bundle."""
    folder = tmp_path_factory.mktemp("apply") / "runs"
    for _ in sweep(experiment("toy", space=HALF), folder / "toy", folder / ".cache"):
        pass
    api.export(Front.of(Store.open(folder / "toy").results()), pick="cheapest", to=folder / "bundle", runs=folder)
    return folder


@pytest.fixture(scope="module")
def weights(runs: Path) -> Path:
    """The network trained again: other weights, the same names."""
    state = Corners().build(runs / ".cache").state_dict()
    shifted = {name: leaf + 0.01 if leaf.is_floating_point() else leaf for name, leaf in state.items()}
    save_file(shifted, runs / "new.safetensors")
    return runs / "new.safetensors"


@pytest.mark.parametrize("form", ["file", "bundle", "study"])
def test_the_policy_does_the_same_to_new_weights(runs: Path, weights: Path, form: str) -> None:
    (runs / "half.yaml").write_text((runs / "bundle" / "policy.yaml").read_text())
    text = {"file": str(runs / "half.yaml"), "bundle": str(runs / "bundle"), "study": "toy:cheapest"}[form]
    found = origin(text, runs)
    one = applied(found, experiment("toy"), weights=weights, runs=runs)
    old = read(runs / "bundle")
    assert found.id == (None if form == "file" else old.key.partition("-")[0])
    assert one.space.holes() == {} and one.name.startswith(f"toy-apply-{found.name}-")
    assert not (runs / f".{one.name}-preview").exists()
    assert isinstance(one.task, Retrained) and one.task_text == experiment("toy").task_text  # may follow the old one


def test_new_weights_are_measured_beside_their_own_reference_and_exported(runs: Path, weights: Path) -> None:
    one = applied(origin(str(runs / "bundle"), runs), experiment("toy"), weights=weights, runs=runs)
    for _ in sweep(one, runs / one.name, runs / ".cache"):
        pass
    results = Store.open(runs / one.name).results()
    api.export(Front.of(results), pick="cheapest", to=runs / "again", runs=runs)
    new, old = read(runs / "again"), read(runs / "bundle")
    assert new.key == old.key and new.task == old.task and new.energy.ratio is not None and new.test is not None
    reference = load_file(runs / one.name / "artifacts" / results.baseline.key / "weights.safetensors")
    given = load_file(weights)
    assert reference.keys() == given.keys() and all(torch.equal(reference[name], given[name]) for name in given)
    assert load_file(runs / "again" / "weights.safetensors")["0.weight"].shape == (8, 1, 3, 3)
    images = Corners().batches("test")[0][0]
    assert not torch.equal(load(runs / "again")(images), load(runs / "bundle")(images))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("0.weight"), r"0\.weight is missing"),
        (lambda state: state.update({"9.weight": torch.ones(1)}), r"9\.weight is unknown"),
        (lambda state: state.update({"6.bias": torch.ones(5)}), r"6\.bias is \[5\], not \[4\]"),
        (lambda state: [state.pop(name) for name in list(state)[:5]], r"is missing; .* and 2 more"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(
    runs: Path, weights: Path, tmp_path: Path, change: Any, told: str
) -> None:
    state = load_file(weights)
    change(state)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(RefusedError, match=rf"holds another architecture than Sequential of this task: .*{told}"):
        applied(origin("toy:cheapest", runs), experiment("toy"), weights=tmp_path / "other.safetensors", runs=runs)


def test_files_that_are_no_weights(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "pickled.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match=r"pickled\.pt cannot be read as safetensors"):
        applied(origin("toy:cheapest", runs), experiment("toy"), weights=tmp_path / "pickled.pt", runs=runs)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        applied(origin("toy:cheapest", runs), experiment("toy"), weights=tmp_path / "nowhere", runs=runs)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("toy:cheapest", r"pruning\..* is .*, was"),
        ("bundle", "instead of .*, other widths, or other layers"),
    ],
)
def test_another_architecture_is_refused_where_it_is_known(
    runs: Path, text: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    wider = replace(experiment("toy"), task=Corners(width=24))
    with pytest.raises(RefusedError, match=rf"does something else to this Sequential .*{told}"):
        applied(origin(text, runs), wider, weights=None, runs=runs)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("toy:baseline", "is a reference of toy, no policy"),
        ("nowhere", "neither a folder nor"),
        ("nowhere.yaml", "does not exist"),
        ("toi:knee", "There are: toy"),
    ],
)
def test_policies_that_are_none(runs: Path, text: str, told: str) -> None:
    with pytest.raises(AutogreenError, match=told):
        origin(text, runs)


def test_a_space_with_holes_is_no_policy(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text('pruning: [{target: "0", ratio: {choice: [0.0, 0.5]}}]\n')
    with pytest.raises(ConfigError, match="search space, not one policy"):
        applied(origin(str(tmp_path / "space.yaml"), runs), experiment("toy"), weights=None, runs=runs)


def test_from_the_shell(
    runs: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same steps; what is in the way is said before anything is trained."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("keep")
    monkeypatch.setattr(experiments, "load", lambda path, overrides: experiment("toy"))
    command = ["apply", "toy:cheapest", "--experiment", "toy.yaml", "--weights", str(weights), "--runs", str(runs)]
    for to, code in ((tmp_path / "taken", 1), (tmp_path / "new", 0)):
        monkeypatch.setattr(sys, "argv", ["autogreen", *command, "--to", str(to)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        assert (stopped.value.code or 0) == code, told.err
    assert read(tmp_path / "new").test is not None and "Next: autogreen check" in told.out
    with pytest.raises(BundleError, match="is not a bundle"):
        read(tmp_path / "taken")
