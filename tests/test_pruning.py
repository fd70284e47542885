"""Pruning: the narrow model equals the dense one with the same channels silenced; who goes is the published rule."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from nets import Concatenated, Depthwise, Keywords, Mlp, Plain, Position, Residual, Wrapped, images, rows, settled
from torch import Tensor, nn

from autogreen.anatomy import survey
from autogreen.errors import RefusedError
from autogreen.techniques import Context, Unit
from autogreen.techniques.pruning import Pruning
from autogreen.techniques.trace import tensors

pytestmark = pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")


def prune(model: nn.Module, example: Any, *rules: Pruning) -> tuple[nn.Module, dict[str, Any]]:
    anatomy = survey(model, example, ("pruning",))
    effect = Pruning.effect(rules, anatomy.units["pruning"])
    context = Context(
        task=None,  # type: ignore[arg-type]
        example=example,
        seed=0,
        device="cpu",
        teacher=model,
        check=lambda: None,
        cache={},
    )
    return Pruning.apply(effect, copy.deepcopy(model), context), effect


def kept(dense: Tensor, narrow: Tensor) -> list[int]:
    """Output channels of a dense weight that a narrow one still has, found by the inputs that both kept."""
    return [row for row in range(len(dense)) if any(torch.equal(dense[row], other) for other in narrow)]


def silence(model: nn.Module, names: Sequence[str], channels: Sequence[int]) -> None:
    """Make these layers (batch norms, or linear layers without one) put out zeros in the channels."""
    for name in names:
        layer = model.get_submodule(name)
        with torch.no_grad():
            layer.weight[list(channels)] = 0  # type: ignore[operator, index]
            layer.bias[list(channels)] = 0  # type: ignore[operator, index]


# what is pruned; first layer of the group; where its channels must be silent so that nothing downstream sees them
CASES = {
    "plain": (Plain, images, "features.0", ["features.1"]),
    "plain, before a flattening": (Plain, images, "features.3", ["features.4"]),
    "residual": (Residual, images, "stem.0", ["stem.1", "outer.1"]),
    "residual, inside": (Residual, images, "inner.0", ["inner.1"]),
    "depthwise": (Depthwise, images, "expand.0", ["expand.1", "depth.1"]),
    "concatenated, left": (Concatenated, images, "left.0", ["left.1"]),
    "concatenated, right": (Concatenated, images, "right.0", ["right.1"]),
    "multilayer perceptron": (Mlp, rows, "layers.0", ["layers.0"]),
    "multilayer perceptron, second": (Mlp, rows, "layers.2", ["layers.2"]),
    "dataclass out": (Wrapped, rows, "body.layers.0", ["body.layers.0"]),
    "called by keyword": (Position, images, "layers.conv", ["layers.norm"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_narrow_model_equals_the_dense_one_with_those_channels_silenced(case: str) -> None:
    make, example, name, where = CASES[case]
    torch.manual_seed(0)
    model, inputs = settled(make()), example(8)
    narrow, effect = prune(model, ((inputs,), {}), Pruning(target=name, ratio=0.5, round_to=4))
    dense_weight, narrow_weight = (net.get_submodule(name).weight for net in (model, narrow))
    assert len(narrow_weight) == effect[name]["width"] == len(dense_weight) // 2  # type: ignore[arg-type]
    stay = kept(dense_weight, narrow_weight)  # type: ignore[arg-type]
    silenced = copy.deepcopy(model)
    silence(silenced, where, sorted(set(range(len(dense_weight))) - set(stay)))  # type: ignore[arg-type]
    with torch.no_grad():
        for ours, theirs in zip(tensors(narrow(inputs)), tensors(silenced(inputs)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(tensors(model(inputs))[0], tensors(narrow(inputs))[0], atol=1e-3)


def test_several_groups_at_once() -> None:
    torch.manual_seed(0)
    model, inputs = settled(Residual()), images()
    narrow, effect = prune(model, ((inputs,), {}), Pruning(target="*", ratio=0.5))
    assert {name: setting["width"] for name, setting in effect.items()} == {"stem.0": 8, "inner.0": 16}
    shapes = {name: tuple(tensor.shape) for name, tensor in narrow.named_parameters() if tensor.ndim == 4}
    assert shapes == {"stem.0.weight": (8, 3, 3, 3), "inner.0.weight": (16, 8, 3, 3), "outer.0.weight": (8, 16, 3, 3)}
    silenced = copy.deepcopy(model)
    for norm, where in (("stem.1", ["stem.1", "outer.1"]), ("inner.1", ["inner.1"])):
        mean = model.get_buffer(f"{norm}.running_mean")
        stay = kept(mean, narrow.get_buffer(f"{norm}.running_mean"))
        silence(silenced, where, sorted(set(range(len(mean))) - set(stay)))
    with torch.no_grad():
        torch.testing.assert_close(narrow(inputs), silenced(inputs), rtol=1e-4, atol=1e-4)


def test_keyword_arguments_and_dict_outputs() -> None:
    model = Keywords().eval()
    example: Any = ((), {"values": rows(), "mask": torch.ones(4, 12)})
    narrow, _ = prune(model, example, Pruning(target="*", ratio=0.5))
    assert {key: tuple(value.shape) for key, value in narrow(**example[1]).items()} == {"logits": (4, 5), "norm": (4,)}


def test_frozen_parameters_are_pruned_too() -> None:
    model = settled(Residual()).requires_grad_(False)
    narrow, _ = prune(model, ((images(),), {}), Pruning(target="stem.0", ratio=0.5))
    assert narrow.get_submodule("outer.0").weight.shape[:2] == (8, 24)
    assert not any(parameter.requires_grad for parameter in model.parameters())


# --- who goes ---------------------------------------------------------------------------------------------------------


def test_the_weakest_by_the_l2_norm_of_their_own_weights_go() -> None:
    """Li et al. 2017, with p = 2: what reads the channels is made alike, so that the layer stands alone."""
    model = Mlp().eval()
    with torch.no_grad():
        model.layers[2].weight.fill_(0.1)
    narrow, _ = prune(model, ((rows(),), {}), Pruning(target="layers.0", ratio=0.5))
    weight = model.layers[0].weight
    strongest = weight.square().sum(1).sqrt().topk(16).indices.sort().values.tolist()
    assert kept(weight, narrow.get_submodule("layers.0").weight) == strongest  # type: ignore[arg-type]


def test_a_coupled_channel_is_judged_by_all_weights_that_go_with_it() -> None:
    """The group L2 norm of DepGraph (Fang et al. 2023): rows that make a channel and columns that read it."""
    torch.manual_seed(3)
    model = settled(Residual())
    narrow, _ = prune(model, ((images(),), {}), Pruning(target="stem.0", ratio=0.5))
    get = model.get_parameter
    total = (
        get("stem.0.weight").square().sum((1, 2, 3))
        + get("outer.0.weight").square().sum((1, 2, 3))
        + get("inner.0.weight").square().sum((0, 2, 3))
        + get("head.weight").square().sum(0)
        + get("stem.1.weight").square()
        + get("outer.1.weight").square()
    )
    strongest = total.topk(8).indices.sort().values.tolist()
    assert kept(get("stem.0.weight"), narrow.get_parameter("stem.0.weight")) == strongest


# --- how many go ------------------------------------------------------------------------------------------------------


def width(of: int, ratio: float, round_to: int = 8) -> int:
    unit = Unit(name="a", members=("a",), kind="conv", width=of, calls=1, block="a", peers="a")
    return Pruning(target="a", ratio=ratio, round_to=round_to).width(unit)


@pytest.mark.parametrize(
    "of, ratio, round_to, left",
    [
        (64, 0.5, 8, 32),
        (64, 0.55, 8, 32),
        (64, 0.6, 8, 24),
        (64, 0.99, 8, 8),
        (64, 0.999, 1, 1),
        (10, 0.5, 1, 5),
        (6, 0.9, 8, 6),  # fewer than one multiple: left alone
        (10, 0.0, 8, 10),  # nothing asked, nothing done
        (20, 0.05, 8, 20),
        (20, 0.5, 8, 8),
        (20, 0.3, 8, 16),
    ],
)
def test_widths(of: int, ratio: float, round_to: int, left: int) -> None:
    assert width(of, ratio, round_to) == left


def test_widths_fall_with_the_ratio_and_stay_multiples() -> None:
    for of in range(1, 200, 7):
        for round_to in (1, 4, 8, 16):
            widths = [width(of, step / 100, round_to) for step in range(100)]
            assert widths == sorted(widths, reverse=True) and widths[0] == of
            assert all(left == of or (left % round_to == 0 and 0 < left < of) for left in widths)


def test_a_width_that_is_left_alone_is_no_effect() -> None:
    model = settled(Plain())
    units = survey(model, ((images(),), {}), ("pruning",)).units["pruning"]
    assert Pruning.effect((Pruning(target="*", ratio=0.02),), units) == {}
    assert Pruning.effect((), units) == {}


def test_a_model_that_cannot_be_traced_is_refused_by_name() -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Any:
            if torch.is_grad_enabled():
                raise RuntimeError("only for inference")
            return self.layer(x)

    with pytest.raises(RefusedError, match=r"dependencies of Foreign cannot be traced \(RuntimeError: only for"):
        survey(Foreign(), ((rows(),), {}), ("pruning",))
