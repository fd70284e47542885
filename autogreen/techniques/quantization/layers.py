"""Layers that compute in fewer bits, each in the place of a layer that was trained."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autogreen.techniques.quantization.folding import replace


class Bf16(nn.Module):
    """A layer in bfloat16 inside a float32 model: cast, compute, cast back."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.to(torch.bfloat16))
        return y.to(x.dtype)


def to_bf16(model: nn.Module, names: Sequence[str]) -> None:
    """Wrap the named layers in place."""
    for name in names:
        replace(model, name, Bf16(model.get_submodule(name)))
