"""Batch norms folded into the convolutions before them: what is left is what runs in inference."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from autogreen.tasks import Inputs
from autogreen.techniques.trace import tensors


def fold_batch_norm(model: nn.Module, example: Inputs) -> None:
    """Fold each batch norm into the convolution that alone feeds it and feeds nothing else, in place; any other one
    becomes its scale and shift. The function computed is the same.

    Who feeds what is read from the tensors of one forward pass, functional calls (`x + y`) included.
    """
    reads = _Reads()
    made_by: dict[int, tuple[nn.Conv2d, int]] = {}  # by tensor: its convolution, and reads of that address until then
    calls: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, int, int]] = []
    alive: list[Any] = []  # no two tensors share an address

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] += 1
        source = args[0] if args else kwargs["input"]
        if isinstance(module, nn.BatchNorm2d) and id(source) in made_by:
            conv, until_then = made_by[id(source)]
            pairs.append((conv, module, id(source), until_then))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            alive.append(output)
            made_by[id(output)] = module, reads.of[id(output)]

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
    try:
        args, kwargs = example
        with torch.no_grad(), reads:
            alive.append(model(*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()

    names = {module: name for name, module in model.named_modules()}
    for conv, norm, source, until_then in pairs:
        alone = calls[conv] == calls[norm] == 1 and reads.of[source] == until_then + 1
        returned = any(leaf is made for leaf in tensors(alive[-1]) for made in alive[:-1] if id(made) == source)
        if alone and not returned and norm.track_running_stats:
            replace(model, names[conv], fuse_conv_bn_eval(conv.eval(), norm.eval()))
            replace(model, names[norm], nn.Identity())
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            replace(model, name, ScaleShift(module))  # pt2e would fold it into a shared convolution, wrongly


class _Reads(TorchFunctionMode):
    """Counts, by address, how often a tensor is an argument of an operation that makes or changes tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if result is None or tensors(result):
            self.of.update(id(leaf) for leaf in tensors((args, kwargs)))
        return result


class ScaleShift(nn.Module):
    """What a batch norm is in inference: [n, c, h, w] times one number per channel, plus another."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        ones = torch.ones_like(norm.running_var)
        scale = (ones if norm.weight is None else norm.weight.detach()) / (norm.running_var + norm.eps).sqrt()
        bias = 0 * ones if norm.bias is None else norm.bias.detach()
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", (bias - norm.running_mean * scale)[:, None, None])

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale + self.shift


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
