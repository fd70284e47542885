"""Per-layer precision, with real low-precision kernels only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from autogreen.errors import ConfigError
from autogreen.registry import nearest
from autogreen.techniques import Context, Target, Technique, Unit, assign
from autogreen.techniques.quantization.schemes import SCHEMES, misfit, missing_kernel

if TYPE_CHECKING:
    from torch import nn

    from autogreen.tasks import Inputs


@dataclass(frozen=True, kw_only=True)
class Quantization(Technique):
    """Give a layer (convolution or linear) a precision by name; `schemes.SCHEMES` states bits, granularity and the
    kernel of each:

        none         as trained
        fp16, bf16   weights and activations in 16 bits; casts stand at the layer's edges and are paid for
        fp8          float8 e4m3, NVIDIA GPUs
        w8a8         int8, activations scaled by the values at hand; linear layers
        w8a8_static  int8, activations scaled by calibration; on processors convolutions too
        w8a16        int8 weights only
        w4a16        int4 weights only, NVIDIA GPUs

    Linear layers that are fed by one tensor (q, k and v; gate and up) are fused by servers and share a scheme: they are
    one unit.

    On x86 processors without VNNI instructions activations use 7 of the 8 bits: two products of 8 bits overflow the
    16-bit sum of `vpmaddubsw` there, silently.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    CVPR 2018; PyTorch 2 Export quantization with the X86 inductor backend (docs.pytorch.org/ao); Micikevicius et al.,
    FP8 Formats for Deep Learning, 2022.
    """

    ordered: ClassVar[bool] = True

    target: str
    scheme: str = "none"

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            known = ", ".join(SCHEMES)
            raise ConfigError(f"unknown scheme {self.scheme!r}.{nearest(self.scheme, SCHEMES)} Known: {known}")

    @classmethod
    def units(cls, model: "nn.Module", example: "Inputs") -> tuple[Unit, ...]:
        from torch import nn

        from autogreen.techniques.trace import block_of, layers

        traced = layers(model, example)
        fused: dict[str, list[str]] = {}
        for name, layer in traced.items():
            fused.setdefault(layer.first_fed if isinstance(layer.module, nn.Linear) else name, []).append(name)
        units = []
        for members in fused.values():
            first = traced[members[0]]
            conv = first.module if isinstance(first.module, nn.Conv2d) else None
            units.append(
                Unit(
                    name=members[0],
                    members=tuple(members),
                    kind="linear" if conv is None else "conv",
                    width=min(traced[name].width for name in members),
                    inputs=first.inputs,
                    rows=first.rows,
                    groups=1 if conv is None else conv.groups,
                    calls=max(traced[name].calls for name in members),
                    block=block_of(members[0]),
                )
            )
        return tuple(units)

    @classmethod
    def effect(cls, settings: Sequence["Quantization"], units: Sequence[Unit]) -> dict[str, str]:
        assigned = assign(settings, units, "quantization")
        return {layer: rule.scheme for unit, rule in assigned if rule.scheme != "none" for layer in unit.members}

    @classmethod
    def refusal(cls, effect: dict[str, str], units: Sequence[Unit], target: Target) -> str | None:
        by_layer = {layer: unit for unit in units for layer in unit.members}
        for scheme in sorted(set(effect.values())):
            chosen = [layer for layer, found in effect.items() if found == scheme]
            if reason := missing_kernel(scheme, device=target.device, engine=target.engine):
                return f"scheme {scheme!r} for {', '.join(chosen)}: {reason}"
            for layer in chosen:
                if layer in by_layer and (reason := misfit(scheme, by_layer[layer], target)):
                    return f"scheme {scheme!r} for {layer}: {reason}"
        return None

    @classmethod
    def lower(cls, effect: dict[str, str], model: "nn.Module", context: Context) -> "nn.Module":
        if not effect:
            return model
        from autogreen.techniques.quantization.folding import fold_batch_norm
        from autogreen.techniques.quantization.graph import to_int8
        from autogreen.techniques.quantization.layers import to_bf16

        fold_batch_norm(model, context.example)
        to_bf16(model, [name for name, scheme in effect.items() if scheme == "bf16"])
        int8 = [name for name, scheme in effect.items() if scheme == "w8a8_static"]
        return to_int8(model, int8, context) if int8 else model
