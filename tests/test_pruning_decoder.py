"""Hugging Face decoders with grouped-query attention: equal widths in every layer, and a plain config tells them."""

import copy
from typing import Any

import pytest
import torch
from nets import Lm, tokens
from pruning_toys import context, labelled, prune, units
from torch import Tensor, nn

from autogreen.techniques.pruning import Pruning, decoder
from autogreen.techniques.pruning.importance import Evidence

IDS = tokens(4, 8, 300)
EXAMPLE: Any = ((IDS,), {})
STACK = "lm.model.layers"


class NextToken:
    """Labels are the inputs, one further."""

    @staticmethod
    def task() -> Any:
        task = labelled(tokens(4, 8, 300, seed=3), tokens(4, 8, 300, seed=4))
        task.loss = (
            lambda outputs, batch: nn.functional.cross_entropy(  # type: ignore[method-assign]
                outputs[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten()
            )
        )
        return task


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    torch.manual_seed(0)
    return Lm(layers=4).eval()


def pruned(model: nn.Module, importance: str = "magnitude", **ratios: float) -> tuple[nn.Module, Any]:
    rules = [Pruning(target="*", structure=kind, importance=importance, ratio=ratio) for kind, ratio in ratios.items()]
    return prune(model, EXAMPLE, *rules, task=NextToken.task())


def silenced(model: nn.Module, importance: str, effect: Any) -> nn.Module:
    """The dense model, in which nobody reads what the scores name."""
    dense, (found,) = copy.deepcopy(model), decoder.decoders(model)
    evidence = Evidence(model, context(model, EXAMPLE, NextToken.task()))
    for kind, unit, parts in (
        ("neuron", f"{STACK}.mlp", decoder.neurons(model, found)),
        ("head", f"{STACK}.self_attn", decoder.heads(model, found)),
    ):
        if kind not in effect:
            continue
        for removable, score in zip(parts, evidence.removables(parts, importance), strict=True):
            gone = score.argsort(stable=True)[: removable.width - effect[kind][unit]["width"]]
            (read,) = removable.reads
            with torch.no_grad():
                dense.get_parameter(f"{read.layer}.weight")[:, read.places[gone].flatten()] = 0
    return dense


def reloaded(model: nn.Module) -> nn.Module:
    """The decoder as anybody builds it from its config, with the pruned weights."""
    lm: Any = decoder.compact(copy.deepcopy(model)).lm  # type: ignore[union-attr]
    config = type(lm.config)(**lm.config.to_dict())  # it passes its own checks, as from a file
    fresh = type(lm)(config).eval()
    fresh.load_state_dict(lm.state_dict(), strict=True)
    return fresh


def test_units_are_uniform_over_the_layers_and_torch_pruning_is_not_asked(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autogreen.techniques.pruning.survey.groups", None)  # it would loop for ever on grouped keys
    found = {(unit.structure, unit.name): unit for unit in units(llama, EXAMPLE)}
    widths = {key: unit.width for key, unit in found.items() if key[0] in ("neuron", "head", "depth", "channel")}
    assert widths == {("neuron", f"{STACK}.mlp"): 128, ("head", f"{STACK}.self_attn"): 2, ("depth", STACK): 4}
    assert {f"{STACK}.3.mlp.gate_proj", f"{STACK}.0.mlp.up_proj"} < set(found["neuron", f"{STACK}.mlp"].members)
    assert sum(kind == "weight" for kind, _ in found) == 4 * 7 + 1


@pytest.mark.parametrize("importance", ["magnitude", "gradient", "activation"])
def test_the_narrow_decoder_equals_the_dense_one_with_those_silenced(llama: nn.Module, importance: str) -> None:
    narrow, effect = pruned(llama, importance, neuron=0.5, head=0.5)
    assert effect["neuron"][f"{STACK}.mlp"]["width"] == 64 and effect["head"][f"{STACK}.self_attn"]["width"] == 1
    with torch.no_grad():
        found = narrow(IDS)
        torch.testing.assert_close(found, silenced(llama, importance, effect)(IDS), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, llama(IDS), atol=1e-3)
    narrow.lm(IDS, labels=IDS).loss.backward()  # it can be trained


def test_layers_lose_different_neurons_but_equally_many(llama: nn.Module) -> None:
    narrow, _ = pruned(llama, neuron=0.25)
    kept = []
    for layer in range(4):
        dense, left = (net.get_parameter(f"{STACK}.{layer}.mlp.up_proj.weight") for net in (llama, narrow))
        assert left.shape == (96, 64)
        kept.append([row for row in range(128) if any(torch.equal(dense[row], other) for other in left)])
    assert len({tuple(rows) for rows in kept}) == 4


def test_a_plain_config_describes_the_result(llama: nn.Module) -> None:
    narrow, _ = pruned(llama, neuron=0.5, head=0.5, depth=0.5)
    assert narrow.lm.config.num_hidden_layers == 4  # names are those of the dense model until it is compacted
    fresh = reloaded(narrow)
    config = fresh.config
    assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (64, 2, 1)
    assert (config.head_dim, config.num_hidden_layers) == (16, 2)
    with torch.no_grad():
        torch.testing.assert_close(fresh(IDS).logits, narrow(IDS), rtol=1e-5, atol=1e-5)
    assert llama.lm.config.intermediate_size == 128  # the model it came from is another's


@pytest.mark.parametrize("kind", ["Qwen2", "Mistral", "Qwen3"])
def test_relatives_of_llama(kind: str) -> None:
    torch.manual_seed(0)
    model = Lm(kind, layers=2, **({"head_dim": 16} if kind == "Qwen3" else {})).eval()
    narrow, effect = pruned(model, neuron=0.5, head=0.5, depth=0.5)
    assert set(effect) == {"neuron", "head", "depth"}
    fresh = reloaded(narrow)
    with torch.no_grad():
        torch.testing.assert_close(fresh(IDS).logits, narrow(IDS), rtol=1e-5, atol=1e-5)
    width_only, effect = pruned(model, neuron=0.5, head=0.5)
    with torch.no_grad():
        dense = silenced(model, "magnitude", effect)
        torch.testing.assert_close(width_only(IDS), dense(IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("importance", ["magnitude", "gradient", "activation"])
def test_without_layers_the_others_follow_each_other(llama: nn.Module, importance: str) -> None:
    shallow, _ = pruned(llama, importance, depth=0.5)
    score = Evidence(llama, context(llama, EXAMPLE, NextToken.task())).blocks(
        [f"{STACK}.{n}" for n in range(4)], importance
    )
    stay = sorted(score.argsort()[2:].tolist())
    shorter: Any = copy.deepcopy(llama)
    shorter.lm.model.layers = nn.ModuleList([shorter.lm.model.layers[n] for n in stay])
    with torch.no_grad():
        torch.testing.assert_close(shallow(IDS), shorter(IDS), rtol=1e-5, atol=1e-5)


def test_a_shallow_decoder_generates_with_a_cache(llama: nn.Module) -> None:
    shallow, _ = pruned(llama, depth=0.5)

    def greedy(cached: bool) -> Tensor:
        return shallow.lm.generate(IDS[:1], max_new_tokens=5, do_sample=False, use_cache=cached, pad_token_id=0)

    assert torch.equal(greedy(True), greedy(False))
    compact: Any = decoder.compact(copy.deepcopy(shallow))
    assert torch.equal(compact.lm.generate(IDS[:1], max_new_tokens=5, do_sample=False, pad_token_id=0), greedy(True))


def test_rounds_reach_the_widths_of_the_whole(llama: nn.Module) -> None:
    rules = [Pruning(target="*", structure=kind, ratio=0.5) for kind in ("neuron", "head", "depth", "weight")]
    effect = Pruning.effect(rules, units(llama, EXAMPLE))
    narrow = copy.deepcopy(llama)
    for share in (0.3, 0.6, 1.0):
        narrow = Pruning.apply(Pruning.part(effect, share), narrow, context(llama, EXAMPLE))
        narrow.lm(IDS, labels=IDS).loss.backward()
        narrow.zero_grad()
    config = reloaded(narrow).config
    assert (config.intermediate_size, config.num_key_value_heads, config.num_hidden_layers) == (64, 1, 2)


def test_a_number_of_heads_that_the_config_would_refuse_is_not_chosen() -> None:
    """Llama's config wants the heads to divide the hidden size: of 8 heads in 64 features 6 may not stay, 4 may."""
    model = Lm(layers=2, num_attention_heads=8, num_key_value_heads=4).eval()
    narrow, effect = pruned(model, head=0.25)
    assert effect == {}
    narrow, effect = pruned(model, head=0.35)
    assert effect["head"][f"{STACK}.self_attn"]["width"] == 2 and reloaded(narrow).config.num_attention_heads == 4


def test_of_grouped_keys_in_other_clothes_only_single_weights_are_units() -> None:
    """torch-pruning would loop for ever, and nobody here knows where its heads lie."""
    model = Lm("Phi3", layers=2, pad_token_id=0).eval()  # one qkv layer, one for gate and up
    assert {unit.structure for unit in units(model, EXAMPLE)} == {"weight", "n:m"}
