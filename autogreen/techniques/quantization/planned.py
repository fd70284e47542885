"""Layers that torchao quantizes when a checkpoint is written: what a model of the transformers library stays."""

from collections.abc import Mapping
from typing import Any

from torch import nn


class Planned(nn.Module):
    """A model as it was trained, and torchao's configuration of each layer that shall compute in fewer bits."""

    model: nn.Module
    configs: dict[str, Any]

    def __init__(self, model: nn.Module, schemes: Mapping[str, str]) -> None:
        super().__init__()
        self.model = model
        self.configs = {layer: _config(scheme) for layer, scheme in schemes.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As it was trained."""
        return self.model(*args, **kwargs)


def _config(scheme: str) -> Any:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
    )

    if scheme == "fp8":
        return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    assert scheme == "w8a8", f"{scheme} is refused where layers are torchao's"
    return Int8DynamicActivationInt8WeightConfig(version=2)
