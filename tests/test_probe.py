"""The probe: against the layers that really ship, against a closed form, and one change at a time."""

import copy
import math
from typing import Any

import pytest
import torch
import toys
from quantizing import QUIET

from autogreen.anatomy import Anatomy, survey
from autogreen.errors import EvaluationError
from autogreen.probe import Probe, Probed, divergence
from autogreen.probing import Asked, asked, forecast, guessed, paired
from autogreen.space import SearchSpace
from autogreen.techniques import Context
from autogreen.techniques.quantization import Quantization

pytestmark = QUIET
SPACE = {
    "pruning": [{"each": "*", "ratio": {"choice": [0.0, 0.25, 0.5]}}],
    "quantization": [{"each": "*", "scheme": {"ordered": ["none", "w8a8_static"]}}],
}


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    task = toys.Corners(width=32)  # widths are cut in eights
    model = task.build(tmp_path_factory.mktemp("cache"))
    example: Any = task.inputs(task.batches("validation")[0])
    return Probe(
        model,
        Context(task=task, example=example, seed=0, device="cpu", teacher=model, check=lambda: None, cache={}),
    )


def effects(probe: Probe, section: str) -> dict[tuple[str, Any], Any]:
    anatomy = survey(probe.model, probe.context.example, ("pruning", "quantization"))
    space = SearchSpace.from_json(SPACE).expand(anatomy)
    return {
        (name, option): policy.alone(anatomy).get(section, {})
        for name in space.holes()
        if name.startswith(section)
        for option, policy in space.alone(name)
    }


def test_what_changes_nothing_moves_nothing(probe: Probe) -> None:
    for section in ("pruning", "quantization"):
        idle = [effect for (_, option), effect in effects(probe, section).items() if option in (0.0, "none")]
        assert [found.divergence for found in probe.each(section, idle)] == [0.0] * len(idle)


def test_a_layer_that_rounds_moves_outputs_as_the_one_that_ships(probe: Probe) -> None:
    given = {name: effect for (name, option), effect in effects(probe, "quantization").items() if option != "none"}
    assert len(given) == 3
    probed = list(probe.each("quantization", list(given.values())))  # the model is plain again only afterwards
    for name, found in zip(given, probed, strict=True):
        shipped = Quantization.lower(given[name], copy.deepcopy(probe.model), probe.context)
        with torch.no_grad():
            after = torch.cat([shipped(batch[0]) for batch in probe.batches])
        wanted = divergence(probe.before, after, "logits")
        assert found.divergence is not None and 0 < wanted < 0.1
        assert found.divergence == pytest.approx(wanted, rel=0.5)  # batch norms are folded before what ships is rounded


def test_deeper_cuts_move_outputs_further_and_leave_less_work(probe: Probe) -> None:
    given = effects(probe, "pruning")
    found = dict(zip(given, probe.each("pruning", list(given.values())), strict=True))
    for name in {name for name, _ in given}:
        none, quarter, half = (found[name, ratio] for ratio in (0.0, 0.25, 0.5))
        assert none.kept == 1.0 > quarter.kept > half.kept > 0.2
        assert 0 < quarter.divergence < half.divergence  # type: ignore[operator]


def test_the_model_is_the_same_afterwards(probe: Probe) -> None:
    before = {name: leaf.clone() for name, leaf in probe.model.state_dict().items()}
    for section in ("pruning", "quantization"):
        list(probe.each(section, list(effects(probe, section).values())))
    assert all(torch.equal(leaf, before[name]) for name, leaf in probe.model.state_dict().items())
    assert torch.equal(probe.before, probe._outputs(probe.model))


def test_what_fails_is_told_and_the_others_go_on(probe: Probe) -> None:
    good = next(effect for (_, ratio), effect in effects(probe, "pruning").items() if ratio == 0.5)
    bad = copy.deepcopy(good)
    next(iter(bad["channel"].values()))["importance"] = "gradient"
    broken = copy.copy(probe.task)
    object.__setattr__(broken, "loss", lambda outputs, batch: (outputs * math.nan).sum())
    object.__setattr__(probe, "context", Context(**{**vars(probe.context), "task": broken}))
    first, second = probe.each("pruning", [bad, good])
    assert first.divergence is None and first.refused and second.divergence


def test_divergence_is_the_closed_form() -> None:
    before, after = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 0.0]])
    wanted = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(before, after, "logits") == pytest.approx(wanted, rel=1e-6)
    values = torch.tensor([[1.0], [2.0], [3.0]])
    assert divergence(values, values + 2.0, "values") == pytest.approx(4.0)


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(EvaluationError, match="NaN"):
        divergence(torch.zeros(1, 2), torch.full((1, 2), math.nan), "logits")


# --- neighbours together --------------------------------------------------------------------------------------------


def test_neighbours_are_probed_at_their_worst_options_both_at_once(probe: Probe) -> None:
    anatomy = survey(probe.model, probe.context.example, ("pruning", "quantization"))
    questions, _ = asked(SearchSpace.from_json(SPACE).expand(anatomy), anatomy)
    alone = {one: next(probe.each(one.section, [one.effect])) for one in questions}
    pairs = paired(alone)
    assert [(one.hole, one.option, one.beside) for one in pairs] == [
        ("pruning[0].ratio", 0.5, ("pruning[3].ratio", 0.5)),
        ("quantization[0].scheme", "w8a8_static", ("quantization[3].scheme", "w8a8_static")),
        ("quantization[3].scheme", "w8a8_static", ("quantization[6].scheme", "w8a8_static")),
    ]
    assert {unit for units in pairs[0].effect.values() for unit in units} == {"0", "3"}
    assert set(pairs[1].effect) == {"0", "3"}
    assert len({one.key for one in (*questions, *pairs)}) == len(questions) + len(pairs)
    both = [next(probe.each(one.section, [one.effect])) for one in pairs]
    assert all(found.divergence for found in both)
    known, left_out = forecast({**alone, **dict(zip(pairs, both, strict=True))}, anatomy, None, 64)
    assert not left_out
    by_name = {choice.name: choice for choice in known.choices}
    assert by_name["pruning[3].ratio"].together == 0 and by_name["quantization[6].scheme"].together == 0  # ends


@pytest.mark.parametrize("weight", [3.0, -0.8])
def test_what_neighbours_do_together_is_recovered(weight: float) -> None:
    """Of made-up divergences of 60 holes: a + b + weight x root(a b)."""
    one_hole = [
        [
            Asked(
                hole=f"pruning[{hole}].ratio", option=option, section="pruning", effect={"channel": {str(hole): option}}
            )
            for option in (0.0, 0.5)
        ]
        for hole in range(60)
    ]
    alone = {
        one: Probed(divergence=one.option * (1.0 + 0.1 * (hole % 7)))
        for hole, ones in enumerate(one_hole)
        for one in ones
    }
    worst = [alone[ones[1]].divergence or 0.0 for ones in one_hole]
    pairs = paired(alone)
    assert len(pairs) == 59
    answers = {
        one: Probed(divergence=a + b + weight * math.sqrt(a * b))
        for one, a, b in zip(pairs, worst[:-1], worst[1:], strict=True)
    }
    known, _ = forecast({**alone, **answers}, Anatomy(model="toy", parameters=1, units={}), None, 64)
    assert [choice.together for choice in known.choices] == pytest.approx([weight] * 59 + [0.0], rel=0.05)


def test_schemes_whose_kernels_nobody_measured_are_named(probe: Probe) -> None:
    anatomy = survey(probe.model, probe.context.example, ("pruning", "quantization"))
    questions, _ = asked(SearchSpace.from_json(SPACE).expand(anatomy), anatomy)
    assert guessed(questions, anatomy, None, 64) == ("w8a8_static",)
    only_cuts = [one for one in questions if one.section == "pruning"]
    assert guessed(only_cuts, anatomy, None, 64) == ()


def test_a_pair_that_cannot_be_probed_counts_as_nothing() -> None:
    ones = [Asked(hole=f"pruning[{hole}].ratio", option=0.5, section="pruning", effect={}) for hole in range(3)]
    alone = {one: Probed(divergence=1.0) for one in ones}
    first, second = paired(alone)
    known, left_out = forecast(
        {**alone, first: Probed(refused="out of memory"), second: Probed(divergence=5.0)},
        Anatomy(model="toy", parameters=1, units={}),
        None,
        64,
    )
    assert not left_out and [choice.together for choice in known.choices] == pytest.approx([0.0, 3.0, 0.0])
