"""Layers that compute in fewer bits, each in the place of a layer that was trained.

They hold plain tensors and call operators of PyTorch's core, so that torch.export carries them without pickles. Those
that need an NVIDIA GPU are built on one: packing is the kernel's own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autogreen.techniques.quantization.folding import replace
from autogreen.techniques.quantization.numerics import quantize, scale_and_zero_point, weight_range
from autogreen.techniques.quantization.schemes import DTYPES

E4M3_MAX = 448.0  # the largest float8 e4m3 number
GROUP = 128  # inputs that share a scale and zero point of a 4-bit weight
K_TILES = 8  # of 16 inputs each, that a thread of the 4-bit kernel reads at once
CASTS = {name: getattr(torch, dtype) for name, dtype in DTYPES.items()}
Ranges = Mapping[str, tuple[Tensor, Tensor]]


class Cast(nn.Module):
    """A layer in another floating-point type than the model's: cast, compute, cast back."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer.to(dtype)
        self.dtype = dtype

    def forward(self, input: Tensor) -> Tensor:  # as layers call it, where they are called by name
        y: Tensor = self.layer(input.to(self.dtype))
        return y.to(input.dtype)


class _Matrix(nn.Module):
    """A linear layer over the last axis, computed as one product [rows, inputs] x [inputs, outputs]."""

    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        y = self.product(input.reshape(-1, input.shape[-1])).to(input.dtype)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*input.shape[:-1], y.shape[-1])

    def product(self, x: Tensor) -> Tensor:
        """[rows, inputs] -> [rows, outputs], without the bias."""
        raise NotImplementedError


class Float8(_Matrix):
    """e4m3 weights with a scale per output, activations with a scale per row from the row's largest magnitude.

    Source: Micikevicius et al., FP8 Formats for Deep Learning, 2022; torch._scaled_mm, row-wise scaling.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        weight, scale = to_e4m3(layer.weight.detach())
        self.register_buffer("weight", weight)  # [outputs, inputs]: transposed it is the column-major that is wanted
        self.register_buffer("scale", scale.t().contiguous())  # [1, outputs]

    def product(self, x: Tensor) -> Tensor:
        rounded, scale = to_e4m3(x)
        y: Tensor = torch._scaled_mm(
            rounded, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return y


def to_e4m3(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round [rows, n] to e4m3 with a float32 scale [rows, 1] that brings each row's largest magnitude to 448."""
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / E4M3_MAX
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


class Int8(_Matrix):
    """int8 weights with a scale per output; activations int8 and symmetric: with one scale from calibration, or with a
    scale per row from the row's largest magnitude. Sums are exact, in int32.

    Source: Jacob et al., CVPR 2018 (static); Dettmers et al., LLM.int8(), NeurIPS 2022 (scales per row).
    """

    weight: Tensor
    scale: Tensor
    input_scale: Tensor | None

    def __init__(self, layer: nn.Linear, activations: tuple[Tensor, Tensor] | None) -> None:
        super().__init__(layer)
        weight, scale = int8_weight(layer.weight.detach())
        self.register_buffer("weight", weight)  # [outputs, inputs]
        self.register_buffer("scale", scale)  # [outputs]
        fixed = None
        if activations is not None:
            fixed, _ = scale_and_zero_point(*activations, bits=8, symmetric=True)
            fixed = fixed.float().to(weight.device)
        self.register_buffer("input_scale", fixed)

    def product(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.input_scale is None:
            scale = x.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        else:
            scale = self.input_scale
        rounded = (x / scale).round().clamp(-127, 127).to(torch.int8)
        y: Tensor = torch._int_mm(rounded, self.weight.t()) * (scale * self.scale)
        return y


class WeightInt8(_Matrix):
    """int8 weights with a scale per output; activations in bfloat16 on processors, where the kernel is vectorised for
    nothing else (8 times faster than in float32), and as they come on GPUs. Source:
    torch.ops.aten._weight_int8pack_mm."""

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear, observer: str) -> None:
        super().__init__(layer)
        kind = torch.bfloat16 if layer.weight.device.type == "cpu" else layer.weight.dtype
        weight, scale = int8_weight(layer.weight.detach(), observer, kind)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def product(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x.to(self.scale.dtype), self.weight, self.scale)
        return y


class WeightInt4(_Matrix):
    """int4 weights with a scale and zero point for each group of 128 inputs of an output; products in bfloat16.

    Source: Frantar et al., GPTQ, ICLR 2023 (groups); torch.ops.aten._weight_int4pack_mm (tiles for tensor cores).
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, observer: str) -> None:
        super().__init__(layer)
        found = layer.weight.detach().float()
        outputs, inputs = found.shape
        low, high = weight_range(found, group=GROUP, observer=observer, bits=4, symmetric=False)
        scale, zero = scale_and_zero_point(low, high, bits=4, symmetric=False)  # [outputs, groups]
        grouped = found.reshape(outputs, inputs // GROUP, GROUP)
        codes = quantize(grouped, scale[..., None], zero[..., None], bits=4, signed=False).reshape(outputs, inputs)
        pairs = (codes[:, ::2].to(torch.uint8) << 4) | codes[:, 1::2].to(torch.uint8)
        self.register_buffer("weight", torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), K_TILES))
        middle = (8 - zero) * scale  # the kernel's value of code 8
        both = torch.stack([scale, middle], dim=-1).transpose(0, 1)  # [groups, outputs, 2]
        self.register_buffer("scales", both.contiguous().to(torch.bfloat16))

    def product(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm(x.to(torch.bfloat16), self.weight, GROUP, self.scales)
        return y


def int8_weight(weight: Tensor, observer: str = "minmax", kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Round [outputs, inputs] to int8, symmetrically, with a scale [outputs] of that type; what the scale loses to its
    type is no error of the weights."""
    low, high = weight_range(weight.float(), group=None, observer=observer, bits=8, symmetric=True)
    scale, zero = scale_and_zero_point(low.reshape(-1), high.reshape(-1), bits=8, symmetric=True)
    scale = scale.to(kind)
    codes = quantize(weight.float(), scale.float()[:, None], zero[:, None], bits=8, signed=True)
    return codes.to(torch.int8), scale


def to_layers(
    model: nn.Module, schemes: Mapping[str, str], ranges: Ranges, observers: Mapping[str, str] | None = None
) -> None:
    """Put, in place, what computes in its scheme in the place of each named layer, on the device of its weights.

    Args:
        schemes: by layer.
        ranges: lowest and highest input (scalars) of every `w8a8_static` layer.
        observers: how the range of low-bit weights is chosen, by layer; `minmax` where nothing is said.
    """
    for name, scheme in schemes.items():
        layer = model.get_submodule(name)
        observer = (observers or {}).get(name, "minmax")
        if scheme in CASTS:
            replace(model, name, Cast(layer, CASTS[scheme]))
            continue
        assert isinstance(layer, nn.Linear), f"{scheme} is refused for {type(layer).__name__}"
        match scheme:
            case "fp8":
                lowered: nn.Module = Float8(layer)
            case "w8a8":
                lowered = Int8(layer, None)
            case "w8a8_static":
                lowered = Int8(layer, ranges[name])
            case "w8a16":
                lowered = WeightInt8(layer, observer)
            case _:
                lowered = WeightInt4(layer, observer)
        replace(model, name, lowered)
