"""Probe: how far a model's outputs move, and how much of its work goes, when one thing alone is changed.

    pruned      the cut alone, nothing trained
    quantized   the layers round as the scheme would; no kernel is needed to know what that does to outputs

Logits: the mean over examples of KL(softmax(before) || softmax(after)), in nats. Values: the mean squared change over
the variance of what it was before. One forward pass over the calibration batches for each change.

Source: Dong et al., HAWQ-V2, NeurIPS 2020, and Li et al., Evaluating Quantized Large Language Models, ICML 2024 (one
layer at a time); Nahshan et al., Loss aware post-training quantization, 2021 (what that leaves out).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autogreen.errors import AutogreenError, EvaluationError
from autogreen.tasks import Task, rows, to_device
from autogreen.techniques import TECHNIQUES, Context
from autogreen.techniques.trace import layers

EXAMPLES = 256  # of the calibration split, about


@dataclass(frozen=True, kw_only=True)
class Probed:
    """divergence: of the outputs, 0 or more. kept: share of the multiply-accumulates that is left. refused: why there
    is no figure."""

    divergence: float | None = None
    kept: float = 1.0
    refused: str | None = None


class Probe:
    """Of one model in inference mode, which is the same afterwards."""

    def __init__(self, model: nn.Module, context: Context) -> None:
        self.model, self.context, self.task = model, context, context.task
        self.batches = [to_device(batch, context.device) for batch in _some(self.task)]
        self.before = self._outputs(model)
        self.work = self._work(model)

    def each(self, section: str, effects: Sequence[Any]) -> Iterator[Probed]:
        """Of a section's effects, each with one thing changed; one that fails is told and left out.

        Raises:
            RefusedError: calibration data that is missing or not finite.
        """
        for found in TECHNIQUES[section].in_turn(effects, self.model, self.context):
            self.context.check()
            if isinstance(found, AutogreenError):
                yield Probed(refused=str(found))
                continue
            try:
                moved = divergence(self.before, self._outputs(found), self.task.outputs)
                yield Probed(divergence=moved, kept=1.0 if found is self.model else self._work(found) / self.work)
            except EvaluationError as error:
                yield Probed(refused=str(error))

    def _work(self, model: nn.Module) -> int:
        """Multiply-accumulates of one call."""
        return sum(layer.calls * layer.macs for layer in layers(model, self.context.example).values())

    def _outputs(self, model: nn.Module) -> Tensor:
        """float32 [n, classes] of all batches."""
        with torch.no_grad():
            parts = [self.task.logits(self.task.forward(model, batch)).float().cpu() for batch in self.batches]
        return torch.cat([part.flatten(0, -2) if part.ndim > 1 else part[:, None] for part in parts])


def divergence(before: Tensor, after: Tensor, outputs: str) -> float:
    """How far float32 [n, classes] moved.

    Raises:
        EvaluationError: it is not finite.
    """
    if outputs == "values":
        moved = (after - before).square().mean() / before.var().clamp_min(torch.finfo(torch.float32).tiny)
    else:
        told = F.log_softmax(before, -1)
        moved = F.kl_div(F.log_softmax(after, -1), told, reduction="batchmean", log_target=True)
    if not torch.isfinite(moved):
        raise EvaluationError("its outputs are NaN or infinite.")
    return max(0.0, float(moved))  # rounding can leave a divergence of 0 a hair below


def _some(task: Task) -> Iterator[Any]:
    seen = 0
    for batch in task.batches("calibration"):
        yield batch
        seen += rows(task.inputs(batch))
        if seen >= EXAMPLES:
            return
    if not seen:
        raise EvaluationError("the calibration split gave no batch: nothing can be probed.")
