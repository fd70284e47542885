"""The arithmetic of integers that stand for real numbers, and the choice of their range.

    q = clip(round(x / scale + zero_point))         x' = scale * (q - zero_point)

    symmetric   q in [-2^(b-1), 2^(b-1) - 1], zero_point 0; scale = max(|low|, |high|) / (2^b - 1) * 2
    affine      q in [0, 2^b - 1]; scale = (high - low) / (2^b - 1), zero_point = round(-low / scale)

Zero is always exact: it pads, and rectifiers make it. A range that leaves it out is widened to it.

Source: Jacob et al., Quantization and Training of Neural Networks, CVPR 2018; ranges: Nagel et al., A White Paper on
Neural Network Quantization, 2021 (arXiv 2106.08295), section 3.1. Scales are those of PyTorch's own observers.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autogreen.errors import RefusedError
from autogreen.tasks import Inputs, cut, rows, to_device
from autogreen.techniques import Context

EPS = torch.finfo(torch.float32).eps  # of scales: what is all zero still has one
PERCENT = 0.1  # of the values that `percentile` leaves outside, half of them at each end
CANDIDATES = 40  # of either end of a range that `mse` tries
BINS = 8192  # of the histogram of an activation


def scale_and_zero_point(low: Tensor, high: Tensor, *, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) of ranges of any shape."""
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    steps = 2**bits - 1
    if symmetric:
        scale = (torch.maximum(-low, high) / (steps / 2)).clamp(min=EPS)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = ((high - low) / steps).clamp(min=EPS)
    return scale, (-low / scale).round().clamp(0, steps).to(torch.int32)


def bounds(bits: int, *, signed: bool) -> tuple[int, int]:
    """The least and the largest integer."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, *, bits: int, signed: bool) -> Tensor:
    """Round to integers (int8 or uint8, 8 bits or fewer); scale and zero point broadcast against x.

    Raises:
        RefusedError: x holds NaN, which is no integer.
    """
    if torch.isnan(x).any():
        raise RefusedError("a tensor to quantize holds NaN, which no integer stands for.")
    rounded = (x.float() / scale + zero_point).round().clamp(*bounds(bits, signed=signed))
    return rounded.to(torch.int8 if signed else torch.uint8)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The float32 numbers that integers stand for."""
    return (q.float() - zero_point) * scale


def imitate(x: Tensor, scale: Tensor, zero_point: Tensor, *, bits: int, signed: bool) -> Tensor:
    """What x becomes when it is quantized and dequantized, computed in float32."""
    rounded = (x.float() / scale + zero_point).round_().clamp_(*bounds(bits, signed=signed))
    return rounded.sub_(zero_point).mul_(scale)


def weight_range(
    weight: Tensor, *, group: int | None, observer: str, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Low and high end [out, groups] of a weight [out, ...] for each output channel (`group` None, one group) or each
    `group` inputs of one.

    Raises:
        RefusedError: the groups do not divide the inputs, or the weight holds NaN or infinity.
    """
    flat = weight.detach().float().flatten(1)
    if group is not None and flat.shape[1] % group:
        raise RefusedError(f"groups of {group} do not divide the {flat.shape[1]} inputs of a layer.")
    if not torch.isfinite(flat).all():
        raise RefusedError("a weight to quantize holds NaN or infinity.")
    return value_range(
        flat.reshape(len(flat), -1, group or flat.shape[1]), observer=observer, bits=bits, symmetric=symmetric
    )


def value_range(x: Tensor, *, observer: str, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Low and high end [...] of values [..., n].

    minmax      the least and the largest
    percentile  99.9 % of the values lie inside, as many of the others below as above
    mse         the ends that give the least mean squared error of rounding and clipping: ends at 1/40 to 40/40 of
                the largest value are tried for the high end, then for the low one (both at once where symmetric)
    """
    low, high = x.amin(-1), x.amax(-1)
    if observer == "percentile":
        ends = torch.tensor([0.005 * PERCENT, 1 - 0.005 * PERCENT], dtype=x.dtype, device=x.device)
        rows = max(1, 2**23 // x.shape[-1])  # torch.quantile takes 2^24 values
        parts = torch.split(x.reshape(-1, x.shape[-1]), rows)
        low, high = torch.cat([torch.quantile(part, ends, dim=1) for part in parts], dim=1).reshape(2, *x.shape[:-1])
    return _least_error(x, None, bits=bits, symmetric=symmetric) if observer == "mse" else (low, high)


def _least_error(x: Tensor, weights: Tensor | None, *, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The range of least mean squared error of values [..., n], each of weight 1/n or as `weights` [n] say."""
    low, high = x.amin(-1), x.amax(-1)

    def error(low: Tensor, high: Tensor) -> Tensor:
        scale, zero = (part.unsqueeze(-1) for part in scale_and_zero_point(low, high, bits=bits, symmetric=symmetric))
        squared = imitate(x, scale, zero, bits=bits, signed=symmetric).sub_(x).square_()
        return squared.mean(-1) if weights is None else (squared * weights).sum(-1).float()

    if symmetric:
        peak = torch.maximum(-low, high)
        peak = _least(lambda share: error(-share * peak, share * peak)) * peak
        return -peak, peak
    high = _least(lambda share: error(low, share * high)) * high
    low = _least(lambda share: error(share * low, high)) * low
    return low, high


def _least(error: Callable[[float], Tensor]) -> Tensor:
    """The share, of 1/CANDIDATES to 1, with the least error; elementwise, the largest where several are equal."""
    best = error(1.0)
    found = torch.ones_like(best)
    for step in range(CANDIDATES - 1, 0, -1):
        tried = error(step / CANDIDATES)
        found = torch.where(tried < best, step / CANDIDATES, found)
        best = torch.minimum(tried, best)
    return found


class Ranges:
    """The range of one tensor over many batches, by an observer.

    The ends are exact. What lies between them is counted in `BINS` bins, which are spread anew when a batch goes beyond
    them: every value counts, and a rare loud feature is not missed.
    """

    def __init__(self, observer: str, *, bits: int, symmetric: bool, name: str = "a layer") -> None:
        self._observer, self._bits, self._symmetric, self._name = observer, bits, symmetric, name
        self._ends: Tensor | None = None  # low, high
        self._counts: Tensor | None = None

    def see(self, x: Tensor) -> None:
        """Look at one batch of values, of any shape.

        Raises:
            RefusedError: it holds NaN or infinity.
        """
        flat = x.detach().flatten().float()
        low, high = torch.aminmax(flat)
        if not torch.isfinite(low + high):
            raise RefusedError(f"the input of {self._name} holds NaN or infinity in calibration: it has no range.")
        before = self._ends
        self._ends = ends = torch.stack(
            [low, high] if before is None else [torch.minimum(low, before[0]), torch.maximum(high, before[1])]
        )
        if self._observer == "minmax":
            return
        counts = _histogram(flat, ends, None)
        if before is not None and self._counts is not None:
            counts += _histogram(_centres(before), ends, self._counts)
        self._counts = counts

    def range(self) -> tuple[Tensor, Tensor]:
        """Low and high end, of no dimension.

        Raises:
            RefusedError: nothing was seen.
        """
        if self._ends is None:
            raise RefusedError(f"{self._name} did not run in calibration: the range of its input is not known.")
        low, high = self._ends
        if self._counts is None:
            return low, high
        if self._observer == "percentile":
            outside = 0.005 * PERCENT * self._counts.sum()
            below, above = self._counts.cumsum(0) <= outside, self._counts.flip(0).cumsum(0) <= outside
            width = (high - low) / BINS
            return low + below.sum() * width, high - above.sum() * width
        values = torch.cat([_centres(self._ends), self._ends])
        counts = torch.cat([self._counts, self._counts.new_zeros(2)])
        return _least_error(values, counts / counts.sum(), bits=self._bits, symmetric=self._symmetric)


def _centres(ends: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * (torch.arange(BINS, device=ends.device) + 0.5) / BINS


def _histogram(values: Tensor, ends: Tensor, counts: Tensor | None) -> Tensor:
    """Counts [BINS] of values between two ends, each of them once or `counts` times."""
    places = ((values - ends[0]) * (BINS / (ends[1] - ends[0]).clamp(min=EPS))).long().clamp_(0, BINS - 1)
    return torch.bincount(places, counts, minlength=BINS).double()


def activation_grid(device: str) -> tuple[int, bool]:
    """Bits and symmetry of int8 activations: affine on processors, where those without VNNI or AMX keep to 7 bits (two
    products of 8 bits overflow the 16-bit sum of `vpmaddubsw`, silently); symmetric on GPUs."""
    if device.startswith("cuda"):
        return 8, True
    return (8 if torch.cpu._is_vnni_supported() else 7), False


def calibrate(model: nn.Module, observers: Mapping[str, str], context: Context) -> dict[str, tuple[Tensor, Tensor]]:
    """Low and high end of the input of every named layer over the calibration split, by the observer of each.

    Raises:
        RefusedError: the split is missing or holds NaN or infinity.
    """
    bits, symmetric = activation_grid(context.device)
    found = {name: Ranges(each, bits=bits, symmetric=symmetric, name=name) for name, each in observers.items()}

    def look(seen: Ranges) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.see(args[0] if args else kwargs["input"])

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(look(seen), with_kwargs=True)
        for name, seen in found.items()
    ]
    was_training = model.training
    try:
        run_calibration(model.eval(), context)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: seen.range() for name, seen in found.items()}


def run_calibration(model: Callable[..., Any], context: Context) -> None:
    """Call the model on the calibration split, in batches of the example's size.

    Raises:
        RefusedError: the split is missing or holds NaN or infinity.
    """
    with torch.no_grad():
        for inputs in calibration_inputs(context):
            for args, kwargs in cut(to_device(inputs, context.device), rows(context.example)):
                model(*args, **kwargs)


def calibration_inputs(context: Context) -> Iterator[Inputs]:
    """What the model is called with on the calibration split, batch by batch as the task gives them.

    Raises:
        RefusedError: the split is missing or holds NaN or infinity.
    """
    inputs: Inputs | None = None
    for batch in context.task.batches("calibration"):
        context.check()
        inputs = context.task.inputs(batch)
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not torch.isfinite(leaf).all():
                raise RefusedError("the calibration split holds NaN or infinity: value ranges cannot be read from it.")
        yield inputs
    if inputs is None:
        raise RefusedError("the calibration split gave no batch: value ranges cannot be read from it.")
