"""What the tests of quantization share: data to calibrate on, and the way from a model to a program that runs."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from nets import images
from torch import nn

from autogreen.engines import ENGINES, Program, Recipe
from autogreen.techniques import Context
from autogreen.techniques.quantization import Quantization
from autogreen.techniques.quantization.schemes import missing_kernel

BATCH = 4
QUIET = [  # what torch and torchao warn of themselves with
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:Unwrapped parameters detected"),
]
INT8 = missing_kernel("w8a8_static", device="cpu", engine="inductor")
needs_int8 = pytest.mark.skipif(INT8 is not None, reason=str(INT8))


class Data:
    """As much of a task as calibration looks at."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def batches(self, split: str, epoch: int = 0) -> list[Any]:
        assert split == "calibration"
        return self._batches

    def inputs(self, batch: Any) -> Any:
        return ((), batch) if isinstance(batch, dict) else ((batch,), {})


def context(example: Any, batches: list[Any], **changes: Any) -> Context:
    settings: dict[str, Any] = {"seed": 0, "device": "cpu", "check": lambda: None, "cache": {}, "teacher": None}
    return Context(task=Data(batches), example=example, **{**settings, **changes})  # type: ignore[arg-type]


def quantized(model: nn.Module, effect: Mapping[str, str], data: Any = images) -> nn.Module:
    around = context(((data(BATCH),), {}), [data(16, seed) for seed in range(4)])
    return Quantization.lower(effect, copy.deepcopy(model), around)


def build(model: nn.Module, example: Any, folder: Path, engine: str) -> Program:
    ENGINES[engine].save(model, example, folder)
    program = Program(folder, Recipe(engine=engine, batch=BATCH, threads=1, device="cpu"))
    program.run(*example)
    return program
