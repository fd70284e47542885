"""int8 on processors: the model as a graph, quantized by PyTorch 2 Export for the inductor backend on x86."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autogreen.engines.exported import export
from autogreen.errors import RefusedError
from autogreen.tasks import Inputs, cut, rows, to_device
from autogreen.techniques import Context


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
