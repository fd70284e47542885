"""Depth: whole blocks of a stack of blocks whose outputs have the shape of their inputs.

A removed block leaves a `Skip` in its place, so that every other layer keeps its name.

Source: Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from autogreen.tasks import Inputs
from autogreen.techniques.pruning.surgery import trial
from autogreen.techniques.trace import signature, tensors


class Skip(nn.Module):
    """What is left of a removed block: it hands on its first input. wraps: length of the tuple that the block returned
    (all but the first are None), or 0 for a bare tensor."""

    def __init__(self, block: nn.Module, wraps: int) -> None:
        super().__init__()
        self.wraps = wraps
        for key, value in vars(block).items():  # which kind of layer it was, for one; its owner may ask
            if key not in vars(self) and type(value) in (bool, int, float, str):
                setattr(self, key, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
        return (first, *[None] * (self.wraps - 1)) if self.wraps else first


@dataclass(frozen=True, kw_only=True)
class Stack:
    """name: of the container. blocks: those that can go, by name. wraps: see `Skip`."""

    name: str
    blocks: tuple[str, ...]
    wraps: Mapping[str, int]


def stacks(model: nn.Module, example: Inputs) -> tuple[Stack, ...]:
    """Containers that hold at least two blocks of one class, run once each, whose removal leaves the outputs' shape.

    A container of containers is none: nothing in a plain sequence leads around its layers.
    """
    inside = {
        f"{name}.{key}" if name else key: (name, child)
        for name, container in model.named_modules()
        if isinstance(container, nn.ModuleList | nn.Sequential) and name
        for key, child in container.named_children()
        if next(child.children(), None) is not None and not isinstance(child, nn.Sequential | nn.ModuleList)
    }
    seen: dict[str, list[int | None]] = {}

    def watching(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before, after = tensors((args, kwargs)), tensors(output)
            kept = bool(before and after) and before[0].shape == after[0].shape and before[0].dtype == after[0].dtype
            simple = isinstance(output, Tensor) or (isinstance(output, tuple) and isinstance(output[0], Tensor))
            wraps = len(output) if isinstance(output, tuple) else 0
            seen.setdefault(path, []).append(wraps if kept and simple else None)

        return hook

    handles = [child.register_forward_hook(watching(path), with_kwargs=True) for path, (_, child) in inside.items()]
    try:
        shapes = signature(model, example)
    finally:
        for handle in handles:
            handle.remove()

    found: dict[tuple[str, type], list[str]] = {}
    wraps: dict[str, int] = {}
    for path, (container, child) in inside.items():
        calls = seen.get(path, [])
        if len(calls) == 1 and calls[0] is not None:
            wraps[path] = calls[0]
            found.setdefault((container, type(child)), []).append(path)
    largest: dict[str, list[str]] = {}
    for (container, _), blocks in found.items():
        if len(blocks) >= 2 and len(blocks) > len(largest.get(container, ())):
            largest[container] = blocks
    return tuple(
        Stack(name=container, blocks=tuple(blocks), wraps={path: wraps[path] for path in blocks})
        for container, blocks in largest.items()
        if _survives(model, example, blocks, wraps, shapes)
    )


def _survives(model: nn.Module, example: Inputs, blocks: Sequence[str], wraps: Mapping[str, int], shapes: Any) -> bool:
    """Try it: the first alone, and without the first, of which some owners ask what kind of layer it is."""
    try:
        for going in (blocks[1:], blocks[:1]):
            with trial(model):
                for path in going:
                    skip(model, path, wraps[path])
                if signature(model, example) != shapes:
                    return False
    except Exception:  # noqa: BLE001 - whatever breaks, the answer is no
        return False
    return True


def skip(model: nn.Module, path: str, wraps: int) -> None:
    """Remove one block in place."""
    owner, _, key = path.rpartition(".")
    model.get_submodule(owner)._modules[key] = Skip(model.get_submodule(path), wraps)


def gone(model: nn.Module, name: str) -> bool:
    """Tell whether a module stood in a block that has been removed."""
    module: nn.Module | None = model
    for key in name.split(".") if name else ():
        if isinstance(module, Skip):
            return True
        module = module._modules.get(key) if module is not None else None
    return False
