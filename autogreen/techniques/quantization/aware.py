"""Quantization-aware training: layers round as their scheme will, and gradients pass as if they had not.

Weights stay what they are, float parameters under their own names; what a layer computes with is their rounded image,
made before each call and gone after it. Gradients pass straight through the rounding; those of activations stop where a
value is clipped, which weights are not for long: their ranges follow them.

Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013 (straight through); Jacob et
al., CVPR 2018 (moving ranges of activations).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autogreen.techniques import Context
from autogreen.techniques.quantization.numerics import (
    Ranges,
    activation_grid,
    bounds,
    calibrate,
    imitate,
    scale_and_zero_point,
    weight_range,
)
from autogreen.techniques.quantization.schemes import GROUP, Treatment

REFRESH = 32  # calls between two looks at ranges that are searched, which costs many times what rounding does
MOVING = 0.25  # share of the new in a moving range
FP8 = torch.finfo(torch.float8_e4m3fn).max


@contextmanager
def rounding(model: nn.Module, treatments: Mapping[str, Treatment], context: Context) -> Iterator[None]:
    """While this lasts the named layers of the model compute as if they were quantized.

    Raises:
        RefusedError: the calibration split is missing or not finite, or a layer's sizes do not suit its scheme.
    """
    with switched(model, treatments, context) as only:
        only(treatments)
        yield


@contextmanager
def switched(
    model: nn.Module, treatments: Mapping[str, Treatment], context: Context
) -> Iterator[Callable[[Collection[str]], None]]:
    """The same, and what it yields says which of them alone do so; none at first. Ranges are calibrated once for all.

    Raises:
        RefusedError: as of `rounding`.
    """
    static = {name: one.observer for name, one in treatments.items() if one.scheme == "w8a8_static"}
    ranges = calibrate(model, static, context) if static else {}
    grid = activation_grid(context.device)
    handles, made = [], {}
    for name, treatment in treatments.items():
        layer = model.get_submodule(name)
        made[name] = rounded = _Rounded(name, treatment, grid, ranges.get(name))
        handles.append(layer.register_forward_pre_hook(rounded.before, with_kwargs=True))
        handles.append(layer.register_forward_hook(rounded.after, always_call=True))

    def only(names: Collection[str]) -> None:
        for name, rounded in made.items():
            rounded.on = name in names

    try:
        yield only
    finally:
        for handle in handles:
            handle.remove()


class _Rounded:
    """The hooks of one layer."""

    def __init__(
        self, name: str, treatment: Treatment, grid: tuple[int, bool], calibrated: tuple[Tensor, Tensor] | None
    ) -> None:
        self._name, self._treatment, self._grid, self._calibrated = name, treatment, grid, calibrated
        self._weight_range: tuple[Tensor, Tensor] | None = None
        self._calls = 0
        self.on = False

    def before(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if not self.on:
            return args, kwargs
        look, self._calls = self._calls % REFRESH == 0, self._calls + 1
        layer.__dict__["weight"] = self._weights(layer._parameters["weight"], look)
        if args:
            return (self._activations(args[0], look and layer.training), *args[1:]), kwargs
        return args, {**kwargs, "input": self._activations(kwargs["input"], look and layer.training)}

    def after(self, layer: Any, args: Any, outputs: Any) -> None:
        layer.__dict__.pop("weight", None)  # the parameter of that name is seen again

    def _weights(self, weight: Tensor, look: bool) -> Tensor:
        scheme = self._treatment.scheme
        if scheme == "fp8":
            return _float8(weight, weight.detach().flatten(1).abs().amax(1).view(-1, *[1] * (weight.ndim - 1)))
        group, bits = (GROUP, 4) if scheme == "w4a16" else (None, 8)
        symmetric = scheme != "w4a16"
        observer = self._treatment.weight_observer
        if look or self._weight_range is None or observer == "minmax":
            self._weight_range = weight_range(weight, group=group, observer=observer, bits=bits, symmetric=symmetric)
        scale, zero_point = scale_and_zero_point(*self._weight_range, bits=bits, symmetric=symmetric)
        grouped = weight.detach().reshape(*scale.shape, -1)
        rounded = imitate(grouped, scale[..., None], zero_point[..., None], bits=bits, signed=symmetric)
        return _straight(weight, rounded.view_as(weight))

    def _activations(self, x: Tensor, look: bool) -> Tensor:
        scheme = self._treatment.scheme
        if scheme == "fp8":
            return _float8(x, x.detach().abs().amax(-1, keepdim=True))
        if scheme not in ("w8a8", "w8a8_static"):
            return x
        if scheme == "w8a8":  # a GPU has a scale for each row of them: a little finer
            low, high = torch.aminmax(x.detach())
        else:
            assert self._calibrated is not None
            if look:
                self._move(x)
            low, high = self._calibrated
        bits, symmetric = self._grid
        scale, zero_point = scale_and_zero_point(low, high, bits=bits, symmetric=symmetric)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, *bounds(bits, signed=symmetric))

    def _move(self, x: Tensor) -> None:
        assert self._calibrated is not None
        bits, symmetric = self._grid
        now = Ranges(self._treatment.observer, bits=bits, symmetric=symmetric, name=self._name)
        now.see(x)
        self._calibrated = (
            torch.lerp(self._calibrated[0], now.range()[0], MOVING),
            torch.lerp(self._calibrated[1], now.range()[1], MOVING),
        )


def _float8(x: Tensor, peak: Tensor) -> Tensor:
    scale = (peak / FP8).clamp(min=torch.finfo(torch.float32).tiny)
    return _straight(x, (x.detach() / scale).clamp(-FP8, FP8).to(torch.float8_e4m3fn).to(x.dtype) * scale)


def _straight(x: Tensor, rounded: Tensor) -> Tensor:
    """The rounded values, with the gradient of x."""
    return x + (rounded - x).detach()
