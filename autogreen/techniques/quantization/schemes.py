"""The schemes by name: their bits, and the real kernel that runs each one on which device, layer and batch.

    w8a8 = 8-bit weights and 8-bit activations; a16 = activations in the model's own 16-bit type (bfloat16)

A scheme without a road to a real kernel is refused: simulated low precision saves nothing and is never scored.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autogreen.errors import RefusedError
from autogreen.techniques import Target, Unit

if TYPE_CHECKING:
    from autogreen.engines import Kernel

Precision = Literal["int8", "float8", "bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Road:
    """One real kernel. kernels: how its operator's name begins in a profile. precision: the data type in which it
    multiplies. engines: where it is real; everywhere by default. kinds: of layers. rows: the matrix product has at
    least so many. multiple: inputs and outputs of the layer are multiples of it. dense: no grouped convolutions.
    compute_capability: of the GPU, at least.
    """

    device: Literal["cpu", "cuda"]
    kernels: tuple[str, ...]
    precision: Precision
    kinds: tuple[str, ...] = ("linear",)
    engines: tuple[str, ...] = ()
    rows: int = 1
    multiple: int = 1
    dense: bool = False
    compute_capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """weights, activations: bits and granularity in words. calibrated: value ranges of activations are read from the
    calibration split. lossy: rounding is worth learning to live with (quantization-aware training)."""

    name: str
    weight_bits: int
    activation_bits: int
    weights: str
    activations: str
    roads: tuple[Road, ...] = ()
    calibrated: bool = False
    lossy: bool = False


_MATRIX = ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear", "mkldnn::_linear_pointwise")
_CONVOLUTION = ("mkldnn::_convolution_pointwise", "aten::mkldnn_convolution", "aten::cudnn_convolution")
_BOTH = ("conv", "linear")


def _cast(precision: Precision) -> tuple[Road, ...]:
    kernels = (*_MATRIX, *_CONVOLUTION, "aten::_conv_depthwise2d")
    return tuple(Road(device=device, kernels=kernels, precision=precision, kinds=_BOTH) for device in ("cpu", "cuda"))


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="none", weight_bits=0, activation_bits=0, weights="as trained", activations="as trained"),
        Scheme(
            name="fp16",
            weight_bits=16,
            activation_bits=16,
            weights="float16",
            activations="float16, cast at the layer's edges",
            roads=_cast("float16"),
        ),
        Scheme(
            name="bf16",
            weight_bits=16,
            activation_bits=16,
            weights="bfloat16",
            activations="bfloat16, cast at the layer's edges",
            roads=_cast("bfloat16"),
        ),
        Scheme(
            name="fp8",
            weight_bits=8,
            activation_bits=8,
            weights="float8 e4m3, a scale per output channel",
            activations="float8 e4m3, a scale per row, from the row itself",
            roads=(
                Road(
                    device="cuda",
                    kernels=("aten::_scaled_mm",),
                    precision="float8",
                    multiple=16,
                    compute_capability=(8, 9),
                ),
            ),
            lossy=True,
        ),
        Scheme(
            name="w8a8",
            weight_bits=8,
            activation_bits=8,
            weights="int8 symmetric, a scale per output channel",
            activations="int8, ranges from the values at hand",
            roads=(
                Road(
                    device="cuda",
                    kernels=("aten::_int_mm",),
                    precision="int8",
                    rows=17,  # cuBLASLt's int8 product wants more than 16
                    multiple=8,
                    compute_capability=(8, 0),
                ),
                Road(device="cpu", kernels=("onednn::qlinear",), precision="int8", engines=("inductor",)),
            ),
            lossy=True,
        ),
        Scheme(
            name="w8a8_static",
            weight_bits=8,
            activation_bits=8,
            weights="int8 symmetric, a scale per output channel",
            activations="int8, one scale per tensor (and zero point on processors), from calibration",
            roads=(
                Road(
                    device="cuda",
                    kernels=("aten::_int_mm",),
                    precision="int8",
                    rows=17,
                    multiple=8,
                    compute_capability=(8, 0),
                ),
                Road(
                    device="cpu",
                    kernels=("onednn::qconv", "onednn::qlinear"),
                    precision="int8",
                    kinds=_BOTH,
                    engines=("inductor",),
                ),
            ),
            calibrated=True,
            lossy=True,
        ),
        Scheme(
            name="w8a16",
            weight_bits=8,
            activation_bits=16,
            weights="int8 symmetric, a scale per output channel",
            activations="as trained; products in bfloat16",
            roads=(
                Road(device="cuda", kernels=("aten::_weight_int8pack_mm",), precision="bfloat16"),
                Road(device="cpu", kernels=("aten::_weight_int8pack_mm",), precision="float32"),
            ),
            lossy=True,
        ),
        Scheme(
            name="w4a16",
            weight_bits=4,
            activation_bits=16,
            weights="int4, a scale and zero point for each group of 128 inputs of an output channel",
            activations="bfloat16",
            roads=(
                Road(
                    device="cuda",
                    kernels=("aten::_weight_int4pack_mm",),
                    precision="bfloat16",
                    multiple=128,  # groups of 128 inputs; tiles of 8 outputs
                    compute_capability=(8, 0),
                ),
            ),
            lossy=True,
        ),
    )
}


def road_of(scheme: str, device: str) -> Road | None:
    """The scheme's road on this kind of device."""
    kind = device.partition(":")[0]
    return next((road for road in SCHEMES[scheme].roads if road.device == kind), None)


def precisions(schemes: Mapping[str, str], device: str) -> dict[str, Precision]:
    """The data type that each layer multiplies in, by the scheme of each."""
    roads = {layer: road_of(scheme, device) for layer, scheme in schemes.items()}
    return {layer: road.precision for layer, road in roads.items() if road is not None}


def narrowest_bytes(schemes: Mapping[str, str]) -> float | None:
    """Bytes of one weight of the layer that has the fewest; None where all are as trained."""
    return min((SCHEMES[scheme].weight_bits / 8 for scheme in schemes.values()), default=None)


def missing_kernel(scheme: str, *, device: str, engine: str) -> str | None:
    """Why this device and engine have no real kernel for the scheme in any layer, or None."""
    if scheme == "none":
        return None
    road = road_of(scheme, device)
    if road is None:
        kind = "GPU" if device.startswith("cuda") else "processor"
        return f"no kernel computes it on a {kind}; it would be simulated"
    if reason := missing_instructions(road.precision, device):
        return reason
    if device.startswith("cuda"):
        import torch

        found = torch.cuda.get_device_capability(device)
        if found < road.compute_capability:
            wanted = ".".join(map(str, road.compute_capability))
            return f"{road.kernels[0]} wants compute capability {wanted}, this GPU has {'.'.join(map(str, found))}"
    if road.engines and engine not in road.engines:
        return f"the {engine!r} engine runs it as dequantize, float32, quantize: simulated; use {road.engines[0]}"
    return None


def misfit(scheme: str, unit: Unit, target: Target) -> str | None:
    """Why the scheme's kernel cannot run this layer at this batch, or None."""
    road = None if scheme == "none" else road_of(scheme, target.device)
    if road is None:
        return None
    if unit.kind not in road.kinds:
        return f"{road.kernels[0]} computes {' and '.join(road.kinds)} layers, not {unit.kind}"
    if road.precision == "int8" and target.device == "cpu" and unit.calls > 1:
        return "called several times a pass; int8 kernels want a weight that is read once, it would run simulated"
    if unit.kind == "linear" and (unit.inputs % road.multiple or unit.width % min(road.multiple, 16)):
        return f"{road.kernels[0]} wants sizes that {road.multiple} divides, the layer has {unit.inputs} x {unit.width}"
    if target.batch is not None and (rows := unit.rows * target.batch) < road.rows:
        return f"{road.kernels[0]} wants {road.rows} rows or more, a batch of {target.batch} gives {rows}"
    return None


def missing_instructions(dtype: str, device: str) -> str | None:
    """Why a device multiplies matrices of a data type ("bfloat16", "float16", "float8", "int8", else: always) by
    emulation only, or None."""
    import torch

    if device.startswith("cuda"):
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "this GPU computes no bfloat16"
        if dtype == "float8" and torch.cuda.get_device_capability(device) < (8, 9):
            return "this GPU computes no float8"
        return None
    if dtype == "float8":
        return "no kernel multiplies float8 on a processor"
    needs = {
        "bfloat16": ("_is_mkldnn_bf16_supported", "AVX-512 BF16 or AMX"),
        "float16": ("_is_mkldnn_fp16_supported", "AVX-512 FP16 or AMX FP16"),
    }
    if dtype in needs:
        ask, which = needs[dtype]
        if not torch._C._has_mkldnn or not getattr(torch.ops.mkldnn, ask)():
            return f"this processor has no {dtype} instructions ({which}); it would be emulated"
    if dtype == "int8" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return "this processor has no AVX2 instructions for int8"
    return None


def check_kernels(schemes: Mapping[str, str], units: Sequence[Unit], kernels: Iterable["Kernel"], device: str) -> None:
    """Compare what a policy says (the scheme of each layer) with the kernels that a profile saw in one call.

    Raises:
        RefusedError: fewer low-precision kernels ran than the policy's layers need: some ran simulated.
    """
    calls = {member: unit.calls for unit in units for member in unit.members}
    seen = tuple(kernels)
    needed: Counter[tuple[tuple[str, ...], Precision]] = Counter()  # by kernel, which schemes may share
    for layer, scheme in schemes.items():
        if (road := road_of(scheme, device)) is not None:
            needed[road.kernels, road.precision] += calls[layer]
    for (names, precision), wanted in needed.items():
        ran = sum(kernel.calls for kernel in seen if kernel.precision == precision and kernel.name.startswith(names))
        if ran < wanted:
            raise RefusedError(
                f"{wanted} layer calls should run in {precision}, a profile of the measured program shows {ran}: the "
                "others are simulated and would not save what they claim. Kernels seen: "
                f"{', '.join(f'{kernel.calls} x {kernel.name} ({kernel.precision})' for kernel in seen) or 'none'}."
            )
