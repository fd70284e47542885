"""The exported program, compiled by torch.compile with frozen weights when it is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch._inductor.config
from torch import nn

from autogreen.engines import Recipe, exported, profile
from autogreen.tasks import Inputs


class Inductor:
    """Freezing folds weights into the code; without it int8 layers run dequantized, at several times the energy.

    The switch is the process's, not the program's (`torch._inductor.config.freezing`), and is left on: a later
    recompilation without it would quietly be another program than the one measured.

    Source: Ansel et al., PyTorch 2, ASPLOS 2024.
    """

    executes: ClassVar[str] = f"{exported.EXECUTES}, compiled to native code on this machine"
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
        torch._inductor.config.freezing = True
        mode = {"default": None, "max-autotune": "max-autotune-no-cudagraphs"}[recipe.mode]  # graphs are our own
        compiled: Callable[..., Any] = torch.compile(exported.load(folder, recipe.device), mode=mode)
        return compiled
