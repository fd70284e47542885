"""From a trained float32 module to one whose layers really compute in fewer bits."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from autogreen.engines.exported import export
from autogreen.errors import RefusedError
from autogreen.tasks import Inputs, cut, rows, to_device
from autogreen.techniques import Context
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
            _replace(model, names[conv], fuse_conv_bn_eval(conv.eval(), norm.eval()))
            _replace(model, names[norm], nn.Identity())
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            _replace(model, name, ScaleShift(module))  # pt2e would fold it into a shared convolution, wrongly


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

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Bf16(nn.Module):
    """A layer in bfloat16 inside a float32 model: cast, compute, cast back."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.to(torch.bfloat16))
        return y.to(x.dtype)


def to_bf16(model: nn.Module, names: Sequence[str]) -> None:
    """Wrap the named layers in place."""
    for name in names:
        _replace(model, name, Bf16(model.get_submodule(name)))


def to_int8(model: nn.Module, names: Sequence[str], context: Context) -> nn.Module:
    """Return the model as a graph, at the example's batch size, whose named layers compute in int8 once compiled.

    Raises:
        RefusedError: the model cannot be exported or quantized, or the calibration data is missing or not finite.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    graph = export(model, context.example).module()
    quantizer = X86InductorQuantizer()
    config = get_default_x86_inductor_quantization_config(reduce_range=not _has_vnni())
    calls = _tell_calls_apart(graph)
    for name in names:
        for call in calls.get(name, ()):
            quantizer.set_module_name_qconfig(call, config)
    try:
        prepared = prepare_pt2e(graph, quantizer)
    except Exception as error:
        raise RefusedError(
            f"int8 for {', '.join(names)} of {type(model).__name__}: the quantizer cannot read the graph around them "
            f"({type(error).__name__}: {error}). Give them another scheme."
        ) from error
    size, seen = rows(context.example), 0
    with torch.no_grad():
        for batch in context.task.batches("calibration"):
            context.check()
            inputs = context.task.inputs(to_device(batch, context.device))
            for part in cut(inputs, size):
                _refuse_nonfinite(part)
                seen += 1
                prepared(*part[0], **part[1])
    if not seen:
        raise RefusedError("the calibration split gave no batch: value ranges cannot be read from it.")
    converted: nn.Module = convert_pt2e(prepared)
    _drop_unused(converted)
    return converted


def _tell_calls_apart(graph: nn.Module) -> dict[str, list[str]]:
    """Give each further call of a module a name of its own (`relu`, `relu@1`), in place; return them by module.

    The quantizer takes all operations of one module for one call, and fails on networks that share even a ReLU.
    """
    keys: dict[str, list[str]] = {}
    for node in graph.graph.nodes:  # type: ignore[union-attr]
        if stack := node.meta.get("nn_module_stack"):
            key, (name, kind) = list(stack.items())[-1]
            found = keys.setdefault(name, [])
            if key not in found:
                found.append(key)
            if call := found.index(key):
                node.meta["nn_module_stack"] = {**stack, key: (f"{name}@{call}", kind)}
    return {name: [name, *(f"{name}@{n}" for n in range(1, len(found)))] for name, found in keys.items()}


def _has_vnni() -> bool:
    """Whether int8 products are summed in 32 bits (AVX512-VNNI, AVX-VNNI, AMX)."""
    return bool(torch.cpu._is_vnni_supported()) if hasattr(torch.cpu, "_is_vnni_supported") else False


def _refuse_nonfinite(inputs: Inputs) -> None:
    from torch.utils._pytree import tree_leaves

    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not torch.isfinite(leaf).all():
            raise RefusedError("the calibration split holds NaN or infinity: value ranges cannot be read from it.")


def _drop_unused(graph: nn.Module) -> None:
    """Delete the float32 weights that the int8 ones replaced; exporting would carry them along, dead."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}  # type: ignore[union-attr]
    for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
