"""Pruning: the narrow model equals the dense one with the same channels silenced; who goes is the published rule."""

import copy
import json
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
from pruning_toys import context, kept, prune, units
from torch import Tensor, nn

from autogreen.anatomy import survey
from autogreen.errors import ConfigError, RefusedError
from autogreen.schema import parse_yaml
from autogreen.space import SearchSpace
from autogreen.techniques import Unit
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


# --- how many go ------------------------------------------------------------------------------------------------------


def width(of: int, ratio: float, round_to: int = 8) -> int:
    unit = Unit(name="a", members=("a",), kind="conv", width=of, calls=1, block="a", structure="channel")
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
    found = units(model, ((images(),), {}))
    assert Pruning.effect((Pruning(target="*", ratio=0.02),), found) == {}
    assert Pruning.effect((Pruning(target="*", ratio=0.01, ranking="global"),), found) == {}
    assert Pruning.effect((), found) == {}


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


# --- the effect -------------------------------------------------------------------------------------------------------


def some(name: str, width: int, structure: str = "channel", **more: Any) -> Unit:
    return Unit(name=name, members=(name,), kind="conv", width=width, calls=1, block=name, structure=structure, **more)


def effect(*rules: Pruning, of: Sequence[Unit] = (some("a", 32), some("b", 64))) -> dict[str, Any]:
    return Pruning.effect(rules, of)


def test_ranked_together_an_effect_tells_ratio_and_members() -> None:
    found = effect(Pruning(target="*", ratio=0.5, ranking="global"))
    together = {"structure": "channel", "importance": "magnitude", "ratio": 0.5, "round_to": 8}
    assert found == {"global": [{**together, "units": {"a": 32, "b": 64}}]}
    apart = effect(Pruning(target="a", ratio=0.5, ranking="global"), Pruning(target="b", ratio=0.5, ranking="global"))
    assert apart == found  # two texts, one effect


def test_one_unit_ranked_with_nobody_is_ranked_by_itself() -> None:
    alone = effect(Pruning(target="a", ratio=0.5, ranking="global"))
    assert alone == effect(Pruning(target="a", ratio=0.5)) == effect(Pruning(target="a", ratio=0.5, round_to=8))


def test_a_part_of_an_effect() -> None:
    whole = effect(
        Pruning(target="*", ratio=0.75),
        Pruning(target="*", structure="depth", ratio=0.5),
        Pruning(target="*", structure="weight", ratio=0.8),
        Pruning(target="*", structure="n:m", ratio=0.5),
        of=(some("a", 32), some("s", 6, "depth"), some("w", 9, "weight"), some("l", 16, "n:m")),
    )
    assert Pruning.part(whole, 1.0) == whole
    half = Pruning.part(whole, 0.5)
    assert half["channel"]["a"] == {"width": 24, "of": 32, "importance": "magnitude"}  # 20: the gentler multiple of 8
    assert half["depth"]["s"]["width"] == 5  # 4.5: a block is whole
    assert half["weight"]["w"]["sparsity"] == 0.4 and "n:m" not in half
    assert "channel" not in Pruning.part(whole, 0.05)
    widths = [Pruning.part(whole, n / 20).get("channel", {"a": {"width": 32}})["a"]["width"] for n in range(1, 21)]
    assert widths == sorted(widths, reverse=True) and widths[-1] == 8
    for share in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match="share"):
            Pruning.part(whole, share)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"structure": "chanel"}, "structure must be one of .*not 'chanel'.*Did you mean 'channel'"),
        ({"importance": "gradients"}, "importance must be one of .*not 'gradients'.*Did you mean 'gradient'"),
        ({"ranking": "globl"}, "ranking must be one of .*Did you mean 'global'"),
        ({"ratio": 1.0}, r"ratio must be in \[0, 1\)"),
        ({"ratio": float("nan")}, r"ratio must be in \[0, 1\)"),
        ({"structure": "n:m", "ratio": 0.4}, "ratio of n:m is 0 .off. or 0.5"),
        ({"structure": "n:m", "ratio": 0.5, "ranking": "global"}, "ranking of n:m is 'layer'"),
        ({"structure": "weight", "round_to": 8}, "round_to counts"),
        ({"round_to": 0}, "round_to must be at least 1"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Pruning(target="*", **settings)


def test_a_target_that_would_match_as_another_structure_says_so() -> None:
    found = units(Mlp().eval(), ((rows(),), {}))
    with pytest.raises(RefusedError, match=r"as 'channel'. Treatable: nothing. It would match as 'neuron' or 'weight'"):
        Pruning.effect((Pruning(target="layers.0", ratio=0.5),), found)
    with pytest.raises(RefusedError, match=r"as 'neuron'. Treatable: layers.0, layers.2. It would match as 'weight'"):
        Pruning.effect((Pruning(target="head", structure="neuron", ratio=0.5),), found)


def test_a_multiple_above_the_width_is_refused_where_it_was_asked_for() -> None:
    with pytest.raises(RefusedError, match=r"round_to 16 is more than the 12 that 'a' has"):
        effect(Pruning(target="a", ratio=0.5, round_to=16), of=(some("a", 12),))
    assert effect(Pruning(target="a", ratio=0.5), of=(some("a", 6),)) == {}


def test_a_depth_that_leaves_no_block_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"ratio 0.9 would remove all 4 blocks of 's'. At most 0.75"):
        effect(Pruning(target="s", structure="depth", ratio=0.9), of=(some("s", 4, "depth"),))
    assert (
        effect(Pruning(target="s", structure="depth", ratio=0.75), of=(some("s", 4, "depth"),))["depth"]["s"]["width"]
        == 1
    )


def test_an_effect_of_another_model_is_refused() -> None:
    model = settled(Plain())
    strange = {"channel": {"body.0": {"width": 8, "of": 16, "importance": "magnitude"}}}
    with pytest.raises(RefusedError, match=r"body\.0 cannot be found"):
        Pruning.apply(strange, model, context(model, ((images(),), {})))


def test_one_layer_is_not_both_two_of_four_and_quantized() -> None:
    anatomy = survey(Mlp().eval(), ((rows(),), {}), ("pruning", "quantization"))
    text = (
        'pruning: [{target: "layers.*", structure: n:m, ratio: 0.5}]\nquantization: [{target: layers.2, scheme: bf16}]'
    )
    policy = SearchSpace.from_json(parse_yaml(text, "here")).policy()
    with pytest.raises(RefusedError, match=r"n:m for layers\.2, which quantization gives a scheme"):
        policy.effect(anatomy)
    apart = SearchSpace.from_json(parse_yaml(text.replace("layers.2", "head"), "here")).policy()
    assert set(apart.effect(anatomy).parts["pruning"]["n:m"]) == {"layers.0", "layers.2"}


def test_policies_of_every_structure_are_read_back_as_they_were() -> None:
    space = SearchSpace.from_json(
        {
            "pruning": [
                {"each": "*", "structure": structure, "importance": "gradient", "ratio": {"choice": [0.0, 0.5]}}
                for structure in ("channel", "neuron", "head", "depth", "weight", "n:m")
            ]
        }
    )
    assert SearchSpace.from_json(space.to_json()) == space
    model = Bert().eval()
    anatomy = survey(model, ((), {"input_ids": tokens(), "attention_mask": torch.ones(2, 8)}), ("pruning",))
    with pytest.raises(
        RefusedError, match=r"'\*' matches nothing .* as 'channel'. Treatable: nothing. It would match as"
    ):
        space.expand(anatomy)
    whole = SearchSpace({"pruning": space.sections["pruning"][1:]}).expand(anatomy)
    policy = whole.at(1.0)
    assert SearchSpace.from_json(policy.to_json()).policy() == policy
    found = policy.effect(anatomy)
    assert set(found.parts["pruning"]) == {"neuron", "head", "depth", "weight", "n:m"}
    assert type(anatomy).from_json(json.loads(json.dumps(anatomy.to_json()))) == anatomy
