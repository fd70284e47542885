"""Quantization-aware training: what is rounded, what stays, and that it gives back what plain rounding costs."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from nets import Mlp, Plain, images, rows, settled
from quantizing import BATCH, QUIET, context
from torch import Tensor, nn

from autogreen.anatomy import Anatomy
from autogreen.controls import controls_of
from autogreen.errors import RefusedError
from autogreen.restriction import restrict
from autogreen.space import SearchSpace
from autogreen.techniques import Unit
from autogreen.techniques.quantization import Quantization
from autogreen.techniques.quantization.numerics import (
    dequantize,
    quantize,
    scale_and_zero_point,
    weight_range,
)
from autogreen.testing import scripted_evaluation

pytestmark = QUIET
AROUND = context(((rows(BATCH),), {}), [rows(32, seed) for seed in range(3)])


def rounded(weight: Tensor, scheme: str, observer: str) -> Tensor:
    """The numbers that a weight ships as, by quantize and dequantize."""
    group, bits, symmetric = (128, 4, False) if scheme == "w4a16" else (None, 8, True)
    low, high = weight_range(weight, group=group, observer=observer, bits=bits, symmetric=symmetric)
    scale, zero = (part[..., None] for part in scale_and_zero_point(low, high, bits=bits, symmetric=symmetric))
    grouped = weight.detach().flatten(1).reshape(len(weight), low.shape[1], -1)
    back = dequantize(quantize(grouped, scale, zero, bits=bits, signed=symmetric), scale, zero)
    return back.reshape(weight.shape)


class Wide(nn.Module):
    """[n, 12] -> [n, 5] through 128 hidden features, the size of a group."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


@pytest.mark.parametrize(
    ("word", "observer"),
    [("w8a16+qat", "mse"), ("w8a16+minmax+qat", "minmax"), ("w4a16+qat", "mse"), ("w4a16+minmax+qat", "minmax")],
)
def test_layers_compute_with_the_weights_that_will_ship(word: str, observer: str) -> None:
    torch.manual_seed(0)
    model = Wide()
    shipped = copy.deepcopy(model)
    with torch.no_grad():
        shipped.second.weight.copy_(rounded(model.second.weight, word.partition("+")[0], observer))
        with Quantization.aware({"second": word, "first": "w8a16"}, model, AROUND):
            torch.testing.assert_close(model(rows()), shipped(rows()), rtol=1e-5, atol=1e-6)
            assert not torch.equal(model(rows()), Wide()(rows()))


@pytest.mark.parametrize("word", ["w8a8+qat", "w8a8_static+qat", "w8a8_static+minmax+qat", "fp8+qat"])
def test_activations_are_rounded_too(word: str) -> None:
    torch.manual_seed(0)
    model, seen = Wide().eval(), {}
    x = rows(32, seed=1)
    with torch.no_grad(), Quantization.aware({"first": word}, model, AROUND):
        handle = model.first.register_forward_pre_hook(lambda layer, args: seen.update(x=args[0], w=layer.weight))
        model(x)
        handle.remove()
    assert 0 < float((seen["x"] - x).abs().max()) < 0.2 and (word == "fp8+qat" or len(seen["x"].unique()) <= 256)
    error = (seen["w"] - model.first.weight).abs().detach()
    assert (
        0
        < float((error.amax(1) / model.first.weight.abs().amax(1).detach()).max())
        <= (1.01 / 127 if "8a8" in word else 1 / 16)
    )


def test_static_ranges_come_from_calibration_and_move_in_training_only() -> None:
    model = Wide().eval()
    narrow = context(((rows(BATCH),), {}), [0.1 * rows(32)])
    seen: list[float] = []
    with torch.no_grad(), Quantization.aware({"first": "w8a8_static+minmax+qat"}, model, narrow):
        model.first.register_forward_hook(lambda layer, args, output: seen.append(float(args[0].max())))
        model(rows(32))
        assert seen[0] == pytest.approx(float(0.1 * rows(32).max()), rel=0.03)  # clipped to what calibration saw
        model.train()
        for _ in range(300):
            model(rows(32))
    assert seen[-1] > 0.8 * float(rows(32).max())


def test_gradients_pass_straight_through_and_stop_where_an_activation_is_clipped() -> None:
    model = Wide()
    model.first.weight.data.clamp_(-0.2, 0.2)
    x = rows(32).clamp(-1, 1)
    plain = copy.deepcopy(model)
    plain(x).sum().backward()
    with Quantization.aware({"first": "w8a16+minmax+qat"}, model, AROUND):
        model(x).sum().backward()
    ours, theirs = model.first.weight.grad, plain.first.weight.grad
    assert ours is not None and theirs is not None
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05
    narrow = context(((rows(BATCH),), {}), [0.1 * rows(32)])
    leaf = rows(32).requires_grad_()
    with Quantization.aware({"first": "w8a8_static+minmax+qat"}, model.eval(), narrow):
        model(leaf).sum().backward()
    outside = (leaf > 0.1 * rows(32).max()) | (leaf < 0.1 * rows(32).min())
    assert leaf.grad is not None and outside.any() and not leaf.grad[outside].any() and leaf.grad[~outside].all()


EFFECT = {"features.0": "w8a8_static+qat", "features.3": "w8a16+qat", "head": "w4a16+qat"}


def test_parameters_stay_themselves_and_nothing_is_left() -> None:
    """Masks hang their gradient hooks on parameters; snapshots read the state dict."""
    model = settled(Plain())
    before, parameters = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    around = context(((images(BATCH),), {}), [images(8)])
    masked: list[int] = []
    model.head.weight.register_hook(lambda gradient: masked.append(1))
    with Quantization.aware(EFFECT, model, around):
        assert dict(model.named_parameters()).keys() == parameters.keys() and model.state_dict().keys() == before.keys()
        model(images(BATCH)).sum().backward()
        assert all(parameter.grad is not None for parameter in parameters.values())
        snapshot = copy.deepcopy(model)  # as early stopping takes one
        assert torch.equal(snapshot(images(BATCH)), model(images(BATCH)))
    assert masked == [1]
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        fresh = settled(Plain())
        fresh.load_state_dict(before)
        assert torch.equal(model(images(BATCH)), fresh(images(BATCH)))


def test_a_failure_inside_leaves_a_plain_layer() -> None:
    model = Wide()
    with pytest.raises(RuntimeError), Quantization.aware({"head": "w8a16+qat"}, model, AROUND):
        model.head(torch.zeros(2, 7))
    assert "weight" not in vars(model.head) and isinstance(model.head.weight, nn.Parameter)
    assert not model.head._forward_hooks and not model.head._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_mixed_precision(dtype: torch.dtype) -> None:
    model = Wide()
    effect = {"first": "w8a8_static+qat", "second": "w8a8+qat", "head": "w4a16+qat"}
    with Quantization.aware(effect, model, AROUND), torch.autocast("cpu", dtype=dtype):
        output = model(rows(32))
        output.float().square().mean().backward()
    assert output.dtype == dtype and all(parameter.grad is not None for parameter in model.parameters())


def test_without_qat_nothing_happens() -> None:
    model = Mlp()
    with Quantization.aware({"head": "w8a8_static"}, model, AROUND):
        assert not model.head._forward_pre_hooks


@pytest.mark.parametrize("word", ["w8a8_static", "w8a8_static+qat"])
@pytest.mark.parametrize(("data", "told"), [([rows(8), rows(8) * math.nan], "holds NaN"), ([], "gave no batch")])
def test_bad_calibration_data_is_refused_before_training(word: str, data: Any, told: str) -> None:
    with (
        pytest.raises(RefusedError, match=f"calibration split {told}"),
        Quantization.aware({"first": word}, Wide(), context(((rows(BATCH),), {}), data)),
    ):
        pytest.fail("it began")
    with Quantization.aware({"first": "w8a8+qat"}, Wide(), context(((rows(BATCH),), {}), data)):
        pass  # needs none


def test_groups_that_do_not_divide() -> None:
    model = Wide(hidden=100)
    with (
        pytest.raises(RefusedError, match="groups of 128 do not divide the 100 inputs"),
        Quantization.aware({"second": "w4a16+qat"}, model, AROUND),
    ):
        model(rows())


# --- what it is for ---------------------------------------------------------------------------------------------------


def curves() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Six bent directions of 128 features, mixed into four values: train and test, plenty of both."""
    generator = torch.Generator().manual_seed(0)
    bent, mixed = torch.randn(128, 6, generator=generator) / math.sqrt(128), torch.randn(6, 4, generator=generator)
    x = torch.randn(16_000, 128, generator=generator)
    y = torch.tanh(x @ bent) @ mixed
    return x[:14_000], y[:14_000], x[14_000:], y[14_000:]


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, learning_rate: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    steps = epochs * -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).split(128):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[part]), y[part]).backward()
            optimizer.step()
            schedule.step()


def loss(model: nn.Module, x: Tensor, y: Tensor, effect: Mapping[str, str]) -> float:
    """With the weights of the effect's layers really rounded to 4 bits."""
    shipped: Any = copy.deepcopy(model)
    with torch.no_grad():
        for name in effect:
            weight = shipped.get_parameter(f"{name}.weight")
            weight.copy_(rounded(weight, "w4a16", "minmax"))
        return float(nn.functional.mse_loss(shipped(x), y))


def test_training_gives_back_at_least_half_of_what_rounding_to_4_bits_costs() -> None:
    """On unseen data, beside the same fine-tuning without rounding in it; each of three seeds gains."""
    x, y, test_x, test_y = curves()
    effect = dict.fromkeys(("0", "2", "4"), "w4a16+minmax+qat")
    costs, left = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        sizes = (nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
        model = nn.Sequential(*sizes)
        train(model, x, y, epochs=6, learning_rate=3e-3, seed=seed)
        aware, unaware = copy.deepcopy(model), copy.deepcopy(model)
        train(unaware, x, y, epochs=4, learning_rate=1e-3, seed=seed)
        with Quantization.aware(effect, aware, context(((x[:BATCH],), {}), [])):
            train(aware, x, y, epochs=4, learning_rate=1e-3, seed=seed)
        float32 = loss(unaware, test_x, test_y, {})
        costs.append(loss(unaware, test_x, test_y, effect) - float32)
        left.append(loss(aware, test_x, test_y, effect) - float32)
    assert min(costs) > 0.1 * float32  # there is something to win
    assert all(after < cost for cost, after in zip(costs, left, strict=True))
    assert sum(left) <= 0.5 * sum(costs), f"plain rounding costs {costs}, with training {left}"


@pytest.mark.parametrize("scheme", ["w8a16", {"choice": ["none", "w8a16"]}])
@pytest.mark.parametrize("qat", [True, {"choice": [False, True]}])
def test_a_space_is_looked_at_option_by_option(scheme: Any, qat: Any) -> None:
    """An option stands alone there: that something trains is another section's affair. Nothing trains the control."""
    unit = Unit(name="fc", members=("fc",), kind="linear", width=32, inputs=32, calls=1, block="fc")
    anatomy = Anatomy(model="Net", parameters=1, units={"quantization": (unit,)})
    rule = {"target": "fc", "scheme": scheme, "qat": qat}
    space = SearchSpace.from_json({"quantization": [rule], "distillation": {"epochs": 1}}).expand(anatomy)
    assert restrict(space, anatomy, device="cpu", batch=4) == (space, {})
    controls = dict(controls_of(space, anatomy, scripted_evaluation(0.0, 1.0), "cpu"))
    found = controls.get("half width from scratch, quantized")
    assert (found is None) == (scheme != "w8a16")  # an unordered choice stands at its first option
    assert found is None or found.effect.parts["quantization"] == {"fc": "w8a16"}
