"""Golden examples: what went in and what came out, kept so that another process can tell whether it still does.

They are stored as trees (`autogreen.tasks.trees`).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from autogreen.engines import Kernel

if TYPE_CHECKING:
    from torch import Tensor

# Largest difference of an output tensor over the tensor's own largest magnitude. The same weights on another
# processor, or compiled afresh, sum in another order: in float32 that stays far below 1e-3 in networks of 100 layers.
# A float16 or bfloat16 value is rounded to 2^-11 or 2^-8, an int8 activation to 1/127 of its range, a float8 one to
# 2^-4, and a sum that moved may round to the neighbouring step; a few such steps pass through to the output.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2, "int8": 5e-2, "float8": 1e-1}
ROUNDED = {"aten::_weight_int8pack_mm": "bfloat16"}  # multiplies in float32 what was rounded before


def tolerance(kernels: Iterable[Kernel]) -> float:
    """The widest that any kernel's numbers call for."""
    numbers = (ROUNDED.get(kernel.name, kernel.precision) for kernel in kernels)
    return max((TOLERANCES[kind] for kind in numbers), default=TOLERANCES["float32"])


def difference(expected: Any, actual: Any) -> float:
    """How far two outputs are apart: 0 for equal ones, infinity for other shapes, types, NaN.

    Floating point: largest difference over the largest expected magnitude, tensor by tensor. Integers and flags: the
    share that differs. Scalars and structure: equal or not.
    """
    from autogreen.tasks.trees import pack

    (shape, tensors), (other_shape, others) = pack(expected, "output"), pack(actual, "output")
    if shape != other_shape:
        return float("inf")
    return max((_difference(tensor, others[name]) for name, tensor in tensors.items()), default=0.0)


def _difference(expected: "Tensor", actual: "Tensor") -> float:
    import torch

    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return float((expected != actual).double().mean())
    same = expected == actual  # masked scores may be infinite on both sides
    apart = torch.where(same, 0.0, (expected - actual).abs().double())
    if not torch.isfinite(apart).all():
        return float("inf")
    magnitudes = expected.abs().double()
    scale = float(magnitudes[torch.isfinite(magnitudes)].max()) if torch.isfinite(magnitudes).any() else 0.0
    return float(apart.max()) / scale if scale > 0 else float("inf" if apart.max() > 0 else 0.0)
