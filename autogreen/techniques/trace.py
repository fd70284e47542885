"""What one forward pass tells: which layers run, how often, and which are fed by the same tensor (q, k and v)."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autogreen.errors import RefusedError
from autogreen.tasks import Inputs, plain, rows


def call_once(model: nn.Module, example: Inputs) -> None:
    """Call a model before anyone looks at a call: what it makes in its first one for this batch or after a change of
    its shape (a decoder fills its caches with a whole text) is no work of a call, and would look like a second one."""
    args, kwargs = example
    with torch.no_grad():
        model(*args, **kwargs)


def signature(model: nn.Module, example: Inputs) -> Any:
    """Shapes and types of all output tensors."""
    args, kwargs = example
    with torch.no_grad():
        return [(tuple(leaf.shape), leaf.dtype) for leaf in tensors(model(*args, **kwargs))]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or linear layer that runs. calls: in one forward pass. rows: of its matrix product for one example.
    macs: multiply-accumulates of one call, of all examples. first_fed: the first layer that reads the same tensor
    (itself where it reads alone). place: among all layers, by when each first ran."""

    module: nn.Conv2d | nn.Linear
    calls: int
    rows: int
    macs: int
    first_fed: str
    place: int

    @property
    def width(self) -> int:
        """Output channels or features."""
        return self.module.out_channels if isinstance(self.module, nn.Conv2d) else self.module.out_features

    @property
    def inputs(self) -> int:
        """Input channels or features."""
        return self.module.in_channels if isinstance(self.module, nn.Conv2d) else self.module.in_features


def layers(model: nn.Module, example: Inputs) -> dict[str, Layer]:
    """By name, in the order of the module tree, every convolution and linear layer that runs in a forward pass."""
    examples = rows(example)
    calls: Counter[str] = Counter()
    fed_by: dict[str, Any] = {}
    products: dict[str, int] = {}
    macs: dict[str, int] = {}
    inputs: list[Any] = []  # kept alive, so that no two tensors share an address

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            source = args[0] if args else kwargs["input"]
            inputs.append(source)
            calls[name] += 1
            fed_by.setdefault(name, id(source))

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Conv2d | nn.Linear, args: tuple[Any, ...], output: Tensor) -> None:
            channels = 1 if isinstance(module, nn.Conv2d) else -1
            products[name] = max(1, output.numel() // output.shape[channels] // examples)
            macs[name] = output.numel() * (module.weight.numel() // len(module.weight))

        return hook

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = []
    for name, module in found:
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after(name)))
    try:
        args, kwargs = example
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    first: dict[Any, str] = {}
    places = {name: place for place, name in enumerate(fed_by)}
    for name in fed_by:  # in the order in which they ran
        first.setdefault(fed_by[name], name)
    return {
        name: Layer(
            module=module,
            calls=calls[name],
            rows=products[name],
            macs=macs[name],
            first_fed=first[fed_by[name]],
            place=places[name],
        )
        for name, module in found
        if name in calls
    }


def refuse_made_weights(model: nn.Module) -> None:
    """Refuse layers whose weight is no parameter of theirs, but made anew from others: who changes it changes nothing.

    Raises:
        RefusedError: names them.
    """
    made = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module._parameters.get("weight"), nn.Parameter)
    ]
    if made:
        raise RefusedError(
            f"the weight of {', '.join(made)} is computed from other tensors (weight_norm, a parametrization). Make it "
            "plain first: torch.nn.utils.parametrize.remove_parametrizations, or torch.nn.utils.remove_weight_norm."
        )


def block_of(name: str) -> str:
    """The repeated block a layer stands in: its name up to the last number, otherwise its parent."""
    parts = name.split(".")
    numbered = [index for index, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[: numbered[-1] + 1] if numbered else parts[:-1]) or name


def tensors(outputs: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(plain(outputs)) if isinstance(leaf, torch.Tensor)]
