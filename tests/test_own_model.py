"""One's own model through `autogreen.search`: no classifier, dict batches in, a dataclass out, functions from here."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import autogreen
from autogreen.errors import ConfigError, RefusedError

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch", "ignore::UserWarning:torch_pruning"
)
QUICK = {
    "protocol": {"warmup_s": 0.0, "window_s": 0.02, "min_windows": 2, "max_windows": 2, "foreign_limit": 99.0},
    "workload": {"kind": "offline", "batch": 16},
    "device": "cpu",
    "budget": {"trials": 2},
    "finalists": 1,
    "space": {
        "pruning": [{"target": "inner", "structure": "neuron", "ratio": {"choice": [0.25, 0.5]}, "round_to": 4}],
        "distillation": {"epochs": 1, "alpha": 0.5},
        "runtime": {"engine": "eager"},
    },
}


@dataclass
class Prediction:
    values: torch.Tensor


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, features):
        return Prediction(values=self.outer(self.inner(features).relu()))


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(20, 8, generator=generator) for _ in range(3)]
    return [{"features": x, "labels": x[:, :2].clone()} for x in features]


def given(**changes):
    torch.manual_seed(0)
    data = {
        "train": batches(0),
        "validation": batches(1),
        "test": batches(2),
        "loss": lambda output, batch: nn.functional.mse_loss(output.values, batch["labels"]),
        "score": lambda output, batch: -(output.values - batch["labels"]).square().mean(1),
        "outputs": "values",
        **QUICK,
    }
    return {**data, **changes}


def test_search_and_export(tmp_path):
    seen = []
    front = autogreen.search(Regressor(), runs=tmp_path / "runs", report=seen.append, **given())
    assert front.members and seen[-1].stage == "done"
    bundle = autogreen.export(front, pick="cheapest", to=tmp_path / "bundle", runs=tmp_path / "runs")
    from autogreen.bundle import load

    with torch.no_grad():
        outputs = load(bundle)(features=torch.randn(5, 8))
    assert outputs["values"].shape == (5, 2)


@pytest.mark.parametrize(
    ("model", "change", "told"),
    [
        (nn.Sequential(nn.Flatten()), {}, "has no parameters"),
        (Regressor(), {"score": lambda output, batch: output.values.mean()}, r"one number per example"),
        (Regressor(), {"space": {"prunning": []}}, "Did you mean 'pruning'"),
        (Regressor(), {"trails": 3}, "unknown key 'trails'"),
        (Regressor(), {"validation": []}, "gave no batch"),
    ],
)
def test_mistakes(tmp_path, model, change, told):
    with pytest.raises(autogreen.AutogreenError, match=told):
        autogreen.search(model, runs=tmp_path, executor="inline", **given(**change))


def test_tied_weights_and_nan_are_refused(tmp_path):
    tied = Regressor()
    tied.outer = nn.Linear(8, 16)
    tied.outer.weight = tied.inner.weight
    broken = Regressor()
    broken.inner.weight.data[0, 0] = float("nan")
    for model, told in ((tied, "ties"), (broken, "NaN")):
        with pytest.raises(RefusedError, match=told):
            autogreen.search(model, runs=tmp_path / told, executor="inline", **given())


def test_a_space_may_be_a_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        autogreen.search(Regressor(), runs=tmp_path, **given(space="nowhere.yaml"))
