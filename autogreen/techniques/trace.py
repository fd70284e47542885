"""What one forward pass tells: which layers run, how often, and which are fed by the same tensor (q, k and v)."""

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from autogreen.tasks import Inputs, plain


def signature(model: nn.Module, example: Inputs) -> Any:
    """Shapes and types of all output tensors."""
    args, kwargs = example
    with torch.no_grad():
        return [(tuple(leaf.shape), leaf.dtype) for leaf in tensors(model(*args, **kwargs))]


def executed_layers(model: nn.Module, example: Inputs) -> dict[str, int]:
    """Calls a forward pass of every convolution and linear layer that runs."""
    return {name: calls for name, (calls, _) in _trace(model, example).items()}


def fed_together(model: nn.Module, example: Inputs) -> dict[str, str]:
    """For every layer the first layer that reads the same tensor (itself where it reads alone)."""
    first: dict[Any, str] = {}
    return {name: first.setdefault(fed_by, name) for name, (_, fed_by) in _trace(model, example).items()}


def block_of(name: str) -> str:
    """The repeated block a layer stands in: its name up to the last number, otherwise its parent."""
    parts = name.split(".")
    numbered = [index for index, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[: numbered[-1] + 1] if numbered else parts[:-1]) or name


def _trace(model: nn.Module, example: Inputs) -> dict[str, tuple[int, Any]]:
    found: dict[str, tuple[int, Any]] = {}
    inputs: list[Any] = []  # kept alive, so that no two tensors share an address

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            source = args[0] if args else kwargs["input"]
            inputs.append(source)
            calls, fed_by = found.get(name, (0, id(source)))
            found[name] = (calls + 1, fed_by)

        return hook

    handles = [
        module.register_forward_pre_hook(record(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        args, kwargs = example
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def tensors(outputs: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(plain(outputs)) if isinstance(leaf, torch.Tensor)]
