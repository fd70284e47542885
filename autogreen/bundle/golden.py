"""Golden examples: what went in and what came out, kept so that another process can tell whether it still does.

A tree of tensors becomes a *shape* (plain JSON) and flat tensors (safetensors):

    ({"ids": Tensor}, 0.5)   ->   {"tuple": [{"dict": {"ids": {"tensor": "input.0.0"}}}, {"value": 0.5}]}
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from autogreen.engines import Kernel
from autogreen.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor

# Largest difference of an output tensor over the tensor's own largest magnitude. The same weights on another
# processor, or compiled afresh, sum in another order: in float32 that stays far below 1e-3 in networks of 100 layers.
# A float16 or bfloat16 value is rounded to 2^-11 or 2^-8, an int8 activation to 1/127 of its range, and a sum that
# moved may round to the neighbouring step; a few such steps pass through to the output.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2, "int8": 5e-2}


def tolerance(kernels: Iterable[Kernel]) -> float:
    """The widest that any kernel's precision calls for."""
    return max((TOLERANCES[kernel.precision] for kernel in kernels), default=TOLERANCES["float32"])


def pack(tree: Any, name: str) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """Return the shape and the tensors (on the CPU, contiguous, sharing nothing), named by `name` and their places.

    Raises:
        BundleError: a leaf is neither a tensor nor a plain scalar.
    """
    from torch import Tensor

    if isinstance(tree, Tensor):
        return {"tensor": name}, {name: tree.detach().cpu().contiguous().clone()}
    if tree is None or type(tree) in (bool, int, float, str):
        return {"value": tree}, {}
    if isinstance(tree, Mapping) and all(type(key) is str for key in tree):
        parts = {key: pack(value, f"{name}.{place}") for place, (key, value) in enumerate(tree.items())}
        shape: dict[str, Any] = {"dict": {key: part for key, (part, _) in parts.items()}}
        return shape, _merged(tensors for _, tensors in parts.values())
    if type(tree) in (tuple, list):
        packed = [pack(value, f"{name}.{place}") for place, value in enumerate(tree)]
        return {type(tree).__name__: [part for part, _ in packed]}, _merged(tensors for _, tensors in packed)
    raise BundleError(f"{name} is a {type(tree).__name__}; golden examples hold tensors, scalars, lists and dicts.")


def unpack(shape: Any, tensors: "Mapping[str, Tensor]") -> Any:
    """The inverse of `pack`.

    Raises:
        BundleError: the shape is not one, or names a tensor that is not there.
    """
    if isinstance(shape, dict) and len(shape) == 1:
        ((kind, inside),) = shape.items()
        if kind == "tensor" and isinstance(inside, str) and inside in tensors:
            return tensors[inside]
        if kind == "value" and (inside is None or type(inside) in (bool, int, float, str)):
            return inside
        if kind == "dict" and isinstance(inside, dict):
            return {key: unpack(part, tensors) for key, part in inside.items()}
        if kind in ("tuple", "list") and isinstance(inside, list):
            parts = [unpack(part, tensors) for part in inside]
            return tuple(parts) if kind == "tuple" else parts
    raise BundleError(f"the golden examples have a part that cannot be read: {str(shape)[:80]}.")


def difference(expected: Any, actual: Any) -> float:
    """How far two outputs are apart: 0 for equal ones, infinity for other shapes, types, NaN.

    Floating point: largest difference over the largest expected magnitude, tensor by tensor. Integers and flags: the
    share that differs. Scalars and structure: equal or not.
    """
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


def _merged(parts: "Iterable[dict[str, Tensor]]") -> "dict[str, Tensor]":
    return {name: tensor for part in parts for name, tensor in part.items()}
