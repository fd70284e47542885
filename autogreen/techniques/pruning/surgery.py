"""What can be removed from a model, entry by entry, and the cut.

    index 3 of a group  =  row 3 of conv1.weight and bias, entry 3 of bn1.*, columns 3 of what reads it

Places are those of the model as it is; any number of groups are cut at once, so that none renumbers another.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autogreen.tasks import Inputs
from autogreen.techniques.trace import tensors

TOLERANCE = 1e-2  # of the outputs' norm; reduced-precision convolutions of a GPU differ by 1e-3


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Entries of one parameter or buffer, along one axis. places: int64 [width, k], those of each index."""

    tensor: str
    axis: int
    places: Tensor


@dataclass(frozen=True, kw_only=True)
class Read:
    """A layer that reads what is removed. axis: that of its input. places: int64 [width, k], as in `Slice`."""

    layer: str
    axis: int
    places: Tensor


@dataclass(frozen=True, kw_only=True)
class Count:
    """An attribute that counts what is there: `each` times the indices that stay."""

    module: str
    attribute: str
    each: int = 1


@dataclass(frozen=True, kw_only=True)
class Removable:
    """What shrinks together. width: how many indices there are. slices: what belongs to them. reads: who reads them."""

    name: str
    width: int
    slices: tuple[Slice, ...]
    reads: tuple[Read, ...]
    counts: tuple[Count, ...] = field(default=())


def places(width: int, each: int = 1, start: int = 0) -> Tensor:
    """[width, each]: runs of `each` entries, one after the other."""
    return start + torch.arange(width * each).reshape(width, each)


def remove(model: nn.Module, cuts: Iterable[tuple[Removable, Sequence[int]]]) -> None:
    """Remove indices of each; all at once, in place."""
    gone: dict[tuple[str, int], set[int]] = {}
    counts: list[tuple[Count, int]] = []
    for removable, indices in cuts:
        for part in removable.slices:
            gone.setdefault((part.tensor, part.axis), set()).update(part.places[list(indices)].flatten().tolist())
        counts += [(count, removable.width - len(indices)) for count in removable.counts]
    for (name, axis), lost in gone.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, leaf)
        stay = torch.tensor([place for place in range(old.shape[axis]) if place not in lost], device=old.device)
        new = old.detach().index_select(axis, stay)
        setattr(module, leaf, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        _describe(module)
    for count, left in counts:
        setattr(model.get_submodule(count.module), count.attribute, count.each * left)


def _describe(module: nn.Module) -> None:
    """Let a layer's attributes tell the shape that its weight has."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if module.groups > 1:  # depthwise: each channel is its own group
            module.groups = len(module.weight)
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        first = module.weight if module.weight is not None else module.running_mean
        assert first is not None, "a norm without tensors is no part of a group"
        module.num_features = len(first)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


@contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Whatever is done to the modules' tensors and attributes inside is undone at the end."""
    kept = [
        (module, {**vars(module), **{key: dict(vars(module)[key]) for key in ("_parameters", "_buffers", "_modules")}})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, state in kept:
            vars(module).clear()
            vars(module).update(state)


def survives(model: nn.Module, example: Inputs, removable: Removable) -> bool:
    """Try it: one index may go, and without every other index the model computes what it computes when nobody reads
    those.

    The last layer fails (its channels are the classes), so do features that are split into heads, and a width over
    which a layer norm averages: those that stay would change.
    """
    if removable.width < 2 or not removable.reads:
        return False
    every_other = range(0, removable.width - 1, 2)
    try:
        with trial(model):
            silence(model, removable, every_other)
            wanted = _outputs(model, example)
        for indices in ([0], every_other):
            with trial(model):
                remove(model, [(removable, indices)])
                found = _outputs(model, example)
            if [leaf.shape for leaf in found] != [leaf.shape for leaf in wanted]:
                return False
    except Exception:  # noqa: BLE001 - whatever breaks, the answer is no
        return False
    return all(_close(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def silence(model: nn.Module, removable: Removable, indices: Sequence[int]) -> None:
    """Let nobody read these indices: the columns for them become zero."""
    for read in removable.reads:
        layer = model.get_submodule(read.layer)
        weight = layer.get_parameter("weight").detach().clone()
        weight[:, read.places[list(indices)].flatten().to(weight.device)] = 0
        setattr(layer, "weight", nn.Parameter(weight, requires_grad=False))  # noqa: B010 - of a module


def _outputs(model: nn.Module, example: Inputs) -> list[Tensor]:
    args, kwargs = example
    with torch.no_grad():
        return tensors(model(*args, **kwargs))


def _close(ours: Any, theirs: Any) -> bool:
    if not theirs.is_floating_point():
        return True
    allowed = TOLERANCE if theirs.dtype == torch.float32 else 5 * TOLERANCE
    difference = float((ours.float() - theirs.float()).norm())
    return math.isfinite(difference) and difference <= allowed * max(float(theirs.float().norm()), 1e-12)
