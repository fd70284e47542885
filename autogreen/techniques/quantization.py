"""Per-layer precision, with real low-precision kernels only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from autogreen.errors import RefusedError
from autogreen.techniques import Context, Unit, assign

if TYPE_CHECKING:
    from torch import nn

    from autogreen.engines import Kernel
    from autogreen.tasks import Inputs

Scheme = Literal["none", "bf16", "w8a8"]
RUNS_IN = {"w8a8": "int8", "bf16": "bfloat16"}  # the data type of a lowered layer's kernel


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Give a layer (convolution or linear) a precision:

        none  float32, as it was trained
        bf16  weights and activations in bfloat16; casts stand at the layer's edges and are paid for
        w8a8  int8 weights (symmetric, a scale per output channel) and uint8 activations (affine, a scale per tensor,
              from calibration); int8 matrix kernels; x86 processors under the inductor engine

    On x86 processors without VNNI instructions activations use 7 of the 8 bits: two products of 8 bits overflow the
    16-bit sum of `vpmaddubsw` there, silently.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    CVPR 2018; PyTorch 2 Export quantization with the X86 inductor backend (docs.pytorch.org/ao).
    """

    ordered: ClassVar[bool] = True

    target: str
    scheme: Scheme = "none"

    @classmethod
    def units(cls, model: "nn.Module", example: "Inputs") -> tuple[Unit, ...]:
        from torch import nn

        from autogreen.techniques.trace import block_of, executed_layers, fed_together

        calls, peers = executed_layers(model, example), fed_together(model, example)
        return tuple(
            Unit(
                name=name,
                members=(name,),
                kind="conv" if isinstance(module, nn.Conv2d) else "linear",
                width=module.out_channels if isinstance(module, nn.Conv2d) else module.out_features,
                calls=calls[name],
                block=block_of(name),
                peers=peers[name],
            )
            for name, module in model.named_modules()
            if name in calls and isinstance(module, nn.Conv2d | nn.Linear)
        )

    @classmethod
    def effect(cls, settings: Sequence["Quantization"], units: Sequence[Unit]) -> dict[str, str]:
        assigned = assign(settings, units, "quantization")
        return {unit.name: rule.scheme for unit, rule in assigned if rule.scheme != "none"}

    @classmethod
    def refusal(cls, effect: dict[str, str], units: Sequence[Unit], *, device: str, engine: str) -> str | None:
        twice = [unit.name for unit in units if effect.get(unit.name) == "w8a8" and unit.calls > 1]
        if twice:
            return (
                f"scheme 'w8a8' for {', '.join(twice)}: called several times a pass; int8 kernels want a weight that "
                "is read once, it would run simulated"
            )
        for scheme in sorted(set(effect.values())):
            if reason := missing_kernel(scheme, device=device, engine=engine):
                layers = [name for name, chosen in effect.items() if chosen == scheme]
                return f"scheme {scheme!r} for {', '.join(layers)}: {reason}"
        return None

    @classmethod
    def apply(cls, effect: dict[str, str], model: "nn.Module", context: Context) -> "nn.Module":
        from autogreen.techniques.lowering import fold_batch_norm, to_bf16, to_int8

        if not effect:
            return model
        fold_batch_norm(model, context.example)
        to_bf16(model, [name for name, scheme in effect.items() if scheme == "bf16"])
        int8 = [name for name, scheme in effect.items() if scheme == "w8a8"]
        return to_int8(model, int8, context) if int8 else model


def missing_kernel(scheme: str, *, device: str, engine: str) -> str | None:
    """Why this device and engine have no real kernel for the scheme, or None."""
    if scheme == "bf16":
        return missing_instructions("bfloat16", device)
    if scheme == "w8a8":
        if device.startswith("cuda"):
            return "its int8 kernels are those of x86 processors; there is no road to int8 on a GPU here yet"
        if reason := missing_instructions("int8", device):
            return reason
        if engine != "inductor":
            return f"the {engine!r} engine runs it as dequantize, float32, quantize: simulated; use inductor"
    return None


def missing_instructions(dtype: str, device: str) -> str | None:
    """Why a device multiplies matrices of a data type ("bfloat16", "float16", "int8", else: always) by emulation only,
    or None."""
    import torch

    if device.startswith("cuda"):
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "this GPU computes no bfloat16"
        return None
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


def check_kernels(effect: dict[str, str], units: Sequence[Unit], kernels: Sequence["Kernel"]) -> None:
    """Compare what a policy says with the kernels that a profile saw in one call.

    Raises:
        RefusedError: fewer low-precision kernels ran than the policy's layers need: some ran simulated.
    """
    calls = {unit.name: unit.calls for unit in units}
    for scheme, ran in RUNS_IN.items():
        needed = sum(calls[name] for name, chosen in effect.items() if chosen == scheme)
        seen = sum(kernel.calls for kernel in kernels if kernel.precision == ran)
        if seen < needed:
            raise RefusedError(
                f"{needed} layer calls should run in {ran}, a profile of the measured program shows {seen}: the "
                f"others are simulated and would not save what they claim. Kernels seen: "
                f"{', '.join(f'{kernel.calls} x {kernel.name} ({kernel.precision})' for kernel in kernels) or 'none'}."
            )
