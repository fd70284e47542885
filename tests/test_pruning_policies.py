"""Pruning's settings, and what they come to: widths, effects, parts of effects, and what is refused before training."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from nets import Bert, Mlp, Plain, images, rows, settled, tokens
from pruning_toys import context, units

from autogreen.anatomy import survey
from autogreen.errors import ConfigError, RefusedError
from autogreen.schema import parse_yaml
from autogreen.space import SearchSpace
from autogreen.techniques import Unit
from autogreen.techniques.pruning import Pruning

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
