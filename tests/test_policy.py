"""Policies: what they do to a model decides who they are; JSON and back; first match wins; conflicts are refused."""

import random
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from autogreen.anatomy import Anatomy
from autogreen.errors import RefusedError
from autogreen.policy import SECTIONS, Effect, Policy
from autogreen.space import SearchSpace
from autogreen.techniques import Unit, matches


def unit(name: str, *others: str, width: int = 32, kind: Any = "conv", block: str = "", structure: str = "") -> Unit:
    return Unit(
        name=name, members=(name, *others), kind=kind, width=width, calls=1, block=block or name, structure=structure
    )


# a residual network as the surveys see it: the stem and both second convolutions are one group
ANATOMY = Anatomy(
    model="Net",
    parameters=1000,
    units={
        "pruning": (
            unit("stem.0", "blocks.0.conv2", "blocks.1.conv2", block="stem", structure="channel"),
            unit("blocks.0.conv1", block="blocks.0", structure="channel"),
            unit("blocks.1.conv1", block="blocks.1", structure="channel"),
        ),
        "quantization": (
            unit("stem.0", block="stem"),
            unit("blocks.0.conv1", block="blocks.0"),
            unit("blocks.0.conv2", block="blocks.0"),
            unit("blocks.1.conv1", block="blocks.1"),
            unit("blocks.1.conv2", block="blocks.1"),
            unit("head", kind="linear", width=10),
        ),
    },
)


def policy(**sections: Any) -> Policy:
    return SearchSpace.from_json(sections).policy()


def parts(**sections: Any) -> dict[str, Any]:
    return policy(**sections).effect(ANATOMY).parts


# --- rules ------------------------------------------------------------------------------------------------------------


def test_the_first_match_wins() -> None:
    found = parts(
        quantization=[
            {"target": "head", "scheme": "none"},
            {"target": "blocks.0.*", "scheme": "bf16"},
            {"target": "*conv*", "scheme": "w8a8_static"},
            {"target": "*", "scheme": "bf16"},
        ]
    )
    assert found["quantization"] == {
        "stem.0": "bf16",
        "blocks.0.conv1": "bf16",
        "blocks.0.conv2": "bf16",
        "blocks.1.conv1": "w8a8_static",
        "blocks.1.conv2": "w8a8_static",
    }


def test_layers_that_no_rule_names_are_left_alone() -> None:
    found = parts(
        quantization=[{"target": "head", "scheme": "w8a8_static"}], pruning=[{"target": "stem.0", "ratio": 0.5}]
    )
    assert found["quantization"] == {"head": "w8a8_static"}
    assert found["pruning"] == {"channel": {"stem.0": {"width": 16, "of": 32, "importance": "magnitude"}}}


def test_a_glob_names_any_member_of_a_group() -> None:
    group = ANATOMY.units["pruning"][0]
    assert matches("blocks.1.conv2", group) and matches("*.conv2", group) and not matches("*.conv1", group)
    assert parts(pruning=[{"target": "blocks.1.conv2", "ratio": 0.5}])["pruning"]["channel"]["stem.0"]["width"] == 16


def test_rules_that_agree_within_a_group_do_not_conflict() -> None:
    rules = [{"target": "stem.0", "ratio": 0.5}, {"target": "blocks.0.conv2", "ratio": 0.5}]
    assert parts(pruning=rules) == parts(pruning=rules[:1])


def test_rules_that_conflict_within_a_group_are_refused_with_its_members() -> None:
    rules = [{"target": "stem.*", "ratio": 0.5}, {"target": "*", "ratio": 0.25}]
    with pytest.raises(
        RefusedError, match=r"stem\.0, blocks\.0\.conv2, blocks\.1\.conv2 depend on each other.*conflict"
    ):
        policy(pruning=rules).effect(ANATOMY)


def test_a_target_that_matches_nothing_names_the_treatable() -> None:
    with pytest.raises(
        RefusedError, match=r"'layer9' matches nothing that quantization can treat.*Treatable: stem\.0, "
    ):
        policy(quantization=[{"target": "layer9", "scheme": "w8a8_static"}]).effect(ANATOMY)
    with pytest.raises(RefusedError, match="Treatable: nothing"):
        policy(pruning=[{"target": "*"}]).effect(Anatomy(model="Bare", parameters=1, units={}))


# --- identity ---------------------------------------------------------------------------------------------------------


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    mine, theirs = policy(**one).effect(ANATOMY), policy(**other).effect(ANATOMY)
    assert (mine == theirs) == (mine.id == theirs.id) == (hash(mine) == hash(theirs))
    return mine == theirs


@pytest.mark.parametrize(
    "one, other",
    [
        ({}, {"pruning": [], "quantization": []}),
        ({}, {"pruning": [{"target": "*", "ratio": 0.0}], "quantization": [{"target": "*", "scheme": "none"}]}),
        ({}, {"parallelism": {}, "runtime": {"engine": "eager"}, "distillation": {"epochs": 0, "alpha": 0.3}}),
        ({"distillation": {"alpha": 0, "temperature": 2}}, {"distillation": {"alpha": 0.0, "temperature": 7.5}}),
        ({"distillation": {"alpha": 1}}, {"distillation": {"alpha": 1.0}}),
        ({"pruning": [{"target": "*", "ratio": 0.5}]}, {"pruning": [{"target": "*", "ratio": 0.51}]}),
        (
            {"pruning": [{"target": "stem.0", "ratio": 0.5}]},
            {"pruning": [{"target": "blocks.1.conv2", "ratio": 0.5, "round_to": 16}]},
        ),
        (
            {"quantization": [{"target": "head", "scheme": "w8a8_static"}], "parallelism": {"threads": 2}},
            {"parallelism": {"threads": 2}, "quantization": [{"target": "hea?", "scheme": "w8a8_static"}]},
        ),
        (
            {"quantization": [{"target": "head", "scheme": "w8a8_static"}, {"target": "stem.0", "scheme": "bf16"}]},
            {"quantization": [{"target": "stem.0", "scheme": "bf16"}, {"target": "head", "scheme": "w8a8_static"}]},
        ),
    ],
)
def test_texts_of_one_effect_are_one_policy(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert same(one, other)


@pytest.mark.parametrize(
    "one, other",
    [
        ({}, {"runtime": {"engine": "inductor"}}),
        ({}, {"parallelism": {"threads": 2}}),
        ({"parallelism": {"batch": 8}}, {"parallelism": {"batch": 16}}),
        ({"distillation": {"temperature": 2}}, {"distillation": {"temperature": 3}}),
        ({"distillation": {"alpha": 0}}, {"distillation": {"alpha": 0.1}}),
        ({"distillation": {"epochs": 1}}, {"distillation": {"epochs": 2}}),
        ({"pruning": [{"target": "*", "ratio": 0.5}]}, {"pruning": [{"target": "*", "ratio": 0.75}]}),
        (
            {"quantization": [{"target": "head", "scheme": "w8a8_static"}]},
            {"quantization": [{"target": "head", "scheme": "bf16"}]},
        ),
    ],
)
def test_other_effects_are_other_policies(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert not same(one, other)


def test_the_order_of_sections_in_the_text_means_nothing() -> None:
    sections = {
        "precision": {"dtype": "bf16"},
        "pruning": [{"target": "*", "ratio": 0.5}],
        "distillation": {"epochs": 2},
        "quantization": [{"target": "*", "scheme": "w8a8_static"}],
        "parallelism": {"threads": 2},
        "runtime": {"engine": "inductor"},
    }
    turned = dict(reversed(sections.items()))
    assert list(turned) != list(sections) and same(sections, turned)
    assert list(policy(**turned).settings) == list(SECTIONS)


def test_an_effect_is_its_text_and_gives_fresh_copies() -> None:
    effect = policy(quantization=[{"target": "head", "scheme": "w8a8_static"}]).effect(ANATOMY)
    effect.parts["quantization"]["head"] = "none"
    assert effect.parts["quantization"] == {"head": "w8a8_static"}
    assert Effect.of(effect.parts) == effect and len(effect.id) == 12 and int(effect.id, 16) >= 0
    assert effect.engine == "eager"


def test_the_refusal_names_section_and_layer() -> None:
    effect = policy(quantization=[{"target": "head", "scheme": "w8a8_static"}]).effect(ANATOMY)
    assert (reason := effect.refusal(ANATOMY, "cpu", 64)) is not None
    assert reason.startswith("quantization: scheme 'w8a8_static' for head: ")
    many = policy(parallelism={"threads": 4096}).effect(ANATOMY).refusal(ANATOMY, "cpu", 64)
    assert many is not None and "4096 on a machine with" in many
    assert policy().effect(ANATOMY).refusal(ANATOMY, "cpu", 64) is None


def test_values_are_frozen() -> None:
    found = policy(pruning=[{"target": "*", "ratio": 0.5}])
    with pytest.raises(FrozenInstanceError):
        found.settings["pruning"][0].ratio = 0.9
    with pytest.raises(FrozenInstanceError):
        found.effect(ANATOMY).text = ""  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        ANATOMY.units["pruning"][0].width = 3  # type: ignore[misc]


# --- JSON -------------------------------------------------------------------------------------------------------------


def random_sections(rng: random.Random) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    names = ["*", "stem.*", "blocks.0.*", "*conv1", "*conv2", "head"]
    if rng.random() < 0.7:
        sections["pruning"] = [
            {"target": target, "ratio": rng.random() * 0.99, "round_to": rng.choice([1, 4, 8])}
            for target in rng.sample(names, rng.randint(0, 3))
        ]
    if rng.random() < 0.7:
        sections["distillation"] = {
            "epochs": rng.randint(0, 3),
            "alpha": rng.choice([0, 1, rng.random()]),
            "temperature": rng.uniform(0.1, 9),
        }
    if rng.random() < 0.7:
        sections["quantization"] = [
            {"target": target, "scheme": rng.choice(["none", "bf16", "w8a8_static"])}
            for target in rng.sample(names, rng.randint(0, 4))
        ]
    if rng.random() < 0.7:
        sections["precision"] = {"dtype": rng.choice(["none", "bf16", "fp16"])}
    if rng.random() < 0.7:
        sections["parallelism"] = {"threads": rng.randint(1, 8), "batch": rng.choice([None, 1, 64])}
    if rng.random() < 0.7:
        sections["runtime"] = {"engine": rng.choice(["eager", "inductor"])}
    return sections


def effect_or_refusal(found: Policy) -> str:
    try:
        return found.effect(ANATOMY).text
    except RefusedError as error:
        return str(error)


@pytest.mark.parametrize("seed", range(100))
def test_json_and_back(seed: int) -> None:
    first = policy(**random_sections(random.Random(seed)))
    again = SearchSpace.from_json(first.to_json()).policy()
    assert {name: rules for name, rules in first.settings.items() if rules} == dict(again.settings)
    assert again.to_json() == first.to_json()
    assert effect_or_refusal(first) == effect_or_refusal(again)


def test_an_anatomy_goes_through_json() -> None:
    import json

    assert Anatomy.from_json(json.loads(json.dumps(ANATOMY.to_json()))) == ANATOMY
