"""Experiments: one YAML file to objects, strictly; overrides; a user's own task; every file that ships loads."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys import Corners

from autogreen.errors import AutogreenError, ConfigError
from autogreen.experiment import SAMPLERS, Budget, Constraints, Experiment, from_json, load, pick_device
from autogreen.tasks.digits import Digits
from autogreen.workload import Workload

ROOT = Path(__file__).parents[1]
PLANS = {"search_benchmark"}  # of benchmarks: no experiment of their own
EXPERIMENTS = sorted(path for path in (ROOT / "experiments").glob("*.yaml") if path.stem not in PLANS)
MINIMAL = {"task": "digits", "space": {"parallelism": {"threads": 1}}}

SERVER = {"kind": "server", "rate_per_s": 40, "p95_s": 0.1}


def served(**parallelism: Any) -> dict[str, Any]:
    """Changes that make it a server's."""
    return {"workload": SERVER, "space": {"parallelism": {"batch": 4, **parallelism}}}


def make(**changes: Any) -> Experiment:
    return from_json({**MINIMAL, **changes}, name="x", folder=Path())


def written(tmp_path: Path, text: str = "task: digits\nspace: {parallelism: {threads: 1}}\n") -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_experiment_loads(path: Path) -> None:
    found = load(path)
    assert found.name == path.stem and found.space.holes()
    told = json.loads(json.dumps(found.to_json()))
    again = from_json(told, name=path.stem, folder=Path("elsewhere"))  # what a study keeps is the whole experiment
    assert again.to_json() == told and again.task_text == found.task_text


def test_there_is_something_to_load() -> None:
    assert [path.stem for path in EXPERIMENTS if path.stem == "digits"]


def test_defaults(tmp_path: Path) -> None:
    found = load(written(tmp_path))
    assert found.task == Digits() and found.workload == Workload(kind="offline", batch=64)
    assert (found.sampler, found.seed, found.device, found.executor, found.name) == ("tpe", 0, "auto", "local", "mine")
    assert found.budget.trials == 40 and found.constraints == Constraints() and found.tracking is None


def test_a_space_in_another_file_is_found_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "one.yaml").write_text("runtime: {engine: {choice: [eager, inductor]}}")
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments" / "mine.yaml"
    path.write_text("task: digits\nspace: ../spaces/one.yaml")
    assert list(load(path).space.holes()) == ["runtime.engine"]
    path.write_text("task: digits\nspace: ../spaces/oen.yaml")
    with pytest.raises(ConfigError, match=r"oen\.yaml does not exist\. Did you mean 'one\.yaml'"):
        load(path)
    (tmp_path / "spaces" / "one.yaml").write_text("pruning: [{target: 3}]")
    path.write_text("task: digits\nspace: ../spaces/one.yaml")
    with pytest.raises(ConfigError, match=r"pruning\.0\.target"):
        load(path)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"taks": 1}, r"unknown key 'taks'\. Did you mean 'task'"),
        ({"task": "digit"}, r"unknown task 'digit'\. Did you mean 'digits'\? Known: "),
        ({"task": 3}, "must be a name or one"),
        ({"task": None}, "must be a name or one"),
        ({"task": {"digits": {}, "other": {}}}, "must be a name or one"),
        ({"task": {"digits": {"widht": 8}}}, r"x\.task\.digits: unknown key 'widht'\. Did you mean 'width'"),
        ({"task": {"digits": {"width": "8"}}}, r"x\.task\.digits\.width"),
        ({"task": {"digits": {"item": "page"}}}, "unknown key 'item'"),
        ({"task": {"digits": 0}}, r"x\.task\.digits must be a mapping"),
        ({"task": {"digits": {"width": 0}}}, "width must be from 1"),
        ({"task": {"digits": {"batch_size": 5000}}}, "batch_size must be from 2 to 4000"),
        ({"task": {"digits": {"seed": -1}}}, "seed must be from 0"),
        ({"space": 3}, r"x\.space must be a mapping"),
        ({"sampler": "tpee"}, r"unknown sampler 'tpee'\. Did you mean 'tpe'"),
        ({"objectives": ["quality", "latency"]}, r"objectives must be \[quality, energy\], or \[quality, energy, lat"),
        ({"objectives": "latency"}, r"objectives must be a list, not 'latency'"),
        ({"sampler": None}, "sampler must be text"),
        ({"executor": "locl"}, r"unknown executor 'locl'\. Did you mean 'local'"),
        ({"seed": "0"}, "seed must be a whole number, not '0'"),
        ({"seed": True}, "seed must be a whole number, not True"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 2**32}, "seed must be from 0"),
        ({"device": 0}, "device must be text"),
        ({"finalists": -1}, "finalists must be 0 or more"),
        ({"finalists": None}, "finalists must be a whole number"),
        ({"meter": "nvml"}, "meter must be a mapping"),
        ({"tracking": 3}, "tracking must be text"),
        ({"budget": None}, r"x\.budget must be a mapping"),
        ({"budget": {"trials": 0}}, "trials must be above 0"),
        ({"budget": {"trials": 4.0}}, r"x\.budget\.trials"),
        ({"budget": {"seconds": float("nan")}}, "seconds must be above 0"),
        ({"budget": {"seconds": float("inf")}}, "seconds must be above 0"),
        ({"budget": {"trials": None}}, "needs trials, seconds or energy_j"),
        ({"constraints": {"max_loss": -0.1}}, "max_loss must be 0 or more"),
        ({"constraints": {"max_los": 0.1}}, r"Did you mean 'max_loss'"),
        ({"workload": {"kind": "batch"}}, r"x\.workload\.kind.*'single', 'offline' or 'server'"),
        ({"workload": {"kind": "single", "batch": 8}}, "batch must be 1"),
        ({"workload": {"batch": 0}}, "batch must be 1 or more"),
        ({"workload": {"batch": "64"}}, r"x\.workload\.batch"),
        ({"protocol": {"window_s": 0}}, "window_s"),
        ({"space": {"parallelism": {"batch": 8}}}, "workload fixes the batch at 64"),
        (
            {"space": {"parallelism": {"batch": {"choice": [1, 8]}}}, "workload": {"kind": "single"}},
            "workload fixes the batch at 1;",
        ),
        ({"workload": {**SERVER, "rate_per_s": 0}}, r"x\.workload: rate_per_s must be a number above 0 .*not 0"),
        ({"workload": {**SERVER, "rate_per_s": float("inf")}}, "rate_per_s must be a number above 0"),
        ({"workload": {"kind": "server", "rate_per_s": 40}}, r"p95_s must be a number above 0 \(seconds\).*not None"),
        ({"workload": {**SERVER, "p95_s": -0.1}}, "p95_s must be a number above 0"),
        ({"workload": {**SERVER, "batch": 8}}, r"batch is 8.*write it as space\.parallelism\.batch"),
        ({"workload": {"kind": "offline", "rate_per_s": 40}}, "rate_per_s belongs to a server workload.*offline"),
        ({"workload": {"kind": "single", "p95_s": 0.1}}, "p95_s belongs to a server workload.*single"),
        ({"workload": SERVER}, r"needs space\.parallelism\.batch"),
        ({"workload": SERVER, "space": {"parallelism": {"batch": None}}}, r"needs space\.parallelism\.batch"),
        ({"space": {"parallelism": {"batch_delay_s": 0.01}}}, "batch_delay_s: nobody waits .* kind offline"),
        (served(batch_delay_s={"choice": [0.0, 0.1]}), r"batch_delay_s reaches 0\.1 s, and workload\.p95_s is 0\.1 s"),
        (served(batch_delay_s=-0.1), "batch_delay_s must be 0 or more"),
        (served(batch_delay_s={"float": {"low": 0.0, "high": float("inf")}}), "batch_delay_s"),
        ({**served(), "constraints": {"max_latency_s": 0.1}}, r"a server's limit is workload\.p95_s"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make(**changes)


@pytest.mark.parametrize("missing", ["task", "space"])
def test_what_is_needed(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"x needs '{missing}'"):
        from_json({key: value for key, value in MINIMAL.items() if key != missing}, name="x", folder=Path())


def test_a_task_that_is_made_already_is_not_named_again() -> None:
    found = from_json({"space": MINIMAL["space"]}, name="x", folder=Path(), task=Corners())
    assert found.task == Corners()
    with pytest.raises(ConfigError, match="unknown key 'task'"):
        from_json(MINIMAL, name="x", folder=Path(), task=Corners())


# --- workload ---------------------------------------------------------------------------------------------------------


def test_the_batch_of_a_workload() -> None:
    assert make(workload={"kind": "single"}).workload.batch == 1
    assert make(workload={"kind": "single", "batch": None}).workload.fixed_batch == 1
    assert make(workload={"kind": "offline"}).workload.fixed_batch == 64
    assert make(workload={}).to_json()["workload"] == {"kind": "offline", "batch": 64}
    free = make(workload={"batch": None}, space={"parallelism": {"batch": {"choice": [8, 64]}}})
    assert free.workload.fixed_batch is None


def test_objectives_are_written_as_yaml_or_as_python_writes_them() -> None:
    asked = ("quality", "energy", "latency")
    for found in (make(objectives=list(asked)), make(objectives=asked)):
        assert found.objectives == asked and found.by_latency and found.to_json()["objectives"] == list(asked)
    assert not make().by_latency and make().to_json()["objectives"] == ["quality", "energy"]


def test_the_largest_policy_of_a_space() -> None:
    assert make().ranks == 1
    degrees = {"data": {"choice": [4, 1, 2]}, "tensor": 2, "pipeline": {"int": {"low": 1, "high": 3}}}
    for executor in ("local", {"ray": {"devices": 2}}):
        assert make(space={"parallelism": degrees}, executor=executor).ranks == 4 * 3


def test_a_found_policy_is_a_space_even_where_the_workload_fixes_the_batch() -> None:
    degrees = {"data": 1, "tensor": 1, "pipeline": 1, "micro_batch": None}
    parallelism = {"threads": 1, "batch": None, "batch_delay_s": None, **degrees}
    policy = {"parallelism": parallelism, "runtime": {"engine": "inductor", "mode": "default"}}
    policy["runtime"]["cuda_graph"] = False
    assert make(space=policy).space.policy().to_json() == policy


def test_a_server_leaves_its_batch_to_policies_and_says_no_more_than_it_has() -> None:
    found = make(**served(batch={"choice": [1, 4]}, batch_delay_s={"float": {"low": 0.0, "high": 0.05}}))
    assert found.workload.batch is None and found.workload.fixed_batch is None
    assert found.to_json()["workload"] == {"kind": "server", "rate_per_s": 40, "p95_s": 0.1}
    assert Workload(**found.to_json()["workload"]) == found.workload
    load = found.workload.load(4, 0.02)
    assert load is not None and (load.rate_per_s, load.batch, load.batch_delay_s) == (40, 4, 0.02)
    assert Workload().load(64, 0.0) is None


def test_the_name_of_a_workload_in_a_study_stays_what_it_was() -> None:
    assert str(Workload()) == "Workload(kind='offline', batch=64)"
    assert str(Workload(**SERVER)) == "Workload(kind='server', rate_per_s=40, p95_s=0.1)"


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides(tmp_path: Path) -> None:
    settings = ("budget.trials=7", "seed=3", "task={digits: {width: 8}}", "constraints.max_loss=1e-2", "tracking=")
    found = load(written(tmp_path), settings)
    assert (found.budget.trials, found.seed, found.task) == (7, 3, Digits(width=8))
    assert found.constraints.max_loss == 0.01 and found.tracking is None
    assert load(written(tmp_path), ("seed=1", "seed=2")).seed == 2
    assert load(written(tmp_path), ("space.runtime.engine=inductor",)).space.options("runtime", "engine") == (
        "inductor",
    )
    assert load(written(tmp_path), ("tracking=http://host:5000/?a=b",)).tracking == "http://host:5000/?a=b"


@pytest.mark.parametrize(
    "override, told",
    [
        ("seed", "is not of the form key=value"),
        ("=3", "is not of the form key=value"),
        ("sed=3", r"unknown key 'sed'\. Did you mean 'seed'"),
        ("budget.trails=3", r"unknown key 'trails'\. Did you mean 'trials'"),
        ("budget.trials=many", r"budget\.trials"),
        ("seed=[1", r"--set seed is not valid YAML"),
        ("seed=!!python/name:os.system", "tags"),
        ("task.digits.width=8", "'(task|digits)' is .*, not a mapping. Where that is a file, change it there"),
        (".=3", "unknown key ''"),
    ],
)
def test_overrides_that_are_refused(override: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        load(written(tmp_path), (override,))


# --- a user's own task ------------------------------------------------------------------------------------------------

MODULE = '''
from dataclasses import dataclass, field
from autogreen.tasks import Scores, Task

class Plain(Task):
    """Has no settings."""
    item, outputs = "row", "values"
    def build(self, cache): ...
    def batches(self, split, epoch=0): return []
    def loss(self, outputs, batch): ...
    def score(self, model, split): ...

@dataclass(frozen=True, kw_only=True)
class Settings(Plain):
    """Has some."""
    depth: int = 2
    def __post_init__(self):
        if self.depth > 9:
            raise FileNotFoundError("no data of that depth")

class Needs(Plain):
    def __init__(self, path): ...

class Half(Task):
    item, outputs = "row", "values"
    def build(self, cache): ...

@dataclass(frozen=True, kw_only=True)
class Untold(Plain):
    thing: "NeverImported" = None

def function(): ...
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_task.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_task", None)


@pytest.mark.usefixtures("own")
def test_a_task_beside_which_the_command_is_run() -> None:
    assert type(make(task="own_task:Plain").task).__name__ == "Plain"
    found = make(task={"own_task:Settings": {"depth": 5}})
    assert found.task.depth == 5 and "own_task:Settings" in found.to_json()["task"]
    assert make(task={"own_task:Settings": None}).task.depth == 2


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    "task, told",
    [
        ("own_task:Plian", r"Did you mean 'Plain'"),
        ("own_tsak:Plain", "cannot import 'own_tsak'"),
        ({"own_task:Plain": {"depth": 5}}, "takes no settings: make Plain a dataclass"),
        ({"own_task:Settings": {"dept": 5}}, r"unknown key 'dept'\. Did you mean 'depth'"),
        ({"own_task:Settings": {"depth": "5"}}, r"own_task:Settings\.depth"),
        ({"own_task:Settings": {"depth": 10}}, "cannot be made: FileNotFoundError: no data of that depth"),
        ("own_task:Needs", "cannot be made: TypeError: .*path"),
        ("own_task:Half", "cannot be made: TypeError: .*abstract"),
        ("own_task:Untold", "cannot be made: NameError|NeverImported"),
        ("own_task:function", "is no subclass of autogreen.tasks.Task"),
        ("collections:OrderedDict", "is no subclass of autogreen.tasks.Task"),
    ],
)
def test_own_tasks_that_are_refused(task: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make(task=task)


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_every_sampler_is_known() -> None:
    assert [make(sampler=sampler).sampler for sampler in SAMPLERS] == list(SAMPLERS)


def test_an_experiment_is_checked_however_it_is_made() -> None:
    with pytest.raises(AutogreenError, match="unknown sampler"):
        replace(make(), sampler="none")
    with pytest.raises(ConfigError, match="needs trials"):
        Budget(trials=None)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    for wanted in ("cuda:0", "tpu"):
        with pytest.raises(ConfigError, match=f"device '{wanted}' is not here; use cpu"):
            pick_device(wanted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == "cuda:0" and pick_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="one device"):
        pick_device("cuda:0,cuda:1")


def test_where_policies_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="training_device 'cuda:0' is not here; use cpu"):
        pick_device("cuda:0", "training_device")
    text = {"task": "digits", "space": {}, "training_device": None}
    assert from_json(text, name="mine", folder=Path()).training_device is None
    with pytest.raises(ConfigError, match="training_device must be text"):
        from_json({**text, "training_device": 0}, name="mine", folder=Path())
