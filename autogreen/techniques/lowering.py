"""From a trained float32 module to one whose layers really compute in fewer bits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from autogreen.engines.exported import export
from autogreen.errors import RefusedError
from autogreen.tasks import Inputs, cut, rows, to_device
from autogreen.techniques import Context


def fold_batch_norm(model: nn.Module, example: Inputs) -> None:
    """Fold each batch norm into the convolution that alone feeds it, in place; the function computed is the same.

    Which convolution feeds which batch norm is read from the tensors of one forward pass.
    """
    made_by: dict[int, nn.Conv2d] = {}
    reads: dict[int, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, int]] = []
    alive: list[Any] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        source = id(args[0])
        reads[source] = reads.get(source, 0) + 1
        if isinstance(module, nn.BatchNorm2d) and source in made_by:
            pairs.append((made_by[source], module, source))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        alive.append(output)
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module

    handles = []
    for module in model.modules():
        if not list(module.children()):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        args, kwargs = example
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()

    names = {module: name for name, module in model.named_modules()}
    for conv, norm, source in pairs:
        used_once = sum(other is conv or bn is norm for other, bn, _ in pairs) == 1 and reads[source] == 1
        if used_once and norm.track_running_stats:
            _replace(model, names[conv], fuse_conv_bn_eval(conv.eval(), norm.eval()))
            _replace(model, names[norm], nn.Identity())


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
        RefusedError: the model cannot be exported, or the calibration data is not finite.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    graph = export(model, context.example).module()
    quantizer = X86InductorQuantizer()
    config = get_default_x86_inductor_quantization_config(reduce_range=not _has_vnni())
    for name in names:
        quantizer.set_module_name_qconfig(name, config)
    prepared = prepare_pt2e(graph, quantizer)
    size = rows(context.example)
    with torch.no_grad():
        for batch in context.task.batches("calibration"):
            context.check()
            inputs = context.task.inputs(to_device(batch, context.device))
            for part in cut(inputs, size):
                _refuse_nonfinite(part)
                prepared(*part[0], **part[1])
    converted: nn.Module = convert_pt2e(prepared)
    _drop_unused(converted)
    return converted


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
