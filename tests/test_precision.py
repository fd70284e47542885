"""One data type for all that no scheme names: what it computes, what it refuses, and what it costs at least."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autogreen import floor
from autogreen.anatomy import survey
from autogreen.compress import lower
from autogreen.controls import controls_of
from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import ConfigError, RefusedError
from autogreen.evaluation import Evaluation
from autogreen.policy import Effect
from autogreen.samplers import first
from autogreen.space import SearchSpace
from autogreen.techniques import Context
from autogreen.techniques.precision import rest
from autogreen.wording import words

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]
X = torch.randn(32, 16, 64, generator=torch.Generator().manual_seed(0))


class Attending(nn.Module):
    """float32 [n, 16, 64] -> a dict: "y" float32 [n, 16, 64], "longest" int64 [n]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        q, k, v = self.qkv(x).reshape(len(x), 16, 3, 2, 32).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        y = x + self.out(y)
        return {"y": y, "longest": y.norm(dim=2).argmax(1)}


class Calibration:
    def batches(self, split: str, epoch: int = 0) -> list[Tensor]:
        return [X]

    def inputs(self, batch: Tensor) -> tuple[tuple[Tensor], dict[str, Any]]:
        return (batch,), {}


def context(example: Any = ((X,), {})) -> Context:
    task: Any = Calibration()
    return Context(task=task, example=example, seed=0, device="cpu", teacher=Attending(), check=lambda: None, cache={})


def lowered(dtype: str, scheme: str = "none") -> nn.Module:
    quantization = {} if scheme == "none" else {"qkv": scheme, "out": scheme}
    return lower({"precision": {"dtype": dtype}, "quantization": quantization}, Attending().eval(), context())


def off(y: Tensor, like: Tensor) -> float:
    return float((y - like).detach().norm() / like.detach().norm())


@pytest.mark.parametrize(("dtype", "error"), [("bf16", 2**-7), ("fp16", 2**-10)])
def test_the_whole_model_computes_in_it_and_its_outputs_keep_their_types(dtype, error):
    model, plain = lowered(dtype), Attending()(X)
    with torch.no_grad():
        found = model(X)
    assert {leaf.dtype for leaf in model.parameters()} == {getattr(torch, rest({"precision": {"dtype": dtype}}))}
    assert found["y"].dtype == torch.float32 and found["longest"].dtype == torch.int64
    assert 0 < off(found["y"], plain["y"]) < error


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_static"])
def test_between_int8_layers_everything_is_in_it(scheme):
    with torch.no_grad():
        found = lowered("bf16", scheme)(X)["y"]
        float_between = lower({"quantization": dict.fromkeys(("qkv", "out"), scheme)}, Attending(), context())
        assert off(found, Attending()(X)["y"]) < 0.02 and 0 < off(found, float_between(X)["y"]) < 2**-6


@pytest.mark.parametrize("scheme", ["none", "w8a8", "w8a8_static"])
def test_the_kernels_that_run(scheme, tmp_path):
    """Where a processor has no instructions for bfloat16 it is refused; emulated, so small a network still runs."""
    example = (X,), {}
    ENGINES["inductor"].save(lowered("bf16", scheme), example, tmp_path)
    program = Program(tmp_path, Recipe(batch=32, threads=1, device="cpu", engine="inductor"))
    assert off(program.run(*example)["y"], Attending()(X)["y"]) < 0.02
    macs = program.trace(example).macs
    linear = X.numel() * (192 + 64)
    attention = 2 * X.numel() * 16
    rounded = {"int8": linear} if scheme != "none" else {}
    assert macs == {"bfloat16": attention + linear - sum(rounded.values()), **rounded}


def test_batch_norm_is_folded_before():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    nn.init.uniform_(net[1].running_var, 0.5, 2.0)
    x = torch.randn(4, 3, 8, 8)
    plain = net(x)
    found = lower({"precision": {"dtype": "bf16"}}, net, context(((x,), {})))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())
    assert off(found(x), plain) < 0.02


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(x * torch.ones(64, dtype=torch.float32))
        return y


def test_a_model_that_makes_float32_tensors_of_its_own_is_refused_by_name():
    with pytest.raises(RefusedError, match=r"precision: Masked does not run in bf16 \(RuntimeError: .*in the type of"):
        lower({"precision": {"dtype": "bf16"}}, Masked(), context())


def test_a_device_without_the_instructions_refuses_it(monkeypatch):
    monkeypatch.setattr("autogreen.techniques.precision.missing_kernel", lambda scheme, **where: f"no {scheme}")
    anatomy = survey(Attending(), ((X,), {}), ("precision", "quantization"))
    effect = SearchSpace.from_json({"precision": {"dtype": "bf16"}}).policy().effect(anatomy)
    assert effect.refusal(anatomy, "cpu", 32) == "precision: no bf16"
    plain = SearchSpace.from_json({"precision": {"dtype": "none"}}).policy().effect(anatomy)
    assert plain.refusal(anatomy, "cpu", 32) is None and "precision" not in plain.parts


@pytest.mark.parametrize(
    ("data", "message"),
    [({"dtype": "bfloat16"}, "'none', 'bf16' or 'fp16', not 'bfloat16'"), ({"type": "bf16"}, "type")],
)
def test_bad_settings(data, message):
    with pytest.raises(ConfigError, match=message):
        SearchSpace.from_json({"precision": data})


def test_a_layer_that_is_told_what_the_whole_model_is_told_is_no_other_policy():
    anatomy = survey(Attending(), ((X,), {}), ("precision", "quantization"))

    def effect(*rules: dict[str, str]) -> Effect:
        space = {"precision": {"dtype": "bf16"}, "quantization": list(rules)}
        return SearchSpace.from_json(space).policy().effect(anatomy)

    whole = effect({"target": "qkv", "scheme": "w8a8"}, {"target": "*", "scheme": "bf16"})
    assert whole == effect({"target": "qkv", "scheme": "w8a8"}, {"target": "*", "scheme": "none"})
    assert whole.parts["quantization"] == {"qkv": "w8a8"}
    assert words(whole.parts) == "w8a8 ×1, bf16 between, 1 thread, eager"


def test_the_work_is_counted_in_the_types_it_runs_in():
    work = floor.count(Attending(), ((X,), {}), {"qkv": "int8"}, 1.0, "bfloat16")
    assert set(work.flops) == {"int8", "bfloat16"} and work.flops["int8"] == 2 * X.numel() * 192


def test_what_is_tried_by_hand_and_the_control_have_it_too(monkeypatch):
    space = SearchSpace.from_json(
        {
            "precision": {"dtype": {"ordered": ["none", "bf16"]}},
            "quantization": [{"target": "*", "scheme": {"ordered": ["none", "w8a8"]}}],
            "runtime": {"engine": "inductor"},
        }
    )
    anatomy = survey(Attending(), ((X,), {}), ("precision", "quantization"))
    tried = [space.shown(proposal) for proposal in first(space.expand(anatomy))]
    assert {(one["precision.dtype"], one["quantization[*].scheme"]) for one in tried} == {
        ("none", "w8a8"),
        ("bf16", "w8a8"),
    }
    effect = SearchSpace.from_json({"runtime": {"engine": "inductor"}}).policy().effect(anatomy)
    baseline = Evaluation(key="b", effect=effect, start="baseline", seed=0, status="measured", quality=1.0)
    monkeypatch.setattr("autogreen.techniques.precision.missing_kernel", lambda scheme, **where: None)
    asked = dict(controls_of(space, anatomy, baseline, "cpu"))
    parts = asked["half width from scratch, quantized"].effect.parts
    assert parts["precision"] == {"dtype": "bf16"} and parts["quantization"] == dict.fromkeys(("qkv", "out"), "w8a8")
