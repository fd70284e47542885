"""Operator by operator, as PyTorch runs a model out of the box."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from autogreen.engines import Recipe, exported
from autogreen.tasks import Inputs


class Eager:
    """The exported program, interpreted. Source: https://docs.pytorch.org/docs/stable/export.html"""

    @staticmethod
    def save(model: nn.Module, example: Inputs, folder: Path) -> None:
        exported.save(model, example, folder)

    @staticmethod
    def load(folder: Path, recipe: Recipe) -> Callable[..., Any]:
        return exported.load(folder, recipe.device)
