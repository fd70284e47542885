"""experiments/policies.py: random policies go the road of a search, and none is lost."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import toys
from torch import nn

from autogreen.techniques.trace import layers

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch", "ignore::UserWarning:torch_pruning"
)


def script() -> ModuleType:
    path = Path(__file__).parents[1] / "experiments" / "policies.py"
    spec = importlib.util.spec_from_file_location("policies_experiment", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


policies = script()
SPACE = {
    "pruning": [{"target": "0", "ratio": {"choice": [0.0, 0.5]}}],
    "distillation": {"epochs": 1, "student": {"choice": [0.5, 1.0]}, "hidden": {"choice": [0.0, 1.0]}},
    "runtime": {"engine": {"choice": ["inductor", "eager"]}, "mode": {"choice": ["default", "max-autotune"]}},
}


def bench(cache: Path, monkeypatch: pytest.MonkeyPatch, smaller: Any) -> Any:
    made = policies.Bench(toys.experiment(space=SPACE), cache)
    monkeypatch.setattr(toys.Corners, "smaller", smaller)
    return made


def test_students_are_the_tasks_own_and_refusals_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def smaller(self: Any, fraction: float, cache: Path) -> nn.Module:
        assert cache == tmp_path
        asked.append(fraction)
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36 * 8, 4))

    one = bench(tmp_path, monkeypatch, smaller)
    found = list(policies.attempts(one, 7, 0.0, 0))
    assert len(found) == 7 and {each["engine"] for each in found} == {"eager"} and json.dumps(found)
    assert {each["outcome"] for each in found} == {"ran", "refused"}
    for each in found:
        said = each["policy"]
        student, pruned = said["distillation"]["student"] < 1, said["pruning"][0]["ratio"] > 0
        assert (each["outcome"] == "refused") == (student and pruned)
        assert "smaller network of the task's own" in each["reason"] if student and pruned else "reason" not in each
        assert "mode" not in each.get("effect", {}).get("runtime", {})  # it says nothing to the eager engine
    ran = [each["effect"] for each in found if each["outcome"] == "ran"]
    assert len({json.dumps(effect, sort_keys=True) for effect in ran}) == len(ran)
    assert asked == [0.5] and layers(one.start(0.5), one.example(1))["0"].width == 8


def test_a_task_without_students_refuses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench(tmp_path, monkeypatch, lambda self, fraction, cache: None)
    found = list(policies.attempts(one, 7, 0.0, 0))
    alone = [each for each in found if each["policy"]["distillation"]["student"] < 1]
    assert alone and {each["outcome"] for each in alone} == {"refused"}
    assert any("cannot tell what a smaller network is" in each["reason"] for each in alone)
