"""Per-layer precision, with real low-precision kernels only."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from autogreen.errors import ConfigError, RefusedError
from autogreen.registry import nearest
from autogreen.techniques import Context, Target, Technique, Unit, assign
from autogreen.techniques.quantization.schemes import (
    OBSERVER,
    SCHEMES,
    TORCHAO,
    Observer,
    Treatment,
    misfit,
    missing_kernel,
    schemes,
)

if TYPE_CHECKING:
    from torch import nn

    from autogreen.errors import AutogreenError
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

    observer: how ranges are chosen where a scheme leaves a choice, of activations (w8a8_static) or of weights (w8a16,
    w4a16); elsewhere it says nothing. `minmax` takes what was seen, `percentile` 99.9 % of it, `mse` what makes the
    mean squared error least; where a few features are far louder than the others, as in transformers, a percentile cuts
    off what matters. Weights of eight bits beside activations of eight take min-max: a scale per channel leaves
    little to win there.

    qat: fine-tuning rounds this layer as the scheme does, so that the network learns to live with it; of schemes below
    16 bits. It needs a `distillation` section, which is what trains.

    Linear layers that are fed by one tensor (q, k and v; gate and up) are fused by servers and share a scheme: they are
    one unit.

    On x86 processors without VNNI instructions activations use 7 of the 8 bits: two products of 8 bits overflow the
    16-bit sum of `vpmaddubsw` there, silently.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    CVPR 2018; Nagel et al., A White Paper on Neural Network Quantization, 2021; PyTorch 2 Export quantization with the
    X86 inductor backend (docs.pytorch.org/ao); Micikevicius et al., FP8 Formats for Deep Learning, 2022.
    """

    ordered: ClassVar[bool] = True

    target: str
    scheme: str = "none"
    observer: Observer = OBSERVER
    qat: bool = False

    def __post_init__(self) -> None:
        for name, known in (("scheme", tuple(SCHEMES)), ("observer", get_args(Observer))):
            if (said := getattr(self, name)) not in known:
                raise ConfigError(f"unknown {name} {said!r}.{nearest(said, known)} Known: {', '.join(known)}")

    @classmethod
    def units(cls, model: "nn.Module", example: "Inputs") -> tuple[Unit, ...]:
        from torch import nn

        from autogreen.techniques.trace import block_of, layers, refuse_made_weights

        refuse_made_weights(model)
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
                    taps=1 if conv is None else math.prod(conv.kernel_size),
                    calls=max(traced[name].calls for name in members),
                    block=block_of(members[0]),
                )
            )
        return tuple(units)

    @classmethod
    def effect(cls, settings: Sequence["Quantization"], units: Sequence[Unit]) -> dict[str, str]:
        """The treatment of each layer, in one word (`schemes.Treatment`)."""
        return {
            layer: str(Treatment(scheme=rule.scheme, observer=rule.observer, qat=rule.qat))
            for unit, rule in assign(settings, units, "quantization")
            if rule.scheme != "none"
            for layer in unit.members
        }

    @classmethod
    def settle(cls, effect: Mapping[str, str], parts: Mapping[str, Any]) -> Mapping[str, str]:
        """Without layers that are given what the whole model is given.

        Raises:
            RefusedError: layers shall learn to be rounded, but nothing trains.
        """
        learning = [layer for layer, word in effect.items() if Treatment.read(word).qat]
        if learning and not (parts.get("distillation") or {}).get("epochs"):
            raise RefusedError(
                f"quantization: qat for {', '.join(learning)}, but nothing trains in this policy. Give it a "
                "distillation section with an epoch or more, or leave qat out."
            )
        whole = parts.get("precision", {}).get("dtype")
        return {layer: word for layer, word in effect.items() if word != whole}

    @classmethod
    def refusal(cls, effect: Mapping[str, str], units: Sequence[Unit], target: Target) -> str | None:
        by_layer = {layer: unit for unit in units for layer in unit.members}
        named = schemes(effect)
        for scheme in sorted(set(named.values())):
            chosen = [layer for layer, found in named.items() if found == scheme]
            if reason := missing_kernel(scheme, device=target.device, engine=target.engine):
                return f"scheme {scheme!r} for {', '.join(chosen)}: {reason}"
            for layer in chosen:
                if layer in by_layer and (reason := misfit(scheme, by_layer[layer], target)):
                    return f"scheme {scheme!r} for {layer}: {reason}"
        return None

    @classmethod
    @contextmanager
    def aware(cls, effect: Mapping[str, str], model: "nn.Module", context: Context) -> Iterator[None]:
        """While this lasts, layers with `qat` compute as if they were quantized; gradients pass straight through.

        The parameters and their names stay; on leaving, the model computes with them as before. Calibration data, where
        a scheme wants some, is looked at before anything is trained.
        """
        if "w8a8_static" in schemes(effect).values():
            from autogreen.techniques.quantization.numerics import calibration_inputs

            for _ in calibration_inputs(context):
                pass
        here = {name for name, _ in model.named_modules()}
        asked = {layer: Treatment.read(word) for layer, word in effect.items() if layer in here}
        learning = {layer: found for layer, found in asked.items() if found.qat}
        if not learning:
            yield
            return
        from autogreen.techniques.quantization.aware import rounding

        with rounding(model, learning, context):
            yield

    @classmethod
    def in_turn(
        cls, effects: Sequence[Mapping[str, str]], model: "nn.Module", context: Context
    ) -> "Iterator[nn.Module | AutogreenError]":
        """Rounds as the schemes would, in place; ranges are calibrated once for all effects.

        Raises:
            RefusedError: calibration data that is missing or not finite.
        """
        from autogreen.techniques.quantization.aware import switched

        words = dict.fromkeys(
            word for effect in effects for word in effect.values() if SCHEMES[Treatment.read(word).scheme].lossy
        )
        with ExitStack() as stack:
            switches = {}
            for word in words:
                layers = {layer for effect in effects for layer, other in effect.items() if other == word}
                treatments = dict.fromkeys(sorted(layers), Treatment.read(word))
                switches[word] = stack.enter_context(switched(model, treatments, context))
            for effect in effects:
                for word, only in switches.items():
                    only({layer for layer, other in effect.items() if other == word})
                yield model

    @classmethod
    def lower(cls, effect: Mapping[str, str], model: "nn.Module", context: Context) -> "nn.Module":
        """Raises:
        RefusedError: layers that were pruned to sizes that their kernel cannot take; calibration data that is
            missing or not finite; a graph that cannot be quantized.
        """
        here = {name for name, _ in model.named_modules()}  # a layer may have gone with its block
        treatments = {layer: Treatment.read(word) for layer, word in effect.items() if layer in here}
        if not treatments:
            return model
        from autogreen.tasks import rows
        from autogreen.techniques.quantization.folding import fold_batch_norm
        from autogreen.techniques.quantization.graph import to_int8

        target = Target(device=context.device, engine=context.engine, batch=rows(context.example))
        for unit in cls.units(model, context.example):
            for layer in set(unit.members) & set(treatments):
                if reason := misfit(scheme := treatments[layer].scheme, unit, target):
                    raise RefusedError(f"quantization: scheme {scheme!r} for {layer}: {reason}")
        if context.engine == TORCHAO:
            from autogreen.techniques.quantization.planned import Planned

            return Planned(model, {name: one.scheme for name, one in treatments.items()})
        fold_batch_norm(model, context.example)
        on_gpu = context.device.startswith("cuda")
        in_graph = {} if on_gpu else {name: one for name, one in treatments.items() if one.scheme.startswith("w8a8")}
        in_place = {name: one for name, one in treatments.items() if name not in in_graph}
        if in_place:
            from autogreen.techniques.quantization.layers import to_layers
            from autogreen.techniques.quantization.numerics import calibrate

            static = {name: one.observer for name, one in in_place.items() if one.scheme == "w8a8_static"}
            to_layers(
                model,
                {name: one.scheme for name, one in in_place.items()},
                calibrate(model, static, context) if static else {},
                {name: one.weight_observer for name, one in in_place.items()},
            )
        return to_int8(model, in_graph, context) if in_graph else model
