"""What is done to a model before it is saved: prune -> distil -> lower, in that order whatever the file says."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autogreen.techniques import TECHNIQUES, Context

if TYPE_CHECKING:
    from torch import nn


def compress(parts: Mapping[str, Any], model: "nn.Module", context: Context) -> "nn.Module":
    """Apply the sections of an effect to a model that is then trained; return it in inference mode."""
    for section, technique in TECHNIQUES.items():
        if section in parts:
            model = technique.apply(parts[section], model, context)
    return model.eval()


def lower(parts: Mapping[str, Any], model: "nn.Module", context: Context) -> "nn.Module":
    """Bring a trained model into the kernels that it ships with."""
    for section, technique in TECHNIQUES.items():
        if section in parts:
            model = technique.lower(parts[section], model, context)
    return model
