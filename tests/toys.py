"""A task small enough for tests: which of four corners of a 6x6 image is bright, and a network that can learn it."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from autogreen.tasks import Scores, Split, Task

TRAINED: dict[str, int] = {}  # what this process trained last: the program that is scored does not tell its width


@dataclass(frozen=True, kw_only=True)
class Corners(Task):
    """fault: what goes wrong in `score` of a pruned model."""

    item: str = field(default="image", init=False)
    outputs: Literal["logits", "values"] = field(default="logits", init=False)
    fault: str = ""
    width: int = 16

    def build(self, cache: Path) -> nn.Module:
        torch.manual_seed(0)
        TRAINED.clear()
        known_floor(cache)
        model = nn.Sequential(
            nn.Conv2d(1, self.width, 3, padding=1),
            nn.BatchNorm2d(self.width),
            nn.ReLU(),
            nn.Conv2d(self.width, self.width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36 * self.width, 4),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(20):
            for batch in self.batches("train"):
                optimizer.zero_grad()
                self.loss(model(batch[0]), batch).backward()
                optimizer.step()
        return model.eval()

    def batches(self, split: Split, epoch: int = 0) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(["train", "calibration", "validation", "test"].index(split))
        images = torch.rand(192, 1, 6, 6, generator=generator)
        labels = torch.randint(0, 4, (192,), generator=generator)
        for image, label in zip(images, labels, strict=True):
            y, x = divmod(int(label), 2)
            image[0, 4 * y : 4 * y + 2, 4 * x : 4 * x + 2] += 0.5
        return list(zip(images.split(64), labels.split(64), strict=True))

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch[1])

    def forward(self, model: Any, batch: Any) -> Any:
        TRAINED["width"] = model[0].out_channels
        return super().forward(model, batch)

    def score(self, model: Any, split: Split) -> Scores:
        batches = self.batches(split)
        named = torch.cat([model(images).argmax(1) for images, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        if self.fault and split == "validation" and TRAINED.get("width", self.width) < self.width:
            self._break()
            if self.fault == "nan":
                return Scores(values=np.full(len(labels), np.nan))
        return Scores(values=(named == labels).double().numpy())

    def _break(self) -> None:
        match self.fault:
            case "raise":
                raise ValueError("the score function is broken")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "memory":
                torch.empty(1 << 50)
            case "stuck":
                signal.pause()
            case "disk":
                with Path("/dev/full").open("w") as full:
                    full.write("x" * 100_000)


def known_floor(cache: Path, pj: float = 1e-6) -> None:
    """Unit costs a million times below any machine's, kept as if measured before: tests need not wait for real ones."""
    from autogreen import floor, hardware
    from autogreen.measurement import Interval
    from autogreen.meters import choose

    described, meter, cost = hardware.describe("cpu"), choose("cpu"), Interval(mean=pj, low=pj, high=pj)
    floor.keep(
        floor.UnitCosts(
            machine=hardware.name(described),
            driver="none",
            torch=described["torch"],
            tier=meter.tier,
            boundary=meter.boundary,
            flop_pj={"float32": cost, "int8": cost},
            byte_pj=cost,
            cache_bytes=None,
            left_out={},
            measured="2026-11-01T00:00:00+00:00",
        ),
        cache,
    )


SPACE = {
    "pruning": [{"each": "*", "ratio": {"choice": [0.0, 0.5]}}],
    "distillation": {"epochs": 1, "alpha": {"choice": [0.0, 0.5]}},
    "runtime": {"engine": "eager"},
}
QUICK = {"warmup_s": 0.0, "window_s": 0.02, "min_windows": 2, "max_windows": 2, "foreign_limit": 99.0}


def experiment(name: str = "toy", fault: str = "", **changes: Any) -> Any:
    """A sweep over the toy that takes seconds."""
    from autogreen.experiment import from_json

    data = {
        "space": SPACE,
        "workload": {"kind": "offline", "batch": 64},
        "protocol": QUICK,
        "constraints": {"max_loss": 1.0},
        "budget": {"trials": 4},
        "strategy": "direct",
        "sampler": "random",
        "device": "cpu",
        "executor": "inline",
        "finalists": 1,
        **changes,
    }
    return from_json(data, name=name, folder=Path(), task=Corners(fault=fault))
