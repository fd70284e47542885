"""One stage of a pipeline while it runs: PyTorch's schedule around a loaded artifact.

Source: torch.distributed.pipelining; Huang et al., GPipe, NeurIPS 2019 (the schedule, of which only forward runs here).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.profiler import record_function
from torch.utils import _pytree as pytree

from autogreen.errors import BundleError
from autogreen.schema import MAX_BYTES, parse_json

if TYPE_CHECKING:
    from autogreen.engines import Program

STAGE = "autogreen::stage"  # what a profile calls the stage's own work


class Pipe:
    """Treats a batch together with the other stages.

    pipeline: JSON file with the trees of the model's inputs and outputs, and what crosses each boundary of a stage:
    else the schedule would find that out by running stages on tensors of any content, and indices would point anywhere.
    micro_batches: in a batch.

    Raises:
        BundleError: the file is missing or damaged.
    """

    def __init__(self, program: "Program", pipeline: Path, rank: int, count: int, micro_batches: int) -> None:
        try:
            with pipeline.open("rb") as file:
                told = parse_json(file.read(MAX_BYTES + 1), str(pipeline))
            self._inputs, self._outputs = (pytree.treespec_loads(told[key]) for key in ("inputs", "outputs"))
            given, returned = (_tensors(told["boundaries"][place]) for place in (rank, rank + 1))
        except (OSError, LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise BundleError(
                f"{pipeline} is missing or damaged ({type(error).__name__}: {error}). Where an earlier version wrote "
                "it, build the policy again."
            ) from error
        stage = PipelineStage(_Stage(program), rank, count, torch.device(program.recipe.device), given, returned)
        self._schedule = ScheduleGPipe(stage, micro_batches)
        self._first, self._last = rank == 0, rank == count - 1

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Every stage is given the batch; the first uses it. The last returns the model's outputs, the others None."""
        with torch.no_grad():
            if self._first:
                names = self._inputs.children_specs[1].context
                self._schedule.step(*pytree.tree_leaves((args, {name: kwargs[name] for name in names})))
                return None
            leaves = self._schedule.step()
        return pytree.tree_unflatten(list(leaves), self._outputs) if self._last else None


def _tensors(described: list[dict[str, Any]]) -> tuple[torch.Tensor, ...]:
    """Without values."""
    found = []
    for one in described:
        shape, dtype = one["shape"], getattr(torch, one["dtype"])
        if not isinstance(dtype, torch.dtype) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"no tensor is {one}")
        found.append(torch.empty(shape, dtype=dtype, device="meta"))
    return tuple(found)


class _Stage(nn.Module):
    """A program where the schedule wants a module."""

    def __init__(self, program: "Program") -> None:
        super().__init__()
        self._program = program

    def forward(self, *given: torch.Tensor) -> Any:
        with record_function(STAGE):
            return self._program.run(given, {})
