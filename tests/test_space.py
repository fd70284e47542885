"""Search spaces: strict at the edge, holes as Optuna should see them, `each` by unit, what is refused taken out."""

import random
import warnings
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from test_policy import ANATOMY, unit

from autogreen.anatomy import Anatomy
from autogreen.errors import ConfigError, RefusedError
from autogreen.policy import Policy
from autogreen.restriction import restrict
from autogreen.samplers import first
from autogreen.space import Hole, SearchSpace

# what transformers have; a decoder's layers are one unit
TRANSFORMER = replace(
    ANATOMY,
    units={
        **ANATOMY.units,
        "pruning": (
            unit("layer.0.intermediate.dense", kind="linear", structure="neuron", width=256),
            unit("layer.0.attention.self", kind="attention", structure="head", width=12),
            unit("layer", kind="block", structure="depth", width=6),
            unit("lm.model.layers.mlp", kind="linear", structure="neuron", width=256),
            unit("lm.model.layers.self_attn", kind="attention", structure="head", width=4),
            unit("lm.model.layers", kind="block", structure="depth", width=6),
        ),
    },
)
SPACES = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml"))


def space(**sections: Any) -> SearchSpace:
    return SearchSpace.from_json(sections)


def trial(**params: Any) -> optuna.trial.FixedTrial:
    return optuna.trial.FixedTrial(params)


def ratio(hole: Any) -> SearchSpace:
    return space(pruning=[{"target": "stem.0", "ratio": hole}])


RATIO = "pruning[stem.0].ratio"


# --- at the edge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections, told",
    [
        ({"prunning": []}, r"unknown key 'prunning'\. Did you mean 'pruning'"),
        ({"pruning": {}}, "must be a list of rules"),
        ({"pruning": None}, "must be a list of rules"),
        ({"distillation": []}, "must be a mapping"),
        ({"runtime": "inductor"}, "must be a mapping"),
        ({"pruning": ["*"]}, r"pruning\.0 must be a mapping"),
        ({"pruning": [{"ratio": 0.5}]}, "needs either `target` or `each`"),
        ({"pruning": [{"target": "*", "each": "*"}]}, "needs either `target` or `each`"),
        ({"pruning": [{"target": 5}]}, r"pruning\.0\.target must be a glob"),
        ({"pruning": [{"each": ["a"]}]}, r"pruning\.0\.each must be a glob"),
        ({"pruning": [{"target": {"choice": ["a", "b"]}}]}, r"pruning\.0\.target must be a glob"),
        ({"pruning": [{"each": {"choice": ["a", "b"]}}]}, r"pruning\.0\.each must be a glob"),
        ({"pruning": [{"target": "*", "by": "block"}]}, "must be `block`, beside `each`"),
        ({"pruning": [{"each": "*", "by": "layer"}]}, "must be `block`"),
        ({"pruning": [{"each": "*", "by": {"choice": ["block"]}}]}, "must be `block`"),
        ({"pruning": [{"target": "*"}, {"target": "*", "ratio": 0.5}]}, r"pruning\.1 can never apply: rule 0"),
        ({"pruning": [{"target": "*", "ration": 0.5}]}, r"unknown key 'ration'\. Did you mean 'ratio'"),
        ({"pruning": [{"target": "*", "ratio": 1.0}]}, r"pruning\.0: ratio must be in \[0, 1\), not 1\.0"),
        ({"pruning": [{"target": "*", "ratio": -0.1}]}, r"ratio must be in \[0, 1\)"),
        ({"pruning": [{"target": "*", "ratio": float("nan")}]}, r"ratio must be in \[0, 1\)"),
        ({"pruning": [{"target": "*", "ratio": "0.5"}]}, r"pruning\.0\.ratio.*'0\.5'"),
        ({"pruning": [{"target": "*", "ratio": True}]}, r"pruning\.0\.ratio.*True"),
        ({"pruning": [{"target": "*", "round_to": 0}]}, "round_to must be at least 1"),
        ({"pruning": [{"target": "*", "round_to": 8.0}]}, r"pruning\.0\.round_to"),
        ({"pruning": [{"target": "*", "structure": "weird"}]}, "structure.*'channel'"),
        ({"pruning": [{"target": "*", "importance": "magic"}]}, "importance.*'magnitude'"),
        ({"quantization": [{"target": "*", "scheme": "int3"}]}, "unknown scheme 'int3'.*none, fp16, bf16"),
        ({"distillation": {"alpha": 1.5}}, r"alpha must be in \[0, 1\], not 1\.5"),
        ({"distillation": {"temperature": 0}}, "temperature must be above 0"),
        ({"distillation": {"temperature": float("inf")}}, "temperature must be above 0"),
        ({"distillation": {"epochs": -1}}, "epochs must be 0 or more"),
        ({"distillation": {"epochs": 1.5}}, r"distillation\.epochs"),
        ({"parallelism": {"threads": 0}}, "threads must be 1 or more"),
        ({"parallelism": {"batch": 0}}, "batch must be 1 or more"),
        ({"runtime": {"engine": "inducto"}}, r"unknown engine 'inducto'\. Did you mean 'inductor'"),
    ],
)
def test_what_is_refused(sections: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        space(**sections)


@pytest.mark.parametrize(
    "hole, told",
    [
        ({"choice": []}, "at least one option"),
        ({"choice": 0.5}, "must be a list"),
        ({"choice": [0.1, 0.1]}, "names 0.1 twice"),
        ({"choice": [0, False]}, "twice"),
        ({"choice": [0.1, [0.2]]}, r"choice\.1 must be text, a finite number"),
        ({"choice": [float("inf"), 0.1]}, r"choice\.0 must be"),
        ({"choice": [10**400, 0]}, r"choice\.0 must be"),
        ({"choice": [0.5, 1.0]}, r"ratio must be in \[0, 1\), not 1\.0"),
        ({"choice": [0.5, "a lot"]}, "'a lot'"),
        ({"chioce": [0.5]}, "one hole"),
        ({"choice": [0.5], "float": {}}, "one hole"),
        ({}, "one hole"),
        ({"float": 0.5}, "with low and high"),
        ({"float": {"low": 0.1}}, r"float\.high must be a finite number"),
        ({"float": {"low": "0", "high": 0.5}}, r"float\.low must be a finite number, not '0'"),
        ({"float": {"low": 0, "high": float("nan")}}, r"float\.high must be"),
        ({"float": {"low": 0, "high": 10**400}}, r"float\.high must be"),
        ({"float": {"low": False, "high": 0.5}}, r"float\.low must be"),
        ({"float": {"low": 0.5, "high": 0.5}}, "must be below high"),
        ({"float": {"low": 0, "high": 0.5, "step": 0}}, "step must be above 0"),
        ({"float": {"low": 0, "high": 0.5, "step": 0.6}}, "step must be above 0 and at most"),
        ({"float": {"low": 0, "high": 0.5, "log": True}}, "log needs low above 0"),
        ({"float": {"low": 0.1, "high": 0.5, "log": 1}}, "log must be true or false"),
        ({"float": {"low": 0.1, "high": 0.5, "log": True, "step": 0.1}}, "no step"),
        ({"float": {"low": 0, "high": 0.5, "stpe": 0.1}}, r"unknown key 'stpe'\. Did you mean 'step'"),
        ({"float": {"low": 0, "high": 1}}, r"ratio must be in \[0, 1\)"),
        ({"int": {"low": 0.0, "high": 3}}, r"int\.low must be a whole number"),
        ({"int": {"low": 0, "high": 3}}, r"ratio must be in \[0, 1\)"),
    ],
)
def test_holes_that_are_refused(hole: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ratio(hole)


def test_a_range_of_broken_numbers_for_a_whole_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"distillation\.epochs"):
        space(distillation={"epochs": {"float": {"low": 1, "high": 3}}})


@pytest.mark.parametrize("data", [None, [], "cnn.yaml", 3])
def test_a_space_that_is_no_mapping(data: Any) -> None:
    with pytest.raises(ConfigError, match="must be a mapping of sections"):
        SearchSpace.from_json(data)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_shipped_space_loads_and_says_so_again(path: Path) -> None:
    found = SearchSpace.load(path)
    assert found.holes() and SearchSpace.from_json(found.to_json()) == found
    assert found.expand(ANATOMY if path.stem == "cnn" else TRANSFORMER).holes()


# --- holes and Optuna -------------------------------------------------------------------------------------------------


def distributions(found: SearchSpace) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = study.ask()
    found.fill(asked)
    return dict(asked.distributions)


def test_ordered_options_reach_optuna_as_ordinals() -> None:
    found = space(
        pruning=[{"target": "stem.0", "ratio": {"choice": [0.5, 0.0, 0.25]}, "round_to": {"choice": [8, 1, 4]}}],
        quantization=[{"target": "head", "scheme": {"ordered": ["none", "bf16", "w8a8_static"]}}],
        runtime={"engine": {"choice": ["eager", "inductor"]}},
    )
    whole = optuna.distributions.IntDistribution(0, 2)
    assert distributions(found) == {
        RATIO: whole,
        "pruning[stem.0].round_to": whole,
        "quantization[head].scheme": whole,
        "runtime.engine": optuna.distributions.CategoricalDistribution(("eager", "inductor")),
    }
    filled = found.fill(
        trial(
            **{
                RATIO: 1,
                "pruning[stem.0].round_to": 0,
                "quantization[head].scheme": 2,
                "runtime.engine": "inductor",
            }
        )
    )
    assert filled.to_json()["pruning"][0]["ratio"] == 0.25  # numbers are sorted
    assert filled.to_json()["pruning"][0]["round_to"] == 1
    assert filled.to_json()["quantization"][0]["scheme"] == "w8a8_static"
    assert filled.to_json()["runtime"]["engine"] == "inductor"


def test_ranges_reach_optuna_in_its_own_words() -> None:
    found = space(
        pruning=[{"target": "stem.0", "ratio": {"float": {"low": 0.0, "high": 0.75, "step": 0.125}}}],
        distillation={
            "epochs": {"int": {"low": 1, "high": 9, "step": 2}},
            "temperature": {"float": {"low": 1, "high": 8, "log": True}},
            "alpha": {"float": {"low": 0, "high": 1}},
        },
        parallelism={"threads": {"int": {"low": 1, "high": 64, "log": True}}},
    )
    assert distributions(found) == {
        RATIO: optuna.distributions.FloatDistribution(0.0, 0.75, step=0.125),
        "distillation.epochs": optuna.distributions.IntDistribution(1, 9, step=2),
        "distillation.temperature": optuna.distributions.FloatDistribution(1, 8, log=True),
        "distillation.alpha": optuna.distributions.FloatDistribution(0, 1),
        "parallelism.threads": optuna.distributions.IntDistribution(1, 64, log=True),
    }


def test_stepped_floats_are_clean() -> None:
    found = ratio({"float": {"low": 0.0, "high": 0.9, "step": 0.1}})
    seen = {found.fill(trial(**{RATIO: 0.1 * n})).to_json()["pruning"][0]["ratio"] for n in range(10)}
    assert 0.1 * 3 != 0.3  # why this is a test
    assert seen == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}


def test_a_range_ends_at_its_last_step_without_a_warning() -> None:
    found = ratio({"float": {"low": 0.0, "high": 0.75, "step": 0.2}})
    assert distributions(found) == {RATIO: optuna.distributions.FloatDistribution(0.0, 0.6, step=0.2)}
    whole = space(distillation={"epochs": {"int": {"low": 1, "high": 6, "step": 2}}})
    assert distributions(whole) == {"distillation.epochs": optuna.distributions.IntDistribution(1, 5, step=2)}


def test_tiny_numbers_stay_what_they_are() -> None:
    found = space(distillation={"learning_rate": {"float": {"low": 1e-13, "high": 1e-3, "log": True}}})
    for wanted in (1e-13, 3.3e-12, 1e-3):
        got = found.fill(trial(**{"distillation.learning_rate": wanted})).to_json()["distillation"]["learning_rate"]
        assert got == pytest.approx(wanted, rel=1e-9) and 1e-13 <= got <= 1e-3


def test_one_option_is_no_hole() -> None:
    found = ratio({"choice": [0.5]})
    assert found.holes() == {} and found.policy().to_json()["pruning"][0]["ratio"] == 0.5


def test_a_space_is_not_one_policy() -> None:
    with pytest.raises(ConfigError, match=r"leaves pruning\[stem\.0\]\.ratio open"):
        ratio({"choice": [0.25, 0.5]}).policy()


def test_values_are_frozen() -> None:
    hole = ratio({"choice": [0.25, 0.5]}).holes()[RATIO]
    with pytest.raises(FrozenInstanceError):
        hole.options = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        ratio(0.5).sections = {}  # type: ignore[misc]


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hole, low, middle, high",
    [
        ({"choice": [0.0, 0.25, 0.5]}, 0.0, 0.25, 0.5),
        ({"float": {"low": 0.1, "high": 0.5}}, 0.1, 0.3, 0.5),
        ({"float": {"low": 0.0, "high": 0.6, "step": 0.1}}, 0.0, 0.3, 0.6),
        ({"float": {"low": 0.0, "high": 0.9, "step": 0.35}}, 0.0, 0.35, 0.7),
        ({"float": {"low": 0.01, "high": 0.81, "log": True}}, 0.01, 0.09, 0.81),
        ({"float": {"low": 0.001, "high": 0.006, "log": True}}, 0.001, 0.00244948974278, 0.006),
    ],
)
def test_levels(hole: Any, low: float, middle: float, high: float) -> None:
    found = ratio(hole)
    for level, wanted in ((0.0, low), (0.5, middle), (1.0, high)):
        assert found.at(level).to_json()["pruning"][0]["ratio"] == wanted
        params = found.uniform({"pruning": level})
        assert found.fill(trial(**params)).to_json()["pruning"][0]["ratio"] == wanted


def test_every_level_of_every_hole_lies_inside_what_optuna_knows() -> None:
    rng = random.Random(0)
    for _ in range(300):
        low = round(rng.uniform(0.001, 0.4), 6)
        high = round(low + rng.uniform(0.01, 0.5), 6)
        step = rng.choice([None, round(rng.uniform(0.003, 0.01), 6)])
        log = step is None and rng.random() < 0.5
        found = ratio({"float": {"low": low, "high": high, "step": step, "log": log}})
        distribution = distributions(found)[RATIO]
        for level in (0.0, rng.random(), 1.0):
            assert distribution._contains(found.uniform({"pruning": level})[RATIO])


def test_sections_without_a_level_stand_in_the_middle_and_unordered_holes_at_the_first() -> None:
    found = space(
        pruning=[{"target": "stem.0", "ratio": {"choice": [0.0, 0.25, 0.5]}}],
        distillation={"epochs": {"int": {"low": 1, "high": 5}}},
        quantization=[{"target": "head", "scheme": {"ordered": ["none", "bf16", "w8a8_static"]}}],
        runtime={"engine": {"choice": ["inductor", "eager"]}},
    )
    assert found.uniform({"pruning": 1.0, "quantization": 0.0}) == {
        RATIO: 2,
        "distillation.epochs": 3,
        "quantization[head].scheme": 0,
        "runtime.engine": "inductor",
    }


# --- each -------------------------------------------------------------------------------------------------------------

SCHEMES = {"ordered": ["none", "bf16", "w8a8_static"]}


def names(found: SearchSpace) -> list[str]:
    return list(found.expand(ANATOMY).holes())


def test_each_makes_one_hole_a_layer_or_a_group() -> None:
    assert names(space(quantization=[{"each": "*", "scheme": SCHEMES}])) == [
        f"quantization[{layer.name}].scheme" for layer in ANATOMY.units["quantization"]
    ]
    assert names(space(pruning=[{"each": "*", "ratio": {"choice": [0.0, 0.5]}}])) == [
        "pruning[stem.0].ratio",
        "pruning[blocks.0.conv1].ratio",
        "pruning[blocks.1.conv1].ratio",
    ]


def test_each_by_block_shares_a_hole() -> None:
    found = space(quantization=[{"each": "*", "by": "block", "scheme": SCHEMES}])
    blocks = ["stem", "blocks.0", "blocks.1", "head"]
    assert names(found) == [f"quantization[block {block}].scheme" for block in blocks]
    levels = dict.fromkeys(names(found), 0) | {"quantization[block blocks.1].scheme": 2}
    effect = found.expand(ANATOMY).fill(trial(**levels)).effect(ANATOMY)
    assert effect.parts["quantization"] == {"blocks.1.conv1": "w8a8_static", "blocks.1.conv2": "w8a8_static"}


def test_layers_that_a_server_fuses_share_a_hole() -> None:
    units = (unit("q", "k", "v", kind="linear"), unit("o", kind="linear"))
    attention = Anatomy(model="Attention", parameters=1, units={"quantization": units})
    found = space(quantization=[{"each": "*", "scheme": SCHEMES}]).expand(attention)
    assert list(found.holes()) == ["quantization[q].scheme", "quantization[o].scheme"]
    levels = {"quantization[q].scheme": 2, "quantization[o].scheme": 0}
    effect = found.fill(trial(**levels)).effect(attention)
    assert effect.parts["quantization"] == dict.fromkeys("qkv", "w8a8_static")


def test_a_rule_reaches_units_of_its_structure_only() -> None:
    heads, wide = unit("attention", structure="head"), unit("attention", "fc", structure="channel")
    anatomy = Anatomy(model="Net", parameters=1, units={"pruning": (heads, wide)})
    ratio = {"choice": [0.0, 0.5]}
    found = space(pruning=[{"each": "*", "ratio": ratio}]).expand(anatomy)
    assert list(found.holes()) == ["pruning[attention].ratio"]
    with pytest.raises(ConfigError, match="cannot be left open"):
        space(pruning=[{"each": "*", "structure": {"choice": ["channel"]}, "ratio": ratio}])


def test_what_is_tried_first_holds_each_scheme_on_all_layers_and_each_level_of_pruning() -> None:
    found = space(
        pruning=[{"each": "*", "ratio": {"choice": [0.0, 0.5]}}],
        quantization=[
            {"target": "head", "scheme": "none"},
            {"each": "*", "scheme": {"choice": ["none", "bf16", "w8a8"]}},
        ],
    ).expand(ANATOMY)
    proposals = list(first(found))
    layers = [name for name in found.holes() if name.startswith("quantization")]
    ratios = [name for name in found.holes() if name.startswith("pruning")]
    uniform = [({proposal[name] for name in layers}, {proposal[name] for name in ratios}) for proposal in proposals]
    assert uniform[:2] == [({"bf16"}, {0}), ({"w8a8"}, {0})]
    assert uniform[2:] == [({"w8a8"}, {level}) for level in (0, 0, 0, 1, 1, 1)]
    engines = space(runtime={"engine": {"choice": ["eager", "inductor"]}})
    assert next(first(engines)) == {"runtime.engine": "eager"}


def test_one_glob_for_two_structures_leaves_two_holes() -> None:
    found = space(
        pruning=[
            {"target": "*", "ratio": {"choice": [0.0, 0.5]}},
            {"target": "*", "structure": "head", "ratio": {"choice": [0.0, 0.25]}},
        ]
    )
    assert list(found.holes()) == ["pruning[*].ratio", "pruning[head *].ratio"]
    first, second = found.fill(trial(**{"pruning[*].ratio": 1, "pruning[head *].ratio": 1})).settings["pruning"]
    assert (first.ratio, second.ratio) == (0.5, 0.25)


def test_a_rule_is_refused_for_what_no_other_section_can_give() -> None:
    """Learning to be rounded needs training: a section of its own, which a rule does not know of."""
    rule = {"target": "head", "scheme": "w8a8_static", "qat": True}
    runtime = {"engine": "inductor"}
    taught = space(quantization=[rule], distillation={"epochs": 1}, runtime=runtime)
    assert restrict(taught, ANATOMY, device="cpu", batch=64) == (taught, {})
    with pytest.raises(RefusedError, match="qat for head, but nothing trains"):
        restrict(space(quantization=[rule], runtime=runtime), ANATOMY, device="cpu", batch=64)


def test_each_skips_what_an_earlier_rule_covers() -> None:
    found = space(
        quantization=[{"target": "head", "scheme": "none"}, {"each": "blocks.0.*", "scheme": SCHEMES}, {"target": "*"}]
    )
    assert names(found) == ["quantization[blocks.0.conv1].scheme", "quantization[blocks.0.conv2].scheme"]


def test_two_rules_by_block_have_holes_of_their_own() -> None:
    found = space(
        quantization=[
            {"each": "*conv1", "by": "block", "scheme": {"ordered": ["none", "w8a8_static"]}},
            {"each": "*conv2", "by": "block", "scheme": {"ordered": ["bf16", "none"]}},
        ]
    ).expand(ANATOMY)
    assert len(found.holes()) == 4
    chosen = found.at(0.0).effect(ANATOMY).parts["quantization"]
    assert chosen == {"blocks.0.conv2": "bf16", "blocks.1.conv2": "bf16"}
    assert len(distributions(found)) == 4


def test_each_that_matches_nothing_names_the_treatable() -> None:
    with pytest.raises(RefusedError, match=r"'layer\*' matches nothing that pruning can treat in Net.*stem\.0"):
        space(pruning=[{"each": "layer*", "ratio": {"choice": [0.0, 0.5]}}]).expand(ANATOMY)
    with pytest.raises(RefusedError, match="matches nothing"):
        space(pruning=[{"target": "head", "ratio": 0.5}]).expand(ANATOMY)  # a head is not prunable


def test_names_with_glob_signs_in_them_are_taken_literally() -> None:
    odd = Anatomy(model="Odd", parameters=1, units={"quantization": (unit("experts.a[0]"), unit("experts.a0"))})
    found = space(quantization=[{"each": "*", "scheme": SCHEMES}]).expand(odd)
    params = {"quantization[experts.a[0]].scheme": 2, "quantization[experts.a0].scheme": 1}
    assert found.fill(trial(**params)).effect(odd).parts["quantization"] == {
        "experts.a[0]": "w8a8_static",
        "experts.a0": "bf16",
    }


@pytest.mark.parametrize("seed", range(20))
def test_filled_policies_go_through_json(seed: int) -> None:
    found = space(
        pruning=[{"each": "*", "ratio": {"float": {"low": 0.0, "high": 0.9, "step": 0.1}}}],
        distillation={"alpha": {"float": {"low": 0.0, "high": 1.0}}, "epochs": {"int": {"low": 0, "high": 3}}},
        quantization=[{"each": "*", "by": "block", "scheme": SCHEMES}],
        runtime={"engine": {"choice": ["eager", "inductor"]}},
    ).expand(ANATOMY)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    policy = found.fill(study.ask())
    again = SearchSpace.from_json(policy.to_json()).policy()
    assert again == policy and again.effect(ANATOMY) == policy.effect(ANATOMY)


# --- what cannot be done here -----------------------------------------------------------------------------------------


def no_bf16(policy: Policy) -> str | None:
    for rule in policy.settings.get("quantization", ()):
        if rule.scheme == "bf16":
            return "quantization: this processor has no bfloat16"
    return None


def test_refused_options_are_taken_out_and_told() -> None:
    found = space(quantization=[{"each": "blocks.*", "scheme": SCHEMES}], parallelism={"threads": 1}).expand(ANATOMY)
    left, reasons = found.restrict(no_bf16)
    assert {hole.options for hole in left.holes().values()} == {("none", "w8a8_static")}
    assert all(hole.ordered for hole in left.holes().values())
    assert reasons == {"scheme 'bf16': this processor has no bfloat16": list(found.holes())}
    assert left.restrict(no_bf16) == (left, {})


def test_nothing_left_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"quantization\[head\]\.scheme: every option \(bf16\) is refused"):
        space(quantization=[{"target": "head", "scheme": {"choice": ["bf16"]}}]).restrict(no_bf16)


def test_a_literal_that_is_refused_names_the_reason() -> None:
    with pytest.raises(RefusedError, match=r"quantization\[head\]\.scheme = 'bf16' cannot be done here.*no bfloat16"):
        space(quantization=[{"target": "head", "scheme": "bf16"}]).restrict(no_bf16)


def test_a_hole_left_with_one_option_is_closed() -> None:
    left, _ = space(quantization=[{"target": "head", "scheme": {"choice": ["none", "bf16"]}}]).restrict(no_bf16)
    assert left.holes() == {} and left.policy().effect(ANATOMY).parts == space().policy().effect(ANATOMY).parts


def test_options() -> None:
    found = space(
        parallelism={"threads": {"choice": [2, 1]}, "batch": 8},
        pruning=[{"target": "stem.0", "ratio": 0.5}, {"target": "*", "ratio": {"choice": [0.5, 0.0]}}],
    )
    assert found.options("parallelism", "threads") == (1, 2) and found.options("parallelism", "batch") == (8,)
    assert found.options("pruning", "ratio") == (0.5, 0.0)
    assert found.options("runtime", "engine") == () and found.options("distillation", "alpha") == ()


def test_holes_are_values() -> None:
    assert Hole(options=(1, 2)) == Hole(options=(1, 2)) != replace(Hole(options=(1, 2)), ordered=True)


def test_answers_become_parameters_as_far_as_the_space_has_them() -> None:
    space = SearchSpace.from_json(
        {
            "distillation": {"alpha": {"float": {"low": 0.2, "high": 1.0}}, "epochs": {"ordered": [1, 2, 4]}},
            "runtime": {"engine": {"choice": ["eager", "inductor"]}},
        }
    )
    told = {"distillation.alpha": 0.5, "distillation.epochs": 4, "runtime.engine": "inductor"}
    params = space.params(told)
    assert params == {"distillation.alpha": 0.5, "distillation.epochs": 2, "runtime.engine": "inductor"}
    assert space.shown(params) == told
    elsewhere = {
        "distillation.alpha": 0.1,
        "distillation.epochs": 3,
        "runtime.engine": "onnx",
        "quantization[x]": "fp8",
    }
    assert space.params(elsewhere) == {}
