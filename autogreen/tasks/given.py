"""A user's own model, loaders and functions as a task."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from autogreen.errors import ConfigError, EvaluationError
from autogreen.tasks import Inputs, Scores, Split, Task, digest


@dataclass(frozen=True, kw_only=True, eq=False)
class Given(Task):
    """model: the uncompressed model, trained. train, validation, test: loaders of batches; calibration: by default
    the first 8 batches of `train`.
    loss: (outputs, batch) -> scalar to minimise. score: (outputs, batch) -> [n], one number per example, higher is
    better. inputs: (batch) -> what the model is called with: a tensor, a tuple of arguments or a dict of keyword
    arguments; by default the first element of a tuple, or everything but `labels` of a dict.
    outputs: "logits" (distilled by KL divergence) or "values" (by squared error).
    """

    model: nn.Module
    train: Iterable[Any]
    validation: Iterable[Any]
    test: Iterable[Any]
    calibration: Iterable[Any] | None = None
    loss_fn: Callable[[Any, Any], Tensor]
    score_fn: Callable[[Any, Any], Tensor]
    inputs_fn: Callable[[Any], Any] | None = None
    item: str = "sample"
    outputs: Literal["logits", "values"] = "logits"

    def __post_init__(self) -> None:
        for split in ("train", "validation", "test", "calibration"):
            loader = getattr(self, split)
            if isinstance(loader, Iterator):
                raise ConfigError(
                    f"{split} can be walked through only once (it is a {type(loader).__name__}), and a search does so "
                    "many times; hand over a DataLoader or a list."
                )

    def build(self, cache: Path) -> nn.Module:
        return self.model.eval()

    def batches(self, split: Split, epoch: int = 0) -> Iterable[Any]:
        if split != "calibration" or self.calibration is not None:
            loader: Iterable[Any] = getattr(self, split)
            return loader
        return [batch for batch, _ in zip(self.train, range(8), strict=False)]

    def inputs(self, batch: Any) -> Inputs:
        if self.inputs_fn is None:
            return super().inputs(batch)
        given = self.inputs_fn(batch)
        if isinstance(given, Mapping):
            return (), dict(given)
        return (given if isinstance(given, tuple) else (given,)), {}

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return self.loss_fn(outputs, batch)

    def score(self, model: Any, split: Split) -> Scores:
        values = []
        with torch.no_grad():
            for batch in self.batches(split):
                score = self.score_fn(self.forward(model, batch), batch)
                if not isinstance(score, Tensor) or score.ndim != 1:
                    shape = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
                    raise ConfigError(f"score must return a tensor [n], one number per example; it returned {shape}.")
                values.append(score.double().numpy())
        if not values:
            raise EvaluationError(f"the {split} loader gave no batch.")
        return Scores(values=np.concatenate(values))

    def fingerprint(self) -> Mapping[str, str]:
        first = next(iter(self.validation), None)
        return {
            "model": _digest_model(self.model),
            "data": digest(first)[:16],
            "loss code": _source(self.loss_fn),
            "score code": _source(self.score_fn),
        }


def _digest_model(model: nn.Module) -> str:
    sha = hashlib.sha256(str(model).encode())
    sha.update(digest(model.state_dict()).encode())
    return sha.hexdigest()[:16]


def _source(function: Callable[..., Any]) -> str:
    """Hash of a function's source, or of its bytecode where it was typed into an interpreter."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = repr((code.co_code, code.co_names)) if code else repr(type(function))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
