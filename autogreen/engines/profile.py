"""Which matrix kernels one call really runs, what they multiply, and how much memory the call takes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from autogreen.engines import Kernel, Precision, Product, Program
from autogreen.tasks import Inputs

# The operators that end in a matrix kernel (their wrappers, aten::conv2d and aten::linear, would count twice), and the
# arguments that tell how much is multiplied. A matrix product: left [..., k], right, and the axis of right that is the
# width of the result. A convolution: input [n, channels, ...], weight [out, in / groups, ...].
MATRIX = {
    "onednn::qlinear": ("qx", "qw", -1),
    "mkldnn::_linear_pointwise": ("X", "W", 0),
    "mkl::_mkl_linear": ("X", "ORI_W", 0),
    "aten::addmm": ("mat1", "mat2", -1),
    "aten::mm": ("self", "mat2", -1),
    "aten::bmm": ("self", "mat2", -1),
    "aten::baddbmm": ("batch1", "batch2", -1),
    "aten::_scaled_mm": ("self", "mat2", -1),
    "aten::_int_mm": ("self", "mat2", -1),
    "aten::_weight_int8pack_mm": ("self", "mat2", 0),
    "aten::_weight_int4pack_mm": ("self", "qScaleAndZeros", 1),
}
CONVOLUTION = {
    "onednn::qconv": ("qx", "qw"),
    "mkldnn::_convolution_pointwise": ("X", "W"),
    "aten::mkldnn_convolution": ("self", "weight"),
    "aten::cudnn_convolution": ("self", "weight"),
    "aten::_slow_conv2d_forward": ("self", "weight"),
    "aten::_conv_depthwise2d": ("self", "weight"),
}
ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
)
SPARSE = ("aten::_cslt_sparse_mm",)  # its packed operand does not tell its size
KERNELS = (*MATRIX, *CONVOLUTION, *ATTENTION, *SPARSE)
PRECISIONS: dict[str, Precision] = {"c10::BFloat16": "bfloat16", "c10::Half": "float16"}


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Of one call. products: its matrix products, in the order in which they ran. peak_bytes: of what it allocates;
    None where the engine does not tell. communication: share of the call's time, from 0 to 1, in collectives and in
    waiting for other ranks; None where there are none."""

    products: tuple[Product, ...]
    peak_bytes: int | None
    communication: float | None = None

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The products, counted by name and precision."""
        seen = Counter((product.name, product.precision) for product in self.products)
        return tuple(
            Kernel(name=name, precision=precision, calls=calls) for (name, precision), calls in sorted(seen.items())
        )

    @property
    def macs(self) -> dict[Precision, int]:
        """Multiply-accumulates by the data type that they ran in."""
        found: Counter[Precision] = Counter()
        for product in self.products:
            found[product.precision] += product.macs
        return dict(found)


def operators(program: Program, inputs: Inputs) -> Trace:
    """For engines whose kernels are operators that PyTorch's profiler sees."""
    events = recorded(program, inputs)
    products = []
    for event in events:
        if (name := event.name()).startswith(KERNELS):
            shapes, values = _arguments(event)
            dtype = next((kind for kind in event.dtypes() if kind), "float")
            kind = precision(name, PRECISIONS.get(dtype, "float32"))
            products.append(Product(name=name, precision=kind, macs=macs(name, shapes, values)))
    return Trace(products=tuple(products), peak_bytes=peak_bytes(events))


def recorded(program: Program, inputs: Inputs) -> Any:
    """The profiler's events of one call, with types of inputs, in any release."""
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, record_shapes=True, profile_memory=True) as found:
        program.launch(*inputs)
    return found.profiler.kineto_results.events()


def precision(name: str, first: Precision) -> Precision:
    """What an operator multiplies in. first: the type of its first argument."""
    if name.startswith("onednn::q") or name.endswith("_int_mm"):
        return "int8"
    if name.endswith("_scaled_mm"):
        return "float8"
    if name.endswith("_weight_int8pack_mm"):
        return "float32"  # it widens both factors, on either device
    return first


def macs(name: str, shapes: Mapping[str, Sequence[int]], values: Mapping[str, Any]) -> int:
    """Multiply-accumulates by the shapes of an operator's arguments, by name; 0 where they are not told."""
    try:
        if name.startswith(ATTENTION):
            query, key, value = shapes["query"], shapes["key"], shapes["value"]
            return math.prod(query) * key[-2] + math.prod(query[:-1]) * key[-2] * value[-1]
        if role := next((role for start, role in MATRIX.items() if name.startswith(start)), None):
            left, right, axis = role
            return math.prod(shapes[left]) * shapes[right][axis]
        given, weight = next(role for start, role in CONVOLUTION.items() if name.startswith(start))
        placed = _placed(shapes[given][2:], shapes[weight][2:], values)
        return shapes[given][0] * math.prod(placed) * math.prod(shapes[weight])
    except (KeyError, IndexError):
        return 0


def _placed(sides: Sequence[int], kernel: Sequence[int], values: Mapping[str, Any]) -> list[int]:
    """The sides of what a convolution makes."""

    def each(name: str, missing: int) -> list[int]:
        said = values.get(name) or [missing]
        return said if len(said) == len(sides) else [said[0]] * len(sides)

    stride, padding, dilation = each("stride", 1), each("padding", 0), each("dilation", 1)
    return [
        (side + 2 * pad - apart * (width - 1) - 1) // step + 1
        for side, width, step, pad, apart in zip(sides, kernel, stride, padding, dilation, strict=True)
    ]


def _arguments(event: Any) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Shapes and values of an operator's arguments by name; overloads are told apart by how many they take."""
    shapes, values = event.shapes(), event.concrete_inputs()
    for schema in torch._C._jit_get_schemas_for_operator(event.name()):
        names = [argument.name for argument in schema.arguments]
        if len(names) == len(shapes):
            return dict(zip(names, shapes, strict=True)), dict(zip(names, values, strict=False))
    return {}, {}


def peak_bytes(events: Any) -> int:
    """The most that one call holds at once, of what it allocates."""
    held, peak = 0, 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
