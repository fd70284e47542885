"""Which matrix kernels one call really runs, and how much memory it takes."""

from collections import Counter
from typing import Any

from torch.profiler import ProfilerActivity, profile

from autogreen.engines import Kernel, Program
from autogreen.tasks import Inputs

# The operators that end in a matrix kernel; their wrappers (aten::conv2d, aten::linear) would count twice.
KERNELS = (
    "onednn::qconv",
    "onednn::qlinear",
    "mkldnn::_convolution_pointwise",
    "mkldnn::_linear_pointwise",
    "mkl::_mkl_linear",
    "aten::mkldnn_convolution",
    "aten::cudnn_convolution",
    "aten::_slow_conv2d_forward",
    "aten::_conv_depthwise2d",
    "aten::addmm",
    "aten::mm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_mm",
    "aten::_weight_int8pack_mm",
    "aten::_weight_int4pack_mm",
    "aten::_int_mm",
)
PRECISIONS: dict[str, Any] = {"c10::BFloat16": "bfloat16", "c10::Half": "float16"}


def trace(program: Program, inputs: Inputs) -> tuple[tuple[Kernel, ...], int]:
    """Profile one call of a warm program, launched kernel by kernel: its matrix kernels, and the peak of what the call
    allocates (bytes)."""
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, record_shapes=True, profile_memory=True) as recorded:
        program.launch(*inputs)
    events: Any = recorded.profiler.kineto_results.events()  # types of inputs, in any release
    seen = Counter((event.name(), _precision(event)) for event in events if event.name().startswith(KERNELS))
    kernels = tuple(
        Kernel(name=name, precision=precision, calls=calls) for (name, precision), calls in sorted(seen.items())
    )
    return kernels, _peak_bytes(events)


def _precision(event: Any) -> Any:
    if event.name().startswith("onednn::q") or event.name().endswith("_int_mm"):
        return "int8"
    if event.name().endswith("_scaled_mm"):
        return "float8"
    first = next((kind for kind in event.dtypes() if kind), "float")
    return PRECISIONS.get(first, "float32")


def _peak_bytes(events: Any) -> int:
    held = peak = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
