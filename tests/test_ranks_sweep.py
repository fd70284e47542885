"""A search over degrees of parallelism, and a rank that dies in the middle of it."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
import toys
from processes import ranks
from quantizing import QUIET

from autogreen.errors import ConfigError, RefusedError
from autogreen.store import Store
from autogreen.sweep import sweep
from autogreen.techniques import Target, Unit
from autogreen.techniques.parallelism import Parallelism

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::ResourceWarning")]
SPACE = {
    "parallelism": {"data": {"choice": [1, 2]}, "pipeline": {"choice": [1, 2]}, "micro_batch": 32},
    "runtime": {"engine": "eager"},
}
TWO = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks want two cores")


def run(folder: Path, **changes: object) -> list[object]:
    return list(sweep(toys.experiment(space=SPACE, **changes), folder, folder.parent / ".cache"))


@TWO
def test_degrees_are_searched_and_measured(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    run(folder, budget={"trials": 4}, sampler="tpe", finalists=3)
    results = Store.open(folder).results()
    found = {
        (trial.evaluation.recipe.data, trial.evaluation.recipe.pipeline): trial.evaluation
        for trial in results.trials
        if trial.evaluation is not None and trial.evaluation.recipe is not None
    }
    assert {(2, 1), (1, 2)} & set(found), "at least one policy ran on two ranks"
    for (data, pipeline), evaluation in found.items():
        assert evaluation.measurement is not None and evaluation.measurement.items_per_call == 64 * data
        assert evaluation.loss is not None and abs(evaluation.loss.mean) < 1e-9, "the same outputs, the same score"
        assert (evaluation.communication is None) == (data * pipeline == 1)
        if pipeline == 2:
            assert 0 < evaluation.communication < 1
            assert evaluation.measurement.energy_per_item_j.mean > 0
    refused = [attrs["reason"] for trial in Store.open(folder).study.trials if "reason" in (attrs := trial.user_attrs)]
    cores = len(os.sched_getaffinity(0))
    assert all(f"on a machine with {cores} cores" in reason for reason in refused), "2 x 2 ranks want four"


@TWO
def test_a_killed_rank_costs_its_trial_only(tmp_path: Path) -> None:
    folder, done = tmp_path / "toy", threading.Event()

    def kill() -> None:
        while not done.is_set():
            for rank in ranks():
                rank.kill()
                done.set()
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    space = {"parallelism": {"data": {"choice": [1, 2]}}, "runtime": {"engine": {"choice": ["eager", "inductor"]}}}
    try:
        list(sweep(toys.experiment(space=space, budget={"trials": 4}, sampler="tpe"), folder, tmp_path / ".cache"))
    finally:
        done.set()
        killer.join()
    results = Store.open(folder).results()
    failed = [trial for trial in results.trials if trial.state == "failed"]
    measured = [trial for trial in results.trials if trial.state == "measured"]
    assert len(failed) == 1 and "died (signal SIGKILL" in failed[0].reason
    assert len(measured) >= 2


HEADS = Unit(name="attention", members=("attention",), kind="attention", width=6, calls=1, block="", structure="head")


@pytest.mark.parametrize(
    ("settings", "units", "target", "told"),
    [
        ({"data": 64}, (), {"room": None}, r"threads: 1 on each of 64 ranks \(data 64\) on a machine with \d+ cores"),
        ({"data": 64}, (), {"device": "cuda:0", "room": None}, r"data 64 wants 64 GPUs from cuda:0 on, and there are"),
        ({"data": 2}, (), {"device": "cuda:0", "room": 1}, r"data 2 wants 2 GPUs from cuda:0 on, and there is 1"),
        ({"data": 2}, (), {"device": "cuda:0", "room": 2}, None),  # a worker's, whatever is here
        ({"pipeline": 2, "tensor": 2}, (), {}, "pipeline and tensor in one policy"),
        ({"tensor": 2}, (HEADS,), {"engine": "onnxruntime"}, "tensor: artifacts of the engine 'onnxruntime' are whole"),
        ({"tensor": 2}, (), {}, "tensor: nothing of this model can be split"),
        ({"tensor": 4}, (HEADS,), {}, "tensor: 4 does not divide the 6 heads of attention"),
        ({"pipeline": 2, "micro_batch": 3}, (), {}, "micro_batch: 3 does not divide the batch of 64"),
        ({"pipeline": 3}, (), {}, "micro_batch: a batch of 64 over 3 stages leaves a rest"),
        ({"pipeline": 2}, (), {"mutated": ("keys_0",)}, r"a call changes what the model keeps \(keys_0\)"),
        ({"tensor": 2}, (HEADS,), {}, None),
        ({"pipeline": 2}, (), {}, None),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_launched(
    settings: dict[str, int], units: tuple[Unit, ...], target: dict[str, object], told: str | None
) -> None:
    import re

    effect = Parallelism.effect((Parallelism(**settings),), units)
    there = Target(**{"device": "cpu", "engine": "eager", "batch": 64, "room": 16, **target})
    found = Parallelism.refusal(effect, units, there)
    assert found is None if told is None else re.search(told, str(found)), found


def test_what_does_nothing_is_no_part_of_a_policy() -> None:
    plain = Parallelism.effect((Parallelism(),), ())
    assert plain == Parallelism.effect((Parallelism(data=1, tensor=1, pipeline=1, micro_batch=8),), ())
    with pytest.raises(ConfigError, match="tensor must be 1 or more, not 0"):
        Parallelism(tensor=0)


def test_graphs_are_no_part_of_a_pipeline() -> None:
    from autogreen.engines import Runtime

    effect = Runtime(engine="inductor", cuda_graph=True).effect()
    assert Runtime.refusal(effect, "cuda:0") is None
    assert "still being sent" in str(Runtime.refusal(effect, "cuda:0", stages=2))


def test_gpus_of_two_models_are_refused_by_name(monkeypatch) -> None:
    import torch

    from autogreen.ranks.placed import refuse_mixed

    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:0": "A100", "cuda:1": "H200"}.__getitem__)
    with pytest.raises(RefusedError, match=r"cuda:0 is a A100, cuda:1 is a H200: one policy runs on GPUs of one model"):
        refuse_mixed(("cuda:0", "cuda:1"))
    refuse_mixed(("cuda:1", "cuda:1"))


@TWO
def test_a_policy_on_two_ranks_ships_and_is_verified(tmp_path: Path, monkeypatch) -> None:
    """Export, golden outputs and energy in a fresh process, all by the same two ranks; converting it is refused."""
    from autogreen import bundle
    from autogreen.bundle import convert
    from autogreen.bundle.verify import examine
    from autogreen.errors import BundleError
    from autogreen.measurement import Protocol
    from autogreen.ranks.pipe import Pipe

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "toy"
    space = {"parallelism": {"pipeline": 2, "micro_batch": 32}, "runtime": {"engine": "eager"}}
    folder.parent.mkdir()
    list(sweep(toys.experiment(space=space, budget={"trials": 1}), folder, tmp_path / ".cache"))
    store = Store.open(folder)
    (trial,) = store.results().measured
    shipped = bundle.export(
        trial.evaluation,
        results=store.results(),
        artifacts=folder / "artifacts",
        golden=store.golden(),
        to=tmp_path / "shipped",
    )
    held = {path.relative_to(shipped).as_posix() for path in shipped.rglob("*") if path.is_file()}
    assert {"stage-0/model.pt2", "stage-1/model.pt2", "pipeline.json"} <= held
    found = examine(shipped, protocol=Protocol(**{**toys.QUICK, "min_windows": 4, "max_windows": 4}))
    assert found.difference <= found.tolerance and found.ratio is not None
    with pytest.raises(RefusedError, match=r"a model in parts \(stage-0, stage-1\)"):
        convert(shipped, engine="onnxruntime", to=tmp_path / "other")
    for damage in ({"boundaries": [[{"shape": [-1], "dtype": "float32"}]] * 3}, {"boundaries": []}, {"inputs": "{}"}):
        told = json.loads((folder / "artifacts" / trial.evaluation.key / "pipeline.json").read_text())
        (tmp_path / "pipeline.json").write_text(json.dumps({**told, **damage}))
        with pytest.raises(BundleError, match=r"pipeline\.json is missing or damaged"):
            Pipe(None, tmp_path / "pipeline.json", 0, 2, 2)
    (shipped / "stage-1" / "model.pt2").write_bytes(b"changed")
    with pytest.raises(BundleError, match="bytes"):
        bundle.read(shipped)
