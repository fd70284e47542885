"""Heads and blocks of encoders and residual networks: equal to the dense model in which they are silent."""

import copy
from typing import Any

import pytest
import torch
from nets import Attention, Bert, Mlp, Plain, Stacked, Vit, images, rows, settled, tokens
from pruning_toys import context, labelled, prune, units
from torch import Tensor, nn

from autogreen.errors import RefusedError
from autogreen.techniques.pruning import Pruning, blocks
from autogreen.techniques.pruning.attention import attentions
from autogreen.techniques.pruning.blocks import Skip
from autogreen.techniques.pruning.graph import groups
from autogreen.techniques.pruning.importance import Evidence

WORDS: Any = {"input_ids": tokens(4), "attention_mask": torch.ones(4, 8, dtype=torch.long)}


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    torch.manual_seed(0)
    return Bert().eval()


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    return Vit().eval()


def names(model: nn.Module, example: Any, structure: str) -> dict[str, int]:
    return {unit.name: unit.width for unit in units(model, example) if unit.structure == structure}


# --- heads --------------------------------------------------------------------------------------------------------


def test_heads_are_found(bert: nn.Module, vit: nn.Module) -> None:
    assert names(bert, ((), WORDS), "head") == {f"encoder.encoder.layer.{n}.attention.self": 4 for n in range(3)}
    assert names(vit, ((images(),), {}), "head") == {f"blocks.{n}.attn": 4 for n in range(3)}
    assert names(Attention().eval(), ((rows(),), {}), "head") == {}  # it does not say how many it has


def closing(weight: Tensor, heads: Any, each: int) -> None:
    """Let the output projection read nothing of these heads."""
    with torch.no_grad():
        for head in heads:
            weight[:, head * each : (head + 1) * each] = 0


@pytest.mark.parametrize("importance", ["magnitude", "gradient", "activation"])
def test_bert_without_heads_equals_bert_with_those_heads_unread(bert: nn.Module, importance: str) -> None:
    task, example = labelled(WORDS), ((), WORDS)
    rules = (
        Pruning(target="*.0.attention.self", structure="head", importance=importance, ratio=0.5),
        Pruning(target="*.1.attention.self", structure="head", importance=importance, ratio=0.75),
    )
    narrow, effect = prune(bert, example, *rules, task=task)
    assert [setting["width"] for setting in effect["head"].values()] == [2, 1]
    dense = copy.deepcopy(bert)
    evidence = Evidence(bert, context(bert, example, task))
    for removable in list(attentions(bert))[:2]:
        (score,) = evidence.removables([removable], importance)
        gone = score.argsort()[: 4 - effect["head"][removable.name]["width"]].tolist()
        closing(dense.get_parameter(removable.name.replace(".self", ".output.dense.weight")), gone, 8)
    with torch.no_grad():
        torch.testing.assert_close(narrow(**WORDS), dense(**WORDS), rtol=1e-4, atol=1e-4)
    attention: Any = narrow.get_submodule("encoder.encoder.layer.1.attention.self")
    assert (attention.num_attention_heads, attention.all_head_size, attention.query.out_features) == (1, 8, 8)
    assert narrow.get_submodule("encoder.encoder.layer.1.attention.output.dense").in_features == 8  # type: ignore[union-attr]


def test_a_head_is_scored_by_all_that_goes_with_it(bert: nn.Module) -> None:
    removable = next(attentions(bert))
    (score,) = Evidence(bert, context(bert, ((), WORDS))).removables([removable], "magnitude")
    attention: Any = bert.get_submodule(removable.name)
    output = bert.get_parameter(removable.name.replace(".self", ".output.dense.weight"))
    for head in range(4):
        rows_of = slice(8 * head, 8 * head + 8)
        weights = [part.weight[rows_of].flatten() for part in (attention.query, attention.key, attention.value)]
        torch.testing.assert_close(score[head], torch.cat([*weights, output[:, rows_of].flatten()]).norm())


def test_a_vision_transformer_without_heads(vit: nn.Module) -> None:
    given = images(8)
    narrow, effect = prune(vit, ((given,), {}), Pruning(target="*", structure="head", ratio=0.5))
    assert all(setting["width"] == 2 for setting in effect["head"].values()) and len(effect["head"]) == 3
    dense = copy.deepcopy(vit)
    evidence = Evidence(vit, context(vit, ((given,), {})))
    for removable in attentions(vit):
        (score,) = evidence.removables([removable], "magnitude")
        closing(dense.get_parameter(f"{removable.name}.proj.weight"), score.argsort()[:2].tolist(), 8)
    with torch.no_grad():
        torch.testing.assert_close(narrow(given), dense(given), rtol=1e-4, atol=1e-4)
    assert narrow.get_submodule("blocks.0.attn").num_heads == 2
    assert narrow.get_parameter("blocks.0.attn.qkv.weight").shape == (48, 32)


def test_bert_without_neurons_equals_bert_with_those_neurons_unread(bert: nn.Module) -> None:
    example, dense = ((), WORDS), copy.deepcopy(bert)
    narrow, effect = prune(bert, example, Pruning(target="*", structure="neuron", ratio=0.5))
    found = dict(groups(bert, example, lambda name: name in effect["neuron"]))
    assert len(found) == 3
    for group in found.values():
        (score,) = Evidence(bert, context(bert, example)).removables([group.removable], "magnitude")
        with torch.no_grad():
            dense.get_parameter(f"{group.removable.reads[0].layer}.weight")[:, score.argsort()[:32]] = 0
    with torch.no_grad():
        torch.testing.assert_close(narrow(**WORDS), dense(**WORDS), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(narrow(**WORDS), bert(**WORDS), atol=1e-3)


def test_heads_and_neurons_at_once_and_in_rounds(bert: nn.Module) -> None:
    rules = (
        Pruning(target="*", structure="head", ratio=0.5, ranking="global"),
        Pruning(target="*", structure="neuron", ratio=0.5),
    )
    example = ((), WORDS)
    effect = Pruning.effect(rules, units(bert, example))
    narrow = copy.deepcopy(bert)
    for share in (0.5, 1.0):
        narrow = Pruning.apply(Pruning.part(effect, share), narrow, context(bert, example))
    left = [removable.width for removable in attentions(narrow)]
    assert sum(left) == 6 and min(left) >= 1
    assert narrow.get_parameter("encoder.encoder.layer.2.intermediate.dense.weight").shape == (32, 32)
    assert narrow(**WORDS).shape == (4, 5)


# --- depth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["magnitude", "gradient", "activation"])
@pytest.mark.parametrize("family", ["residual", "vit", "bert"])
def test_without_blocks_the_others_follow_each_other(
    family: str, importance: str, bert: nn.Module, vit: nn.Module
) -> None:
    torch.manual_seed(0)
    model, given, stack = {
        "residual": (settled(Stacked()), images(), "blocks"),
        "vit": (vit, images(), "blocks"),
        "bert": (bert, WORDS, "encoder.encoder.layer"),
    }[family]
    example: Any = ((), given) if isinstance(given, dict) else ((given,), {})
    task = labelled(given)
    count = names(model, example, "depth")[stack]
    rule = Pruning(target=stack, structure="depth", importance=importance, ratio=0.5)
    shallow, effect = prune(model, example, rule, task=task)
    width = effect["depth"][stack]["width"]
    assert width == round(count / 2)
    score = Evidence(model, context(model, example, task)).blocks([f"{stack}.{n}" for n in range(count)], importance)
    stay = sorted(score.argsort()[count - width :].tolist())
    shorter = copy.deepcopy(model)
    owner, _, leaf = stack.rpartition(".")
    container: Any = shorter.get_submodule(stack)
    left = [container[n] for n in stay]
    setattr(shorter.get_submodule(owner), leaf, nn.Sequential(*left) if family == "residual" else nn.ModuleList(left))
    run = (lambda net: net(**given)) if isinstance(given, dict) else (lambda net: net(given))
    with torch.no_grad():
        torch.testing.assert_close(run(shallow), run(shorter), rtol=1e-4, atol=1e-4)
    assert [n for n in range(count) if not isinstance(shallow.get_submodule(f"{stack}.{n}"), Skip)] == stay


def test_other_layers_keep_their_names_and_layers_of_a_removed_block_are_left_out() -> None:
    model, example = settled(Stacked()), ((images(),), {})
    rules = (
        Pruning(target="blocks", structure="depth", ratio=0.5),
        Pruning(target="*", ratio=0.5),
        Pruning(target="*", structure="weight", ratio=0.5),
    )
    effect = Pruning.effect(rules, units(model, example))
    shallow = copy.deepcopy(model)
    for share in (0.5, 1.0, 1.0):
        shallow = Pruning.apply(Pruning.part(effect, share), shallow, context(model, example))
    assert set(shallow.state_dict()) < set(model.state_dict())
    for name, setting in effect["channel"].items():
        if not blocks.gone(shallow, name):
            assert shallow.get_submodule(name).out_channels == setting["width"]
    assert sum(isinstance(block, Skip) for block in shallow.blocks) == 2 and shallow(images()).shape == (4, 5)


def test_a_plain_sequence_is_no_stack() -> None:
    assert names(settled(Plain()), ((images(),), {}), "depth") == {}
    assert names(Mlp().eval(), ((rows(),), {}), "depth") == {}


def test_blocks_that_change_the_shape_stay() -> None:
    class Wider(nn.Module):
        def __init__(self, inside: int, outside: int) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(inside, outside), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    model = nn.ModuleDict({"body": nn.Sequential(Wider(12, 24), Wider(24, 24), Wider(24, 24), Wider(24, 5))})
    model.forward = lambda x: model["body"](x)  # type: ignore[method-assign]
    found = blocks.stacks(model.eval(), ((rows(),), {}))
    assert [stack.blocks for stack in found] == [("body.1", "body.2")]


def test_a_block_that_returns_a_tuple_is_skipped_as_one() -> None:
    class Layer(nn.Module):
        kind = "full"

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.place = nn.Sequential(nn.Linear(12, 12)), 3

        def forward(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            return hidden + self.layer(hidden), None

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList(Layer() for _ in range(3)), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                assert layer.place == 3
                x, _ = layer(hidden=x, mask=None)
            return self.head(x)

    model = Net().eval()
    shallow, _ = prune(model, ((rows(),), {}), Pruning(target="layers", structure="depth", ratio=0.67))
    left = [n for n, layer in enumerate(shallow.layers) if not isinstance(layer, Skip)]
    assert len(left) == 1
    with torch.no_grad():
        expected = model.head(model.layers[left[0]](rows())[0])
        torch.testing.assert_close(shallow(rows()), expected)


def test_every_block_is_too_many() -> None:
    model, example = settled(Stacked()), ((images(),), {})
    with pytest.raises(RefusedError, match=r"would remove all 4 blocks of 'blocks'"):
        Pruning.effect((Pruning(target="*", structure="depth", ratio=0.95),), units(model, example))
    together = Pruning.effect(
        (Pruning(target="*", structure="depth", ratio=0.5, ranking="global"),), units(model, example)
    )
    assert together == {"depth": {"blocks": {"width": 2, "of": 4, "importance": "magnitude"}}}


def test_a_stack_whose_owner_asks_its_first_block_stays() -> None:
    """nn.TransformerEncoder reads `layers[0].self_attn` in every call."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    assert blocks.stacks(model, ((torch.randn(2, 3, 16),), {})) == ()
