"""The int8 of a quantized graph, written as onnxruntime's integer kernels take it.

    quantize -> dequantize -> convolution -> quantize      QLinearConv, which onnxruntime makes of it when it loads
    quantize -> dequantize -> linear                       one product (`PRODUCT`): int8 x uint8, scaled to float32

Left as they are exported, linear layers would run in float32: onnxruntime fuses a bias and a reshape into them first.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from autogreen.errors import RefusedError

DOMAIN, PRODUCT = "com.microsoft", "MatMulIntegerToFloat"  # onnxruntime's own, documented in its ContribOperators


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What torch's exporter lacks: ranges taken from the values at hand."""
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401 - registers the operators
    from onnxscript import opset21

    operators = torch.ops.quantized_decomposed

    def choose(x: Any, low: int, high: int, eps: float, dtype: Any) -> Any:
        if (low, high) != (0, 255):
            raise NotImplementedError(f"DynamicQuantizeLinear has 8 bits; this processor keeps to {low}..{high}")
        _, scale, zero = opset21.DynamicQuantizeLinear(x)
        return scale, zero

    def quantize(x: Any, scale: Any, zero: Any, low: int, high: int, dtype: Any) -> Any:
        return opset21.QuantizeLinear(x, scale, zero)

    def dequantize(x: Any, scale: Any, zero: Any, low: int, high: int, dtype: Any, **kwargs: Any) -> Any:
        return opset21.DequantizeLinear(x, scale, zero)

    return {
        operators.choose_qparams.tensor: choose,
        operators.quantize_per_tensor.tensor: quantize,
        operators.dequantize_per_tensor.tensor: dequantize,
    }


def to_kernels(model: Any) -> None:
    """Write each int8 linear layer of an ONNX model as one product, in place; what is no longer read goes.

    Raises:
        RefusedError: an int8 convolution whose result is not int8 has no fast kernel in onnxruntime.
    """
    from onnx import helper

    graph = model.graph
    for node in [*graph.node]:
        weight = _dequantized(graph, node.input[1]) if node.op_type in ("Gemm", "MatMul", "Conv") else None
        given = _dequantized(graph, node.input[0]) if weight else None
        if weight is None or given is None:
            continue
        if node.op_type == "Conv":
            _refuse_unrounded(graph, node)
            continue
        bias, last = _bias(graph, node)
        codes, scale, zero = given
        values, scales, _ = weight
        product = helper.make_node(
            PRODUCT,
            [codes, _transposed(graph, values), scale, scales, zero, "", *([bias] if bias else [])],
            [last.output[0]],
            domain=DOMAIN,
        )
        place = [*graph.node].index(last)
        graph.node.remove(last)
        graph.node.insert(place, product)
        if last is not node:
            graph.node.remove(node)
    _take_codes_once(graph)
    _drop_unread(graph)
    if any(node.domain == DOMAIN for node in graph.node):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _maker(graph: Any, name: str) -> Any:
    return next((node for node in graph.node if name in node.output), None)


def _readers(graph: Any, name: str) -> list[Any]:
    return [node for node in graph.node if name in node.input]


def _dequantized(graph: Any, name: str) -> tuple[str, str, str] | None:
    """Codes, scale and zero point of what a DequantizeLinear made, through a transposition of weights; or None."""
    maker = _maker(graph, name)
    if maker is not None and maker.op_type == "Transpose":
        maker = _maker(graph, maker.input[0])
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    return maker.input[0], maker.input[1], maker.input[2]


def _bias(graph: Any, node: Any) -> tuple[str, Any]:
    """Bias of a linear layer, if it has one, and the node that adds it."""
    if node.op_type == "Gemm":
        return (node.input[2] if len(node.input) > 2 else ""), node
    readers = _readers(graph, node.output[0])
    if len(readers) == 1 and readers[0].op_type == "Add":
        other = next((name for name in readers[0].input if name != node.output[0]), "")
        held = next((tensor for tensor in graph.initializer if tensor.name == other), None)
        if held is not None and len(held.dims) == 1:
            return other, readers[0]
    return "", node


def _transposed(graph: Any, name: str) -> str:
    """Codes [outputs, inputs] of a weight as [inputs, outputs]."""
    import numpy as np
    from onnx import numpy_helper

    held = next(tensor for tensor in graph.initializer if tensor.name == name)
    turned = f"{name}.transposed"
    if not any(tensor.name == turned for tensor in graph.initializer):
        array = np.ascontiguousarray(numpy_helper.to_array(held).T)
        graph.initializer.append(numpy_helper.from_array(array, turned))
    return turned


def _refuse_unrounded(graph: Any, node: Any) -> None:
    """A convolution's kernel gives int8: its result, after a rectifier at most, must be rounded and nothing else."""
    name = node.output[0]
    readers = _readers(graph, name)
    if len(readers) == 1 and readers[0].op_type == "Relu":
        readers = _readers(graph, readers[0].output[0])
    if not readers or any(reader.op_type != "QuantizeLinear" for reader in readers):
        raise RefusedError(
            f"the int8 convolution {node.name or name} gives float32 results, and onnxruntime's fast kernel gives int8 "
            "ones: search with engine: onnxruntime, where they are calibrated too."
        )


def _take_codes_once(graph: Any) -> None:
    """DynamicQuantizeLinear gives codes beside their scale; a QuantizeLinear by that scale would make them again."""
    for node in [*graph.node]:
        maker = _maker(graph, node.input[1]) if node.op_type == "QuantizeLinear" else None
        if maker is not None and maker.op_type == "DynamicQuantizeLinear" and maker.input[0] == node.input[0]:
            codes = maker.output[0] = maker.output[0] or f"{node.output[0]}.codes"
            for reader in _readers(graph, node.output[0]):
                reader.input[:] = [codes if name == node.output[0] else name for name in reader.input]


def _drop_unread(graph: Any) -> None:
    wanted: Mapping[str, Any] = {value.name: value for value in graph.output}
    while True:
        read = {*wanted, *(name for node in graph.node for name in node.input)}
        unread = [node for node in graph.node if not read & {*node.output}]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    for tensor in [*graph.initializer]:
        if tensor.name not in read:
            graph.initializer.remove(tensor)
    for value in [*graph.value_info]:
        if value.name not in read:
            graph.value_info.remove(value)
