"""Inputs and outputs (tensors, scalars, lists and dicts of them) as a JSON shape and named tensors, and back.

({"ids": Tensor}, 0.5)   ->   {"tuple": [{"dict": {"ids": {"tensor": "input.0.0"}}}, {"value": 0.5}]}
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from autogreen.errors import BundleError


def pack(tree: Any, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the shape and the tensors (on the CPU, contiguous, sharing nothing), named by `name` and their places.

    Raises:
        BundleError: a leaf is neither a tensor nor a plain scalar.
    """
    if isinstance(tree, Tensor):
        return {"tensor": name}, {name: tree.detach().cpu().contiguous().clone()}
    if tree is None or type(tree) in (bool, int, float, str):
        return {"value": tree}, {}
    if isinstance(tree, Mapping) and all(type(key) is str for key in tree):
        # places by sorted keys: JSON gives them back in that order, and both must have the same names
        parts = {key: pack(tree[key], f"{name}.{place}") for place, key in enumerate(sorted(tree))}
        shape: dict[str, Any] = {"dict": {key: part for key, (part, _) in parts.items()}}
        return shape, _merged(tensors for _, tensors in parts.values())
    if type(tree) in (tuple, list):
        packed = [pack(value, f"{name}.{place}") for place, value in enumerate(tree)]
        return {type(tree).__name__: [part for part, _ in packed]}, _merged(tensors for _, tensors in packed)
    raise BundleError(f"{name} is a {type(tree).__name__}; inputs and outputs hold tensors, scalars, lists and dicts.")


def unpack(shape: Any, tensors: Mapping[str, Tensor]) -> Any:
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
    raise BundleError(f"the stored examples have a part that cannot be read: {str(shape)[:80]}.")


def _merged(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for part in parts for name, tensor in part.items()}
