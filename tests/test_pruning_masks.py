"""Single weights: which become zero, that they stay so, and the kernels for the 2:4 pattern."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from nets import Depthwise, Mlp, Residual, images, rows, settled
from pruning_toys import context, labelled, prune, units
from torch import Tensor, nn

from autogreen.errors import EvaluationError, RefusedError
from autogreen.tasks.training import train
from autogreen.techniques import Target, Unit
from autogreen.techniques.pruning import Pruning
from autogreen.techniques.pruning.masks import is_two_of_four
from autogreen.techniques.pruning.sparse import SemiSparse, to_sparse

WEIGHT = Pruning(target="*", structure="weight", ratio=0.5)
TWO_OF_FOUR = Pruning(target="layers.*", structure="n:m", ratio=0.5)
EXAMPLE: Any = ((rows(),), {})


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: part == 0 for name, part in model.named_parameters() if part.ndim > 1}


def finetuned(model: nn.Module) -> nn.Module:
    task = labelled(rows(32, seed=5), rows(32, seed=6))
    return train(model, task, task.loss, epochs=3, learning_rate=0.05, seed=0, device="cpu")


# --- which --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, example", [(Mlp, rows), (Residual, images), (Depthwise, images)])
def test_the_least_weights_of_each_layer_become_zero_and_nothing_else_changes(make: Any, example: Any) -> None:
    model = settled(make())
    masked, effect = prune(model, ((example(),), {}), WEIGHT)
    assert set(effect) == {"weight"}
    for name, part in model.named_parameters():
        expected = part.detach().clone()
        if name.removesuffix(".weight") in effect["weight"]:
            flat = expected.flatten()
            flat[flat.abs().argsort(stable=True)[: round(0.5 * flat.numel())]] = 0
        torch.testing.assert_close(masked.get_parameter(name), expected, rtol=0, atol=0)
    assert list(masked.state_dict()) == list(model.state_dict())
    assert not any(hasattr(part, "mask_handle") for part in model.parameters())


def test_two_of_every_four_become_zero_by_their_importance() -> None:
    model, task = Mlp().eval(), labelled(rows(16, seed=2))
    for importance in ("magnitude", "activation", "gradient"):
        rule = Pruning(target="layers.2", structure="n:m", importance=importance, ratio=0.5)
        masked, effect = prune(model, EXAMPLE, rule, task=task)
        assert effect == {"n:m": {"layers.2": {"importance": importance}}}
        weight, dense = masked.get_parameter("layers.2.weight"), model.layers[2].weight
        assert is_two_of_four(weight) and (weight != 0).reshape(-1, 4).sum(1).eq(2).all()
        assert torch.equal(weight[weight != 0], dense[weight != 0])
        if importance == "magnitude":
            fours, left = dense.abs().reshape(-1, 4), (weight != 0).reshape(-1, 4)
            assert torch.equal(fours.topk(2).indices.sort().values, left.nonzero()[:, 1].reshape(-1, 2))


def test_by_activation_every_output_loses_the_same_share_as_in_wanda() -> None:
    rule = Pruning(target="*", structure="weight", importance="activation", ratio=0.25)
    masked, _ = prune(Mlp().eval(), EXAMPLE, rule, task=labelled(rows(16, seed=2)))
    for name, part in masked.named_parameters():
        if part.ndim > 1:
            assert (part == 0).sum(1).eq(part.shape[1] // 4).all(), name


def test_together_the_least_of_all_layers_go_and_every_layer_keeps_some() -> None:
    torch.manual_seed(1)
    model = Mlp().eval()
    names = ["layers.0", "layers.2", "head"]
    with torch.no_grad():
        model.head.weight *= 100  # scale is no merit
    masked, effect = prune(model, EXAMPLE, Pruning(target="*", structure="weight", ranking="global", ratio=0.7))
    assert effect["global"][0]["units"].keys() == set(names)
    weights = {name: model.get_parameter(f"{name}.weight").detach().abs() for name in names}
    scores = torch.cat([(weights[name] / weights[name].mean()).flatten() for name in names])
    limit = scores.sort().values[round(0.7 * len(scores)) - 1]
    for name in names:
        expected = weights[name] / weights[name].mean() <= limit
        assert torch.equal(masked.get_parameter(f"{name}.weight") == 0, expected)
    extreme, _ = prune(model, EXAMPLE, Pruning(target="*", structure="weight", ranking="global", ratio=0.9999))
    assert all(extreme.get_parameter(f"{name}.weight").count_nonzero() >= 1 for name in names)


# --- they stay ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [WEIGHT, TWO_OF_FOUR])
@pytest.mark.parametrize("frozen", [False, True])
def test_zeros_stay_exactly_zero_in_training_and_the_others_learn(rule: Pruning, frozen: bool) -> None:
    model = Mlp().eval().requires_grad_(not frozen)  # one frozen as a whole is thawed by training
    masked, _ = prune(model, EXAMPLE, rule)
    assert all(part.requires_grad != frozen for part in masked.parameters())
    before, start = zeros(masked), copy.deepcopy(masked.state_dict())
    trained = finetuned(masked)
    for name, zero in before.items():
        part = trained.get_parameter(name)
        assert torch.equal(part == 0, zero), name
        assert not torch.equal(part[~zero], start[name][~zero])


def test_zeros_of_convolutions_stay_too() -> None:
    model = settled(Residual())
    masked, _ = prune(model, ((images(),), {}), WEIGHT)
    before, task = zeros(masked), labelled(images(16, seed=5), images(16, seed=6))
    trained = train(masked, task, task.loss, epochs=2, learning_rate=0.05, seed=0, device="cpu")
    assert all(torch.equal(trained.get_parameter(name) == 0, zero) for name, zero in before.items())


def test_two_masks_on_one_layer_both_stay() -> None:
    rules = (Pruning(target="layers.2", structure="weight", ratio=0.7), TWO_OF_FOUR)
    masked, _ = prune(Mlp().eval(), EXAMPLE, *rules)
    trained = finetuned(masked).get_parameter("layers.2.weight")
    assert is_two_of_four(trained) and (trained == 0).sum() >= 0.7 * trained.numel()


@pytest.mark.parametrize("importance", ["gradient", "activation"])
def test_in_rounds_zeros_come_before_weights_that_nothing_reads(importance: str) -> None:
    model = Mlp().eval()
    with torch.no_grad():
        model.layers[0].bias[:16] = -100  # half of what layers.2 reads is always zero
    task = labelled(rows(16, seed=2))
    rule = Pruning(target="layers.2", structure="weight", importance=importance, ratio=0.5)
    effect, masked = Pruning.effect((rule,), units(model, EXAMPLE)), copy.deepcopy(model)
    with torch.no_grad():
        masked.layers[2].weight[:, 16:] += 1
    sizes = []
    for share in (0.25, 0.5, 1.0):
        masked = Pruning.apply(Pruning.part(effect, share), masked, context(model, EXAMPLE, task))
        sizes.append(int((masked.get_parameter("layers.2.weight") == 0).sum()))
    assert sizes == [96, 192, 384]


def test_zeros_survive_casts_of_the_module() -> None:
    masked, _ = prune(Mlp().eval(), EXAMPLE, WEIGHT)
    before = zeros(masked)
    masked = masked.bfloat16().float()
    trained = finetuned(masked)
    assert all(torch.equal(trained.get_parameter(name) == 0, zero) for name, zero in before.items())
    masked = masked.double()
    masked(rows().double()).sum().backward()  # type: ignore[no-untyped-call]
    assert all(masked.get_parameter(name).grad[zero].eq(0).all() for name, zero in before.items())


def test_rounds_add_zeros_and_keep_the_old_ones() -> None:
    model = Mlp().eval()
    effect = Pruning.effect((Pruning(target="*", structure="weight", ratio=0.8),), units(model, EXAMPLE))
    masked, seen = copy.deepcopy(model), {name: torch.zeros_like(zero) for name, zero in zeros(model).items()}
    for share in (0.5, 0.75, 1.0):
        masked = finetuned(Pruning.apply(Pruning.part(effect, share), masked, context(model, EXAMPLE)))
        for name, zero in zeros(masked).items():
            assert zero.sum() == round(share * 0.8 * zero.numel()) and (zero | ~seen[name]).all()
            seen[name] = zero


def test_narrowed_and_masked_at_once() -> None:
    rules = (Pruning(target="layers.*", structure="neuron", ratio=0.5), TWO_OF_FOUR)
    model = Mlp().eval()
    both, effect = prune(model, EXAMPLE, *rules)
    assert set(effect) == {"neuron", "n:m"}
    weight = both.get_parameter("layers.2.weight")
    assert weight.shape == (16, 16) and is_two_of_four(weight)
    assert not is_two_of_four(both.get_parameter("head.weight")) and both(rows()).shape == (4, 5)
    odd = (Pruning(target="layers.0", structure="neuron", ratio=0.5, round_to=9), TWO_OF_FOUR)
    with pytest.raises(RefusedError, match=r"'layers\.2' was narrowed to 18 inputs"):
        prune(model, EXAMPLE, *odd)


# --- 2:4 kernels ----------------------------------------------------------------------------------------------------


def test_on_a_processor_the_zeros_stay_a_dense_layer() -> None:
    model = Mlp().eval()
    masked, effect = prune(model, EXAMPLE, TWO_OF_FOUR)
    assert Pruning.refusal(effect, units(model, EXAMPLE), Target(device="cpu", engine="eager")) is None
    lowered = Pruning.lower(effect, masked, context(model, EXAMPLE))
    assert lowered is masked and isinstance(lowered.get_submodule("layers.0"), nn.Linear)


@pytest.mark.parametrize(
    "width, inputs, available, capability, told",
    [
        (64, 64, True, (9, 0), None),
        (24, 64, True, (9, 0), "wants sizes that 16 divides, the layer has 64 x 24"),
        (64, 20, True, (9, 0), "wants sizes that 16 divides, the layer has 20 x 64"),
        (64, 64, True, (7, 5), "capability 8.0, this GPU has 7.5"),
        (64, 64, False, (9, 0), "no cuSPARSELt"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused_before_training(
    width: int, inputs: int, available: bool, capability: Any, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    unit = Unit(
        name="a", members=("a",), kind="linear", width=width, inputs=inputs, calls=1, block="a", structure="n:m"
    )
    effect = Pruning.effect((Pruning(target="a", structure="n:m", ratio=0.5),), (unit,))
    found = Pruning.refusal(effect, (unit,), Target(device="cuda", engine="eager"))
    assert found is None if told is None else (found is not None and "n:m for a: " in found and told in found)


def test_a_layer_that_lost_the_pattern_is_not_brought_to_the_kernel() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 24))
    with pytest.raises(EvaluationError, match="'0' is not 2:4"):
        to_sparse(model, ["0"])


def test_a_width_that_the_kernel_does_not_take_is_refused_before_training() -> None:
    model = Mlp().eval()
    effect = Pruning.effect((TWO_OF_FOUR,), units(model, EXAMPLE))
    on_gpu = replace(context(model, EXAMPLE), device="cuda")
    with pytest.raises(RefusedError, match=r"'layers\.0' was narrowed to 12 x 32.*round_to: 16"):
        Pruning.apply(effect, copy.deepcopy(model), on_gpu)


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64)).eval().cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 8, 37])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_computes_what_the_dense_layer_does(count: int, kind: torch.dtype) -> None:
    model, given = wide().to(kind), torch.randn(count, 3, 128, device="cuda", dtype=kind)
    rule = Pruning(target="*", structure="n:m", ratio=0.5)
    masked, effect = prune(model, ((given,), {}), rule)
    with torch.no_grad():
        wanted = masked(given).float()
        lowered = Pruning.lower(effect, masked, context_on_gpu(model, given))
        assert all(isinstance(lowered[place], SemiSparse) for place in (0, 2))
        found = lowered(given)
    assert found.dtype == kind and found.shape == (count, 3, 64)
    torch.testing.assert_close(found.float(), wanted, rtol=3e-2, atol=3e-2)


@pytest.mark.gpu
def test_the_kernel_survives_export_and_is_seen_in_a_profile() -> None:
    from torch.profiler import ProfilerActivity, profile

    from autogreen.engines.profile import KERNELS

    model, given = wide(), torch.randn(16, 128, device="cuda")
    masked, effect = prune(model, ((given,), {}), Pruning(target="*", structure="n:m", ratio=0.5))
    lowered = Pruning.lower(effect, masked, context_on_gpu(model, given))
    exported = torch.export.export(lowered, (given,)).module()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        found = exported(given)
        torch.testing.assert_close(found, lowered(given))
    assert "aten::_cslt_sparse_mm" in {event.name for event in seen.events()} and "aten::_cslt_sparse_mm" in KERNELS
    assert all(type(part) is Tensor for part in lowered.state_dict().values())


def context_on_gpu(model: nn.Module, given: Tensor) -> Any:
    return replace(context(model, ((given,), {})), device="cuda")
