"""int8 on processors: the model as a graph, quantized by PyTorch 2 Export for the inductor backend on x86."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autogreen.engines.exported import export
from autogreen.errors import AutogreenError, RefusedError
from autogreen.techniques import Context
from autogreen.techniques.quantization.numerics import EPS, Ranges, activation_grid, run_calibration
from autogreen.techniques.quantization.schemes import Treatment

CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
LAYERS = (torch.ops.aten.linear.default, *CONVOLUTIONS)


def to_int8(model: nn.Module, treatments: Mapping[str, Treatment], context: Context) -> nn.Module:
    """Return the model as a graph, at the example's batch size, whose named layers compute in int8 once compiled:
    weights symmetric per output channel, activations affine per tensor.

    onnxruntime's kernel of a convolution gives int8: its result (after a rectifier that alone reads it) is rounded too,
    to a range seen in calibration, and whoever reads it reads that.

    Source: PyTorch 2 Export quantization (docs.pytorch.org/ao). Its own quantizer for x86 takes calibrated or dynamic
    ranges in one model, never both; the operators that inductor lowers do not mind.

    Raises:
        RefusedError: the model cannot be exported or quantized, or the calibration data is missing or not finite.
    """
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401 - the lowering to oneDNN
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = export(model, context.example).module()
    told = ", ".join(treatments)
    if absent := set(treatments) - {_layer(node) for node in graph.graph.nodes if node.target in LAYERS}:
        raise RefusedError(
            f"int8 for {', '.join(sorted(absent))} of {type(model).__name__}: no such layer is left in the exported "
            "graph. Give it another scheme."
        )

    def refused(error: Exception) -> RefusedError:
        first = (str(error).strip().splitlines() or [""])[0]
        return RefusedError(
            f"int8 for {told} of {type(model).__name__}: the graph around them cannot be quantized "
            f"({type(error).__name__}: {first}). Give them another scheme."
        )

    try:
        prepared = prepare_pt2e(graph, _quantizer(treatments, results=context.engine == "onnxruntime"))
    except Exception as error:
        raise refused(error) from error
    if any(treatment.scheme == "w8a8_static" for treatment in treatments.values()):
        run_calibration(prepared, context)
    else:
        with torch.no_grad():
            prepared(*context.example[0], **context.example[1])  # weights are observed in passing
    try:
        converted: nn.Module = convert_pt2e(prepared)
    except AutogreenError:
        raise
    except Exception as error:  # a model in float64, for one
        raise refused(error) from error
    _cast_apart(converted)
    _drop_unused(converted)
    return converted


def _layer(node: Any) -> str:
    """Dotted name of the module whose forward made the operation; the same for each call of it."""
    stack = node.meta.get("nn_module_stack")
    return str([*stack.values()][-1][0]) if stack else ""


def _result(node: Any) -> Any:
    """What a convolution gives: itself, or the rectifier that alone reads it."""
    readers = [*node.users]
    rectified = len(readers) == 1 and readers[0].target in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
    return readers[0] if rectified else node


def _quantizer(treatments: Mapping[str, Treatment], *, results: bool) -> Any:
    """results: those of convolutions are rounded as well."""
    from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver, PlaceholderObserver
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

    bits, _ = activation_grid("cpu")
    weights = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=EPS),
    )

    def activations(name: str) -> Any:
        static = treatments[name].scheme == "w8a8_static"
        observer = _observer().with_args(name=name, observer=treatments[name].observer, bits=bits)
        return QuantizationSpec(
            dtype=torch.uint8,
            quant_min=0,
            quant_max=2**bits - 1,
            qscheme=torch.per_tensor_affine,
            is_dynamic=not static,
            observer_or_fake_quant_ctr=observer if static else PlaceholderObserver.with_args(eps=EPS),
        )

    class Named(Quantizer):  # type: ignore[misc]
        def annotate(self, model: Any) -> Any:
            rounded = set()
            for node in model.graph.nodes:
                if node.target in LAYERS and (name := _layer(node)) in treatments:
                    source = node.args[0]
                    seen = SharedQuantizationSpec(source) if source in rounded else activations(name)
                    specs = {source: seen, node.args[1]: weights}
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map=specs, _annotated=True
                    )
                    if results and node.target in CONVOLUTIONS:
                        result = _result(node)
                        about = result.meta.setdefault(
                            "quantization_annotation", QuantizationAnnotation(_annotated=True)
                        )
                        about.output_qspec = activations(name)
                        rounded.add(result)
            return model

        def validate(self, model: Any) -> None:
            pass

    return Named()


def _observer() -> Any:
    """Our observers in the form in which torchao puts them into a graph."""
    from torchao.quantization.pt2e.observer import UniformQuantizationObserverBase

    class Observed(UniformQuantizationObserverBase):  # type: ignore[misc]
        def __init__(self, *, name: str, observer: Any, bits: int, **settings: Any) -> None:
            super().__init__(**settings, eps=EPS)
            self.ranges = Ranges(observer, bits=bits, symmetric=False, name=name)

        def forward(self, x: Tensor) -> Tensor:
            self.ranges.see(x)
            return x

        def calculate_qparams(self) -> tuple[Tensor, Tensor]:
            scale_and_zero: tuple[Tensor, Tensor] = self._calculate_qparams(*self.ranges.range())
            return scale_and_zero

    return Observed


def _cast_apart(graph: Any) -> None:
    """In a model of 16 bits, dequantize to float32 and then cast, in two steps: what inductor lowers to oneDNN."""
    for node in graph.graph.nodes:
        if kind := node.kwargs.get("out_dtype"):
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out_dtype"}
            with graph.graph.inserting_after(node):
                cast = graph.graph.call_function(torch.ops.prims.convert_element_type.default, (node, kind))
            node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
    graph.recompile()


def _drop_unused(graph: nn.Module) -> None:
    """Delete the float32 weights that the int8 ones replaced; exporting would carry them along, dead."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}  # type: ignore[union-attr]
    for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)
