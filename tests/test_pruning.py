"""Pruning: the narrow model equals the dense one with the same channels silenced; who goes is the published rule."""

import copy
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from nets import (
    Bert,
    Concatenated,
    Depthwise,
    Keywords,
    Mlp,
    Plain,
    Position,
    Residual,
    Vit,
    Wrapped,
    images,
    rows,
    settled,
    tokens,
)
from pruning_toys import kept, prune, units
from torch import Tensor, nn

from autogreen.anatomy import survey
from autogreen.errors import RefusedError
from autogreen.techniques.pruning import Pruning, graph
from autogreen.techniques.trace import tensors


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
    "vision transformer": (Vit, images, "blocks.1.mlp.0", ["blocks.1.mlp.0"]),
    "multilayer perceptron": (Mlp, rows, "layers.0", ["layers.0"]),
    "multilayer perceptron, second": (Mlp, rows, "layers.2", ["layers.2"]),
    "dataclass out": (Wrapped, rows, "body.layers.0", ["body.layers.0"]),
    "called by keyword": (Position, images, "layers.conv", ["layers.norm"]),
}


def rule(model: nn.Module, inputs: Tensor, name: str) -> Pruning:
    """Half of whatever the layer is a unit of."""
    structure = next(unit.structure for unit in units(model, ((inputs,), {})) if unit.name == name)
    return Pruning(target=name, structure=structure, ratio=0.5, round_to=4)


@pytest.mark.parametrize("case", CASES)
def test_the_narrow_model_equals_the_dense_one_with_those_channels_silenced(case: str) -> None:
    make, example, name, where = CASES[case]
    torch.manual_seed(0)
    model, inputs = settled(make()), example(8)
    narrow, effect = prune(model, ((inputs,), {}), rule(model, inputs, name))
    dense_weight, narrow_weight = (net.get_submodule(name).weight for net in (model, narrow))
    assert len(narrow_weight) == next(iter(effect.values()))[name]["width"] == len(dense_weight) // 2  # type: ignore[arg-type]
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
    assert {name: setting["width"] for name, setting in effect["channel"].items()} == {"stem.0": 8, "inner.0": 16}
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
    narrow, _ = prune(model, example, Pruning(target="*", structure="neuron", ratio=0.5))
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
    narrow, _ = prune(model, ((rows(),), {}), Pruning(target="layers.0", structure="neuron", ratio=0.5))
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


# --- models that cannot be followed -----------------------------------------------------------------------------------


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


def test_a_graph_that_is_not_done_in_time_is_stopped_and_the_layer_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_pruning

    def endless(self: Any, module: nn.Module, *rest: Any, **more: Any) -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:  # noqa: BLE001 - as careless as a library can be
                continue

    monkeypatch.setattr(torch_pruning.DependencyGraph, "get_pruning_group", endless)
    monkeypatch.setattr(graph, "LIMIT_S", 0.2)
    model, found = settled(Plain()), []
    with pytest.raises(RefusedError, match=r"dependencies of Plain took more than .* stopped at 'features\.0'"):
        units(model, ((images(),), {}))
    assert all(parameter.requires_grad for parameter in model.parameters())

    def elsewhere() -> None:  # an executor may run it in any thread
        try:
            units(model, ((images(),), {}))
        except RefusedError as error:
            found.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(30)
    assert found and "features.0" in found[0]


# --- which units there are --------------------------------------------------------------------------------------------


def test_units_of_every_structure() -> None:
    found = units(settled(Plain()), ((images(),), {}))
    by_structure = {kind: [unit.name for unit in found if unit.structure == kind] for kind in ("channel", "neuron")}
    assert by_structure == {"channel": ["features.0", "features.3"], "neuron": []}
    assert [unit.name for unit in found if unit.structure == "weight"] == ["features.0", "features.3", "head"]
    assert [unit.name for unit in found if unit.structure == "n:m"] == ["head"]


def test_a_width_that_a_layer_norm_averages_over_is_no_unit() -> None:
    """Without some features its mean and variance are others': what stays would change."""
    found = {(unit.structure, unit.name) for unit in units(Vit().eval(), ((images(),), {}))}
    assert ("channel", "patch") not in found and ("neuron", "blocks.0.mlp.2") not in found
    assert {("neuron", f"blocks.{n}.mlp.0") for n in range(3)} <= found


def test_queries_and_keys_are_no_units_of_their_own() -> None:
    model = Bert().eval()
    example = ((), {"input_ids": tokens(), "attention_mask": torch.ones(2, 8)})
    found = [unit.name for unit in units(model, example) if unit.structure == "neuron"]
    assert found == [f"encoder.encoder.layer.{n}.intermediate.dense" for n in range(3)]


def test_surveying_leaves_the_model_as_it_was() -> None:
    model = settled(Residual())
    before = {name: (id(part), part.clone()) for name, part in model.named_parameters()}
    shapes = [(layer.in_channels, layer.out_channels) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    units(model, ((images(),), {}))
    for name, part in model.named_parameters():
        assert id(part) == before[name][0] and torch.equal(part, before[name][1])
    after = [(layer.in_channels, layer.out_channels) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert after == shapes
