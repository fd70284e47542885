"""Operator by operator, as PyTorch runs a model out of the box."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from autogreen.engines import Recipe, exported, profile
from autogreen.tasks import Inputs


class Eager:
    """The exported program, interpreted. Source: https://docs.pytorch.org/docs/stable/export.html"""

    executes: ClassVar[str] = exported.EXECUTES
    native: ClassVar[bool] = False
    inspect = staticmethod(exported.inspect)
    trace = staticmethod(profile.operators)

    @staticmethod
    def missing(device: str) -> str | None:
        return None

    @staticmethod
    def save(model: nn.Module, example: Inputs, folder: Path) -> None:
        exported.save(model, example, folder)

    @staticmethod
    def load(folder: Path, recipe: Recipe) -> Callable[..., Any]:
        return exported.load(folder, recipe.device)
