"""The schemes by name: their bits, and the real kernel that runs each one on which device, layer and batch.

    scheme       weights                        activations                   processor (x86)       NVIDIA GPU
    fp16         float16                        float16                       AVX-512 FP16, AMX     all
    bf16         bfloat16                       bfloat16                      AVX-512 BF16, AMX     8.0 and later
    fp8          float8 e4m3, a scale a channel float8 e4m3, a scale a row    -                     linear; 8.9
    w8a8         int8, a scale a channel        int8, ranges of the call      linear, compiled      linear; 8.0, 17 rows
    w8a8_static  int8, a scale a channel        int8, calibrated ranges       all, compiled         linear; 8.0, 17 rows
    w8a16        int8, a scale a channel        16 bits                       linear                linear
    w4a16        int4, groups of 128 inputs     bfloat16                      -                     linear; 8.0

w8a8 = 8-bit weights and 8-bit activations. A scheme without a road to a real kernel is refused: simulated low precision
saves nothing and is never scored.

On x86 the inductor and aot engines turn quantize -> dequantize -> product into one oneDNN operator (`onednn::qlinear`,
`onednn::qconv`), for ranges that are calibrated and, of linear layers, for ranges taken from the values at hand; both
may stand in one model. onnxruntime has kernels of its own for the same graph; that of convolutions also gives int8, so
their results are rounded there, to calibrated ranges. The transformers engine has torchao's layers: int8 and float8
with ranges of the call. The eager engine interprets the three steps: simulated. AVX2 is enough for int8 products; with
VNNI or AMX they are summed in 32 bits at once, without they keep to 7 bits of activations. `_weight_int8pack_mm` widens
both factors and multiplies in float32, in every engine of PyTorch's operators; on bfloat16 activations it is vectorised
(AVX2, AVX-512), reads 16 inputs at a time and beyond the end of a row that 16 does not divide: such layers are refused.
There it needs none of the instructions for bfloat16.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autogreen.engines import Precision, Product
from autogreen.errors import RefusedError
from autogreen.techniques import Target, Unit

if TYPE_CHECKING:
    from autogreen.techniques.trace import Layer

COMPILED = ("inductor", "aot")
OPERATORS = ("eager", *COMPILED)  # engines that run a graph of PyTorch's operators
TORCHAO = "transformers"  # the engine whose layers are torchao's own
Observer = Literal["minmax", "percentile", "mse"]
OBSERVER: Observer = "mse"  # where a rule names none


@dataclass(frozen=True, kw_only=True)
class Road:
    """One real kernel. kernels: how its operator's name begins in a profile. precision: the data type in which it
    multiplies. engines: where it is real; by default in all that run a graph of PyTorch's operators. kinds: of layers.
    rows: the matrix product has at least so many. inputs, width: of the layer, are multiples of these. compiled_width:
    where it is compiled, at least. compute_capability: of the GPU, at least.
    """

    device: Literal["cpu", "cuda"]
    kernels: tuple[str, ...]
    precision: Precision
    kinds: tuple[str, ...] = ("linear",)
    engines: tuple[str, ...] = OPERATORS
    rows: int = 1
    inputs: int = 1
    width: int = 1
    compiled_width: int = 1
    compute_capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """weights, activations: bits and granularity in words. observed: what the rule's observer chooses ranges for;
    those of activations are read from the calibration split. lossy: rounding is worth learning to live with
    (quantization-aware training)."""

    name: str
    weight_bits: int
    activation_bits: int
    weights: str
    activations: str
    roads: tuple[Road, ...] = ()
    observed: Literal["", "activations", "weights"] = ""
    lossy: bool = False


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is done to a layer: its scheme; how value ranges are chosen, where the scheme leaves a choice (otherwise
    `minmax`); whether training rounds as the scheme does.

    In an effect it is one word, without what is as usual: `bf16`, `w8a8_static`, `w8a8_static+percentile`, `w4a16+qat`.
    """

    scheme: str
    observer: Observer = OBSERVER
    qat: bool = False

    def __str__(self) -> str:
        scheme = SCHEMES[self.scheme]
        observer = f"+{self.observer}" if scheme.observed and self.observer != OBSERVER else ""
        return f"{self.scheme}{observer}{'+qat' if self.qat and scheme.lossy else ''}"

    @property
    def weight_observer(self) -> Observer:
        """How the range of a weight is chosen: where activations are observed it is what it holds."""
        return self.observer if SCHEMES[self.scheme].observed == "weights" else "minmax"

    @classmethod
    def read(cls, word: str) -> "Treatment":
        """The inverse of `str`."""
        scheme, *said = word.split("+")
        usual: Observer = OBSERVER if SCHEMES[scheme].observed else "minmax"
        observers: dict[str, Observer] = {"minmax": "minmax", "percentile": "percentile", "mse": "mse"}
        observer = next((observers[part] for part in said if part in observers), usual)
        return cls(scheme=scheme, observer=observer, qat="qat" in said)


def schemes(effect: Mapping[str, str]) -> dict[str, str]:
    """The scheme of each layer of an effect."""
    return {layer: Treatment.read(word).scheme for layer, word in effect.items()}


GROUP = 128  # inputs that share a scale in w4a16
DTYPES: Mapping[str, Precision] = {"bf16": "bfloat16", "fp16": "float16"}  # of the names that policies give them
_WEIGHT_ONLY_INPUTS: tuple[tuple[Literal["cpu", "cuda"], int], ...] = (("cpu", 16), ("cuda", 1))
_MATRIX = ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear", "mkldnn::_linear_pointwise")
_CONVOLUTION = (
    "mkldnn::_convolution_pointwise",
    "aten::mkldnn_convolution",
    "aten::cudnn_convolution",
    "aten::convolution",  # as an AOTInductor package calls either
)
_ONEDNN = ("onednn::qlinear", "onednn::qconv")  # the same for calibrated and for dynamic ranges
_ONNXRUNTIME = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearConv")
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
                    engines=(*OPERATORS, TORCHAO),
                    inputs=16,
                    width=16,
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
                    engines=(*OPERATORS, TORCHAO),
                    rows=17,  # cuBLASLt's int8 product wants more than 16
                    inputs=8,
                    width=8,
                    compute_capability=(8, 0),
                ),
                Road(device="cpu", kernels=_ONEDNN, precision="int8", engines=COMPILED),
                Road(device="cpu", kernels=_ONNXRUNTIME, precision="int8", engines=("onnxruntime",)),
                Road(device="cpu", kernels=("aten::_int_mm",), precision="int8", engines=(TORCHAO,)),
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
                    inputs=8,
                    width=8,
                    compute_capability=(8, 0),
                ),
                *(
                    Road(device="cpu", kernels=kernels, precision="int8", kinds=_BOTH, engines=engines)
                    for kernels, engines in ((_ONEDNN, COMPILED), (_ONNXRUNTIME, ("onnxruntime",)))
                ),
            ),
            observed="activations",
            lossy=True,
        ),
        Scheme(
            name="w8a16",
            weight_bits=8,
            activation_bits=16,
            weights="int8 symmetric, a scale per output channel",
            activations="bfloat16",
            roads=tuple(
                Road(
                    device=device,
                    kernels=("aten::_weight_int8pack_mm",),
                    precision="float32",
                    inputs=inputs,
                    compiled_width=9,  # up to 8 scales are written into the code, where the operator cannot read them
                )
                for device, inputs in _WEIGHT_ONLY_INPUTS
            ),
            observed="weights",
            lossy=True,
        ),
        Scheme(
            name="w4a16",
            weight_bits=4,
            activation_bits=16,
            weights=f"int4, a scale and zero point for each group of {GROUP} inputs of an output channel",
            activations="bfloat16",
            roads=(
                Road(
                    device="cuda",
                    kernels=("aten::_weight_int4pack_mm",),
                    precision="bfloat16",
                    inputs=GROUP,
                    width=8,
                    compute_capability=(8, 0),
                ),
            ),
            observed="weights",
            lossy=True,
        ),
    )
}


def road_of(scheme: str, device: str, engine: str = "inductor") -> Road | None:
    """The scheme's road on this kind of device in an engine."""
    kind = device.partition(":")[0]
    return next((road for road in SCHEMES[scheme].roads if road.device == kind and engine in road.engines), None)


def precisions(effect: Mapping[str, str], device: str, engine: str = "inductor") -> dict[str, Precision]:
    """The data type that each layer of an effect multiplies in."""
    roads = {layer: road_of(scheme, device, engine) for layer, scheme in schemes(effect).items()}
    return {layer: road.precision for layer, road in roads.items() if road is not None}


def narrowest_bytes(effect: Mapping[str, str]) -> float | None:
    """Bytes of one weight of the layer that has the fewest; None where all are as trained."""
    return min((SCHEMES[scheme].weight_bits / 8 for scheme in schemes(effect).values()), default=None)


def missing_kernel(scheme: str, *, device: str, engine: str) -> str | None:
    """Why this device and engine have no real kernel for the scheme in any layer, or None."""
    if scheme == "none":
        return None
    kind = "GPU" if device.startswith("cuda") else "processor"
    there = [road for road in SCHEMES[scheme].roads if road.device == device.partition(":")[0]]
    if not there:
        return f"no kernel computes it on a {kind}; it would be simulated"
    road = road_of(scheme, device, engine) or there[0]
    if reason := missing_instructions(road.precision, device):
        return reason
    if device.startswith("cuda"):
        import torch

        found = torch.cuda.get_device_capability(device)
        if found < road.compute_capability:
            wanted = ".".join(map(str, road.compute_capability))
            return f"{road.kernels[0]} wants compute capability {wanted}, this GPU has {'.'.join(map(str, found))}"
    if engine not in road.engines:
        lost = "it runs as dequantize, float32, quantize" if engine in OPERATORS else "it has no kernel for it"
        return f"the {engine!r} engine on a {kind}: {lost}; that would be simulated; use {road.engines[0]}"
    return None


def misfit(scheme: str, unit: Unit, target: Target) -> str | None:
    """Why the scheme's kernel cannot run this layer at this batch, or None."""
    road = None if scheme == "none" else road_of(scheme, target.device, target.engine)
    if road is None:
        return None
    if unit.kind not in road.kinds:
        static = "; w8a8_static reaches convolutions" if scheme == "w8a8" and target.device == "cpu" else ""
        return f"{road.kernels[0]} computes linear layers only, and this is a convolution{static}"
    if road.precision == "int8" and target.device == "cpu" and unit.calls > 1:
        return "called several times a pass; int8 kernels want a weight that is read once, it would run simulated"
    if unit.kind == "linear" and (unit.inputs % road.inputs or unit.width % road.width):
        wanted = f"inputs that {road.inputs} divides" + (f" and outputs that {road.width} does" * (road.width > 1))
        return f"{road.kernels[0]} wants {wanted}, the layer has {unit.inputs} and {unit.width}"
    if target.engine in COMPILED and unit.width < road.compiled_width:
        return f"inductor cannot compile {road.kernels[0]} for fewer than {road.compiled_width} outputs ({unit.width})"
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


def check_kernels(
    effect: Mapping[str, str],
    layers: Mapping[str, "Layer"],
    products: Sequence[Product],
    device: str,
    engine: str = "inductor",
) -> dict[str, str]:
    """Compare what a policy says (the treatment of each layer) with the matrix products that a profile saw in one call.

    What counts is the work: compilers may run several layers in one kernel.

    Args:
        layers: those of the model before it was lowered, at the batch that was profiled.

    Returns:
        For each layer the kernel that multiplied as much as the layer does: `onednn::qconv_pointwise (int8)`. Layers
        of one size and scheme cannot be told apart. One that has no kernel of its own is `not seen alone`: it ran in
        one with others, or in compiled code that a profile cannot name.

    Raises:
        RefusedError: fewer multiply-accumulates ran in low-precision kernels than the policy's layers need: some ran
            simulated.
    """
    named = schemes(effect)
    roads = {layer: road for layer, scheme in named.items() if (road := road_of(scheme, device, engine)) is not None}
    for road in {(road.kernels, road.precision): road for road in roads.values()}.values():
        planned = [layers[name] for name, other in roads.items() if _same(other, road) and name in layers]
        ran = [product for product in products if _runs(road, product)]
        wanted = sum(layer.calls * layer.macs for layer in planned)
        if (seen := sum(product.macs for product in ran)) < wanted:
            calls = sum(layer.calls for layer in planned)
            told = Counter(f"{product.name} ({product.precision})" for product in products)
            raise RefusedError(
                f"{calls} layer calls should run in {road.precision} ({road.kernels[0]}), a profile of the measured "
                f"program shows {len(ran)}, with {seen / wanted:.0%} of their multiply-accumulates: the others are "
                "simulated and would not save what they claim (or mode max-autotune put them into generated code, "
                "which a profile cannot name). Kernels seen: "
                f"{', '.join(f'{count} x {name}' for name, count in told.items()) or 'none'}."
            )
    left = Counter(products)
    return {name: _taken(left, layers[name], roads.get(name)) for name in sorted(layers, key=lambda n: n not in roads)}


def _same(one: Road, other: Road) -> bool:
    return (one.kernels, one.precision) == (other.kernels, other.precision)


def _runs(road: Road, product: Product) -> bool:
    return product.precision == road.precision and product.name.startswith(road.kernels)


def _taken(left: Counter[Product], layer: "Layer", road: Road | None) -> str:
    """The kernel of a layer, whose runs are then no longer left for others."""
    for product in left:
        fits = product.macs == layer.macs and (road is None or _runs(road, product))
        if fits and left[product] >= layer.calls:
            left[product] -= layer.calls
            return f"{product.name} ({product.precision})"
    return "not seen alone"
