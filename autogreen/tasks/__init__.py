"""Tasks: what is compressed, how it is trained and how it is judged.

A batch is whatever the task yields (a tuple, a dict, a dataclass of tensors); only the task looks inside. Splits:

    train        fine-tuning and distillation
    calibration  value ranges for quantization
    validation   what the search sees
    test         opened once, when a finished front is published; it steers nothing
"""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autogreen.errors import EvaluationError
from autogreen.registry import Table

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

TASKS = Table(
    "task",
    {
        "causal_lm": "autogreen.tasks.causal_lm:CausalLM",
        "digits": "autogreen.tasks.digits:Digits",
        "huggingface": "autogreen.tasks.huggingface:HuggingFace",
        "retrieval": "autogreen.tasks.retrieval:Retrieval",
    },
)

Split = Literal["train", "calibration", "validation", "test"]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of the model's forward


@dataclass(frozen=True, kw_only=True)
class Scores:
    """values: float64 [n], one number per example, higher is better; clusters: int64 [n], examples with one number
    come from one source and are resampled together, or None where all are independent."""

    values: "np.ndarray[Any, Any]"
    clusters: "np.ndarray[Any, Any] | None" = None


class Task(ABC):
    """Subclass it, or hand model, loaders and functions to `autogreen.search`.

    item: what is counted ("image", "token", "request"). outputs: what `logits` returns, and so how distillation
    compares it. A subclass whose fields are YAML keys is a keyword-only frozen dataclass.
    """

    item: str
    outputs: Literal["logits", "values"]

    @abstractmethod
    def build(self, cache: Path) -> "nn.Module":
        """The uncompressed model, ready for use. What had to be trained for it is kept under `cache`."""

    @abstractmethod
    def batches(self, split: Split, epoch: int = 0) -> Iterable[Any]:
        """Batches of a split. `epoch` may change the train split only (shuffling, augmentation)."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Any) -> "Tensor":
        """Scalar training loss of the model's outputs on a batch."""

    @abstractmethod
    def score(self, model: Any, split: Split) -> Scores:
        """Judge a callable with the model's signature on a whole split; tensors go in and come out on the CPU."""

    def inputs(self, batch: Any) -> Inputs:
        """What the model is called with. Default: the first element of a tuple or list; of a dict all but `labels`."""
        if isinstance(batch, Mapping):
            return (), {key: value for key, value in batch.items() if key != "labels"}
        return (batch[0] if isinstance(batch, tuple | list) else batch,), {}

    def items(self, inputs: Inputs) -> int:
        """How many items one call with these inputs is, by which its joules are divided. Default: its examples."""
        return rows(inputs)

    def forward(self, model: Any, batch: Any) -> Any:
        """The model's outputs on a batch."""
        args, kwargs = self.inputs(batch)
        return model(*args, **kwargs)

    def logits(self, outputs: Any) -> "Tensor":
        """The tensor that distillation compares. Default: the outputs, or their `logits`, or their first tensor."""
        from torch import Tensor
        from torch.utils._pytree import tree_leaves

        outputs = plain(outputs)
        if isinstance(outputs, Mapping) and "logits" in outputs:
            outputs = outputs["logits"]
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                return leaf
        raise EvaluationError(f"the model's outputs ({type(outputs).__name__}) hold no tensor to distil.")

    def smaller(self, fraction: float, cache: Path) -> "nn.Module | None":
        """A network of `fraction` times the width, trained from scratch with the baseline's own budget: the control.

        Default None: the task cannot tell what a smaller network is, and reports say that this control is missing.
        """
        return None

    def fingerprint(self) -> Mapping[str, str]:
        """What identifies model, data and code, each as text; a study refuses to go on when one of them changed."""
        import inspect

        source = inspect.getsource(type(self))
        return {"task": repr(self), "task code": hashlib.sha256(source.encode()).hexdigest()[:16]}


def rows(inputs: Inputs) -> int:
    """Number of examples: the length of the first tensor."""
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return len(leaf)
    raise EvaluationError("the model is called with no tensor that has a batch dimension.")


def cut(inputs: Inputs, size: int) -> list[Inputs]:
    """Cut inputs into full batches of `size`; the last one is filled up by starting over at the first example."""
    import torch
    from torch.utils._pytree import tree_map

    count = rows(inputs)
    if count == size:
        return [inputs]
    places = torch.arange(-(-count // size) * size) % count

    def take(part: Any) -> Any:
        def pick(leaf: Any) -> Any:
            batched = isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and len(leaf) == count
            return leaf[part.to(leaf.device)] if batched else leaf

        return tree_map(pick, inputs)

    return [take(part) for part in torch.split(places, size)]


def plain(outputs: Any) -> Any:
    """Turn a dataclass of tensors into a dict, so that tree functions see its leaves."""
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type) and not isinstance(outputs, Mapping):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    return outputs


def to_device(batch: Any, device: str) -> Any:
    """Move every tensor of a batch."""
    from torch.utils._pytree import tree_map

    def move(leaf: Any) -> Any:
        return leaf.to(device) if hasattr(leaf, "to") else leaf  # a tensor, or a batch that knows how to move itself

    if plain(batch) is not batch:  # a dataclass, which tree functions take for a leaf
        return type(batch)(**to_device(plain(batch), device))
    return tree_map(move, batch)


def digest(batch: Any) -> str:
    """Hash of a batch, by content: tensors and arrays with shape and type, texts and numbers, in any nesting of lists,
    mappings, dataclasses and other objects with attributes."""
    sha = hashlib.sha256()
    _feed(sha, batch)
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        sha.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif plain(value) is not value:
        _feed(sha, plain(value))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        sha.update(f"array {value.dtype} {value.shape} ".encode() + value.tobytes())
    elif isinstance(value, Mapping | list | tuple | np.ndarray):
        sha.update(f"{len(value)} parts ".encode())
        for part in value.items() if isinstance(value, Mapping) else value:
            _feed(sha, part)
    elif hasattr(value, "__dict__"):
        _feed(sha, vars(value))
    else:
        sha.update(f"{value!r} ".encode())


def count(batches: Iterable[Any]) -> int:
    """Number of batches; a loader that does not know its length is walked through."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in batches)
