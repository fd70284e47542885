"""Cluttered digits: name the one whole digit among pieces of others."""

import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from autogreen.errors import ConfigError
from autogreen.tasks import Scores, Split, Task
from autogreen.tasks.training import train

SOURCES = 1797
SPLITS = {"train": (0, 1000), "calibration": (1000, 1030), "validation": (1030, 1397), "test": (1397, SOURCES)}
VIEWS = {"train": 3, "calibration": 14, "validation": 24, "test": 20}  # canvases of each source image


@dataclass(frozen=True, kw_only=True)
class Digits(Task):
    """scikit-learn's 1,797 real 8x8 digits, each shifted on a 16x16 canvas among four 3x3 pieces of other digits, and
    a residual network (7 convolutions of 3x3, two of 1x1, batch norm, a linear head) that names the whole one.

    The splits are disjoint in *source images* (pieces too are cut from the split's own sources): 1000 train, 30
    calibration, 367 validation, 400 test, seen on 3000 fresh canvases an epoch, 420, 8808 and 8000 canvases. Canvases
    of one source are one cluster. Score: 1 where the digit is named, else 0.

    width: channels of the first stage; the later ones have two and four times as many. 32 is no luxury: the same
    network of width 16, trained as long, names 1.1 points fewer canvases (experiments/README.md).
    epochs: passes over the train split from scratch.

    Source: Mnih et al., Recurrent Models of Visual Attention, NeurIPS 2014, section 4.1 (construction);
    Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (data); He et al., Deep Residual
    Learning, CVPR 2016 (network).
    """

    item: str = field(default="image", init=False)
    outputs: Literal["logits", "values"] = field(default="logits", init=False)

    width: int = 32
    epochs: int = 10
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("width", 1, 4096), ("epochs", 0, 10_000), ("batch_size", 2, 4000), ("seed", 0, 2**32)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be from {low} to {high}, not {getattr(self, name)!r}")

    def build(self, cache: Path) -> nn.Module:
        return self._trained(self.width, cache)

    def smaller(self, fraction: float, cache: Path) -> nn.Module:
        return self._trained(max(8, round(self.width * fraction / 8) * 8), cache)

    def batches(self, split: Split, epoch: int = 0) -> list[tuple[Tensor, Tensor]]:
        images, labels, _ = _canvases(split, epoch if split == "train" else 0, self.seed)
        order = torch.arange(len(labels))
        if split == "train":
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        size = self.batch_size
        return [
            (images[part], labels[part]) for part in torch.split(order, size) if split != "train" or len(part) == size
        ]

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch[1])

    def score(self, model: Any, split: Split) -> Scores:
        images, labels, sources = _canvases(split, 0, self.seed)
        with torch.no_grad():
            named = torch.cat([model(part).argmax(1) for part in torch.split(images, 512)])
        return Scores(values=(named == labels).double().numpy(), clusters=sources)

    def _trained(self, width: int, cache: Path) -> nn.Module:
        torch.manual_seed(self.seed)
        model = Network(width)
        key = hashlib.sha256(f"{self!r} {width} {Path(__file__).read_text()}".encode()).hexdigest()[:16]
        path = cache / f"digits-{key}.safetensors"
        if path.exists():
            model.load_state_dict(load_file(path))
            return model.eval()
        train(model, self, self.loss, epochs=self.epochs, learning_rate=5e-3, seed=self.seed, device="cpu")
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(model.state_dict(), partial)
        partial.replace(path)  # a crash leaves no half-written weights
        return model


@cache
def _images() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(SOURCES)
    return (data.images[order] / 16).astype(np.float32), data.target[order]


@cache
def _canvases(split: str, epoch: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray[Any, Any]]:
    """Images float32 [n, 1, 16, 16] in [0, 1], labels int64 [n], source numbers int64 [n]."""
    size, digit, piece, pieces = 16, 8, 3, 4
    images, labels = _images()
    first, last = SPLITS[split]
    random = np.random.default_rng((seed, first, epoch))
    sources = np.repeat(np.arange(first, last), VIEWS[split])
    canvas = np.zeros((len(sources), size, size), np.float32)

    def paste(source: np.ndarray[Any, Any], side: int) -> None:
        """Lay a random side x side cut of each source at a random place; the brighter value wins."""
        n = len(source)
        from_y, from_x = random.integers(0, digit - side + 1, (2, n, 1))
        to_y, to_x = random.integers(0, size - side + 1, (2, n, 1))
        step = np.arange(side)
        cut = images[source[:, None, None], (from_y + step)[:, :, None], (from_x + step)[:, None, :]]
        place = np.arange(n)[:, None, None], (to_y + step)[:, :, None], (to_x + step)[:, None, :]
        canvas[place] = np.maximum(canvas[place], cut)

    for _ in range(pieces):
        paste(random.integers(first, last, len(sources)), piece)
    paste(sources, digit)
    return torch.from_numpy(canvas)[:, None], torch.from_numpy(labels[sources]), sources


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them: [n, inside, h, w] -> [n, outside, h / stride, w / stride]."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        total: Tensor = self.bn2(self.conv2(y)) + self.shortcut(x)
        return total.relu()


class Network(nn.Module):
    """float32 [n, 1, 16, 16] -> logits [n, 10]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(x))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits
