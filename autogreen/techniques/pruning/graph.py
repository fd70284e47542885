"""Dependency groups: channels and features that must go together, found by torch-pruning.

Source: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

from autogreen.errors import RefusedError
from autogreen.tasks import Inputs
from autogreen.techniques.pruning.limit import limit
from autogreen.techniques.pruning.surgery import Read, Removable, Slice
from autogreen.techniques.trace import tensors

LIMIT_S = 60.0
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)


@dataclass(frozen=True, kw_only=True)
class Group:
    """removable: None where a part of it cannot be narrowed (a layer norm, a grouped convolution, an embedding, the
    model's output). members: layers whose *output* shrinks. structure: `channel` where one is a convolution."""

    members: tuple[str, ...]
    structure: str
    removable: Removable | None


def groups(model: nn.Module, example: Inputs, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Group]]:
    """Yield (first layer, group) for every convolution and linear layer that is wanted and in no group before.

    Raises:
        RefusedError: the dependencies cannot be traced, or not within a minute (the layer is named).
    """
    names = {module: name for name, module in model.named_modules()}
    model.eval()
    with _gradients(model), limit(LIMIT_S, lambda frame: _time_up(model, names, frame)):
        graph = _graph(model, example)
        found: list[tuple[str, Group]] = []
        seen: set[str] = set()
        for module, name in names.items():
            if not isinstance(module, nn.Conv2d | nn.Linear) or not wanted(name) or name in seen:
                continue
            if module not in graph.module2node:  # it runs, but no output depends on it
                continue
            group = _group(graph, module, name, names)
            seen.update(group.members)
            found.append((name, group))
    yield from found


def _graph(model: nn.Module, example: Inputs) -> Any:
    import torch_pruning as tp

    args, kwargs = example
    try:
        with torch.enable_grad():
            return tp.DependencyGraph().build_dependency(
                model,
                example_inputs=args,
                forward_fn=(lambda traced, inputs: traced(*inputs, **kwargs)),
                output_transform=tensors,
                unwrapped_parameters=[],
                customized_pruners={},
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
    except Exception as error:
        raise RefusedError(
            f"pruning: the dependencies of {type(model).__name__} cannot be traced ({type(error).__name__}: {error}). "
            "Leave the pruning section out."
        ) from error


def _group(graph: Any, root: nn.Module, root_name: str, names: dict[nn.Module, str]) -> Group:
    width = len(root.get_parameter("weight"))
    found = graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, idxs=list(range(width)))
    slices: list[Slice] = []
    reads: list[Read] = []
    members: set[str] = set()
    whole = True  # every part of the group can be narrowed
    for item in found:
        node = item.dep.target
        out = item.dep.handler == graph.get_pruner_of_module(node.module).prune_out_channels
        if isinstance(node.module, nn.Conv2d | nn.Linear) and out:
            members.add(names[node.module])
        if isinstance(node.module, nn.Parameter):
            owned: tuple[str, ...] = (graph._param_to_name[node.module],)
            axis = node.pruning_dim % node.module.ndim
        elif node.module not in names:  # an operation without tensors: a sum, a concatenation, a reshape
            whole = whole and type(node.module).__name__ != "_OutputOp"
            continue
        elif (axis_of := _axis(node.module, out)) is None:
            whole = False
            continue
        else:
            axis = axis_of
            owned = tuple(f"{names[node.module]}.{leaf}" for leaf in _tensors(node.module, axis))
        if (where := _places(item.idxs, item.root_idxs, width)) is None:
            whole = False
            continue
        slices += [Slice(tensor=tensor, axis=axis, places=where) for tensor in owned]
        if axis == 1 and not isinstance(node.module, nn.Parameter):
            axis_in = -1 if isinstance(node.module, nn.Linear) else 1
            reads.append(Read(layer=names[node.module], axis=axis_in, places=where))
    convolution = any(isinstance(module, nn.Conv2d) for module, name in names.items() if name in members)
    return Group(
        members=tuple(name for name in names.values() if name in members),
        structure="channel" if convolution else "neuron",
        removable=Removable(name=root_name, width=width, slices=tuple(slices), reads=tuple(reads)) if whole else None,
    )


def _axis(module: Any, out: bool) -> int | None:
    """The axis of a layer's weight that goes, or None where the layer cannot be narrowed."""
    if isinstance(module, CONVOLUTIONS):
        if module.groups > 1:
            return 0 if module.groups == module.in_channels == module.out_channels else None
        return 0 if out else 1
    if isinstance(module, nn.Linear):
        return 0 if out else 1
    return 0 if isinstance(module, PER_CHANNEL) else None


def _tensors(module: Any, axis: int) -> Iterator[str]:
    """A layer's tensors that have the axis."""
    for leaf in ("weight",) if axis == 1 else ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, leaf, None)
        if tensor is not None and not (isinstance(module, nn.PReLU) and len(tensor) == 1):
            yield leaf


def _places(indices: Any, roots: Any, width: int) -> torch.Tensor | None:
    """[width, k]: where each index of the root lies, or None where they have no common k."""
    if len(indices) % width or any(root is None for root in roots):
        return None
    by_root: list[list[int]] = [[] for _ in range(width)]
    for index, root in zip(indices, roots, strict=True):
        by_root[root].append(index)
    if len({len(found) for found in by_root}) != 1:
        return None
    return torch.tensor([sorted(found) for found in by_root])


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    """torch-pruning follows gradients: frozen parameters get them for as long as this lasts."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _time_up(model: nn.Module, names: dict[nn.Module, str], frame: FrameType | None) -> str:
    at = ""
    while frame is not None and not at:
        for value in list(frame.f_locals.values()):
            module = getattr(getattr(value, "target", value), "module", value)
            if isinstance(module, nn.Module) and names.get(module):
                at = f" at {names[module]!r}"
        frame = frame.f_back
    return (
        f"pruning: tracing the dependencies of {type(model).__name__} took more than {LIMIT_S:.0f} s and was stopped"
        f"{at}. Leave the pruning section out."
    )
