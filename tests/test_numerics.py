"""Quantize and dequantize are their formulas and PyTorch's own; ranges are what observers say they are."""

import math
from typing import Any

import pytest
import torch
import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401 - registers torch.ops.quantized_decomposed
from nets import Mlp, rows, settled
from quantizing import BATCH, QUIET, context
from torch import Tensor

from autogreen.errors import RefusedError
from autogreen.techniques.quantization.numerics import (
    EPS,
    Ranges,
    activation_grid,
    calibrate,
    dequantize,
    quantize,
    scale_and_zero_point,
    value_range,
    weight_range,
)

pytestmark = QUIET
GRIDS = [(bits, symmetric) for bits in (4, 7, 8) for symmetric in (True, False)]


def values(seed: int) -> Tensor:
    """[6, 200], of very different sizes: around zero, on one side of it, constant, all zero, with an outlier."""
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(6, 200, generator=generator)
        * torch.logspace(-3, 3, 6)[torch.randperm(6, generator=generator), None]
    )
    x[1], x[2], x[3, :], x[4] = x[1].abs() + 1, -x[2].abs(), float(x[3, 0]), 0.0
    x[5, 0] *= 100
    return x


def ends(bits: int, symmetric: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
@pytest.mark.parametrize("seed", range(20))
def test_integers_and_their_numbers_are_those_of_torch(bits: int, symmetric: bool, seed: int) -> None:
    x = values(seed)
    scale, zero = scale_and_zero_point(x.amin(1), x.amax(1), bits=bits, symmetric=symmetric)
    ours = quantize(x, scale[:, None], zero[:, None], bits=bits, signed=symmetric)
    least, most = ends(bits, symmetric)
    for row in range(len(x)):  # the formula, in Python's own numbers
        for place in range(0, 200, 50):
            exact = float(x[row, place]) / float(scale[row]) + int(zero[row])
            clipped = min(most, max(least, exact))
            assert abs(int(ours[row, place]) - clipped) <= 0.5 + 1e-4 * max(1.0, abs(exact))
    reference = torch.ops.quantized_decomposed.quantize_per_channel(
        x, scale, zero, 0, least, most, torch.int8 if symmetric else torch.uint8
    )
    assert ours.dtype == reference.dtype
    apart = (ours.int() - reference.int()).abs()
    assert apart.max() <= 1  # x * (1 / scale) instead of x / scale, at a tie
    tie = ((x / scale[:, None]) % 1 - 0.5).abs() < 1e-3
    assert not apart[~tie].any()
    fake = torch.fake_quantize_per_channel_affine(x, scale, zero, 0, least, most)
    numbers = dequantize(ours, scale[:, None], zero[:, None])
    assert torch.equal(numbers[~tie], fake[~tie])
    inside = x.clamp(min=(least - zero[:, None]) * scale[:, None], max=(most - zero[:, None]) * scale[:, None])
    assert ((numbers - inside).abs() <= 0.5001 * scale[:, None] + 1e-12).all()


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_scales_are_those_of_torchao(bits: int, symmetric: bool) -> None:
    from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver

    least, most = ends(bits, symmetric)
    for seed in range(10):
        x = values(seed)
        observer = PerChannelMinMaxObserver(
            dtype=torch.int8 if symmetric else torch.uint8,
            qscheme=torch.per_channel_symmetric if symmetric else torch.per_channel_affine,
            quant_min=least,
            quant_max=most,
        )
        observer(x)
        theirs = observer.calculate_qparams()
        scale, zero = scale_and_zero_point(x.amin(1), x.amax(1), bits=bits, symmetric=symmetric)
        torch.testing.assert_close(scale, theirs[0], rtol=1e-6, atol=0)
        assert torch.equal(zero.long(), theirs[1].long())


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_range_of_zero_and_ranges_beside_zero(symmetric: bool) -> None:
    low, high = torch.tensor([0.0, 1.0, -3.0]), torch.tensor([0.0, 2.0, -1.0])
    scale, zero = scale_and_zero_point(low, high, bits=8, symmetric=symmetric)
    assert torch.isfinite(scale).all() and (scale >= EPS).all()
    for x in (torch.zeros(3), torch.tensor([0.0, 2.0, -3.0])):  # zero is exact, and the far ends are kept
        back = dequantize(quantize(x, scale, zero, bits=8, signed=symmetric), scale, zero)
        torch.testing.assert_close(back, x, rtol=0.005 if symmetric else 1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan])
def test_nan_is_no_integer(bad: float) -> None:
    one = torch.ones(())
    with pytest.raises(RefusedError, match="holds NaN"):
        quantize(torch.tensor([1.0, bad]), one, 0 * one, bits=8, signed=True)
    assert quantize(torch.tensor([math.inf, -math.inf]), one, 0 * one, bits=8, signed=True).tolist() == [127, -128]


# --- ranges -----------------------------------------------------------------------------------------------------------


def test_min_max_and_percentile() -> None:
    x = torch.arange(10_001.0) - 2000
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    assert value_range(x, observer="minmax", bits=8, symmetric=False) == (-2000, 8000)
    low, high = value_range(x, observer="percentile", bits=8, symmetric=False)
    assert (float(low), float(high)) == (-1995, 7995)  # 5 of 10,000 outside, at either end


def error(x: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Tensor:
    scale, zero = scale_and_zero_point(low, high, bits=bits, symmetric=symmetric)
    back = dequantize(
        quantize(x, scale[:, None], zero[:, None], bits=bits, signed=symmetric), scale[:, None], zero[:, None]
    )
    return (back - x).square().mean(1)


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_mse_is_the_best_of_all_clippings(bits: int, symmetric: bool) -> None:
    """Never worse than min-max, and no worse than a search ten times as fine, but for its own steps."""
    for seed in range(3):
        x = values(seed)
        low, high = value_range(x, observer="mse", bits=bits, symmetric=symmetric)
        ours = error(x, low, high, bits, symmetric)
        assert (ours <= error(x, x.amin(1), x.amax(1), bits, symmetric) * (1 + 1e-5) + 1e-12).all()
        if symmetric:
            peak = x.abs().amax(1)
            finest = torch.stack([error(x, -s * peak, s * peak, bits, True) for s in torch.linspace(0.0025, 1, 400)])
            spread = [0, 1, 2, 5]  # a constant can be met exactly, between any two steps
            assert (ours <= 1.2 * finest.amin(0) + 1e-12)[spread].all()


def test_mse_clips_what_is_rare_and_keeps_what_is_not() -> None:
    x = torch.randn(1, 10_000, generator=torch.Generator().manual_seed(0))
    _, high = value_range(x, observer="mse", bits=4, symmetric=True)
    # Banner et al., NeurIPS 2019: the best clipping of 4 bits of a normal distribution is at 2.55
    assert 2.3 < float(high) < 2.9
    assert float(value_range(x, observer="minmax", bits=4, symmetric=True)[1]) > 3.5


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_ranges_of_weights_by_channel_and_by_group(observer: str) -> None:
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    weight[0, :128] *= 10
    settings: dict[str, Any] = {"observer": observer, "bits": 4, "symmetric": False}
    low, high = weight_range(weight, group=128, **settings)
    assert low.shape == high.shape == (6, 2) and high[0, 0] > 4 * high[0, 1]
    for group in (0, 1):
        one = weight_range(weight[:, 128 * group : 128 * (group + 1)], group=None, **settings)
        assert one[0].shape == (6, 1)
        torch.testing.assert_close(one[0][:, 0], low[:, group])
        torch.testing.assert_close(one[1][:, 0], high[:, group])
    kernel = torch.randn(5, 3, 2, 2)
    assert weight_range(kernel, group=None, **settings)[0].shape == (5, 1)


def test_weights_that_cannot_be_rounded() -> None:
    with pytest.raises(RefusedError, match="groups of 128 do not divide the 100 inputs"):
        weight_range(torch.zeros(2, 100), group=128, observer="mse", bits=4, symmetric=False)
    with pytest.raises(RefusedError, match="holds NaN or infinity"):
        weight_range(torch.tensor([[1.0, math.inf]]), group=None, observer="minmax", bits=8, symmetric=True)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_a_range_over_batches_is_that_of_all_values(observer: str) -> None:
    batches = [(1 + seed) * torch.randn(8, 500, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    seen = Ranges(observer, bits=8, symmetric=False)
    for batch in batches:
        seen.see(batch)
    whole = value_range(torch.cat([batch.flatten() for batch in batches]), observer=observer, bits=8, symmetric=False)
    torch.testing.assert_close(torch.stack(seen.range()), torch.stack(whole), rtol=0.03, atol=0)
    with pytest.raises(RefusedError, match="the input of fc holds NaN or infinity in calibration"):
        Ranges(observer, bits=8, symmetric=False, name="fc").see(torch.tensor([1.0, math.nan]))
    with pytest.raises(RefusedError, match="fc did not run in calibration"):
        Ranges(observer, bits=8, symmetric=False, name="fc").range()


@pytest.mark.parametrize("loud", [0, 1, 200])
def test_a_loud_feature_is_not_missed(loud: int) -> None:
    """Of 384 features, as many as there are values between two that an even step would keep."""
    x = torch.randn(32, 128, 384, generator=torch.Generator().manual_seed(0))
    x[..., loud] *= 20
    whole = value_range(x.flatten(), observer="mse", bits=8, symmetric=False)
    seen = Ranges("mse", bits=8, symmetric=False)
    seen.see(x)
    torch.testing.assert_close(torch.stack(seen.range()), torch.stack(whole), rtol=0.15, atol=0)
    assert float(whole[1]) > 20


def test_percentiles_of_large_weights() -> None:
    weight = torch.arange(2.0**25).remainder(1000).reshape(2**13, -1)
    low, high = weight_range(weight, group=128, observer="percentile", bits=4, symmetric=False)
    assert low.shape == (2**13, 32) and torch.isfinite(low).all()
    one = torch.quantile(weight[-1, -128:], 0.9995)
    assert high[-1, -1] == pytest.approx(float(one))


def test_calibration_reads_the_inputs_of_layers_and_leaves_the_model_as_it_was() -> None:
    model, data = settled(Mlp()).train(), [rows(16, seed) for seed in range(3)]
    around = context(((rows(BATCH),), {}), data)
    found = calibrate(model, {"layers.0": "minmax", "head": "minmax"}, around)
    everything = torch.cat(data)
    assert found["layers.0"] == (everything.min(), everything.max())
    with torch.no_grad():
        hidden = model.layers(everything)
    torch.testing.assert_close(found["head"], (hidden.min(), hidden.max()))
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("vnni", "bits"), [(True, 8), (False, 7)])
def test_activations_keep_to_7_bits_without_vnni(vnni: bool, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    assert activation_grid("cpu") == (bits, False) and activation_grid("cuda:0") == (8, True)
