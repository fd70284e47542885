"""A task with other weights: the same data, training and judgement; the model is what somebody trained since."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autogreen.errors import ConfigError, RefusedError
from autogreen.tasks import Inputs, Scores, Split, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 3  # differences named in an error


@dataclass(frozen=True, kw_only=True)
class Retrained(Task):
    """task: whose model, data and judgement. weights: a safetensors file of its model's state, by the same names."""

    task: Task
    weights: Path

    @property
    def item(self) -> str:  # type: ignore[override]
        return self.task.item

    @property
    def outputs(self) -> Literal["logits", "values"]:  # type: ignore[override]
        return self.task.outputs

    def build(self, cache: Path) -> "nn.Module":
        """The task's model with these weights.

        Raises:
            ConfigError: the file cannot be read.
            RefusedError: it holds another architecture; what differs is named.
        """
        from safetensors.torch import load_file

        try:
            state = load_file(self.weights)
        except Exception as error:  # safetensors has errors of its own kinds, and the disk others
            raise ConfigError(
                f"{self.weights} cannot be read as safetensors ({type(error).__name__}: {error}). Save the state with "
                "safetensors.torch.save_file(model.state_dict(), path)."
            ) from error
        model = self.task.build(cache)
        if told := _apart(model.state_dict(), state):
            raise RefusedError(
                f"{self.weights} holds another architecture than {type(model).__name__} of this task: {told}. A policy "
                "applies to new weights of the same network; for another one, search again."
            )
        model.load_state_dict(state)
        return model

    def batches(self, split: Split, epoch: int = 0) -> Iterable[Any]:
        return self.task.batches(split, epoch)

    def loss(self, outputs: Any, batch: Any) -> "Tensor":
        return self.task.loss(outputs, batch)

    def score(self, model: Any, split: Split) -> Scores:
        return self.task.score(model, split)

    def inputs(self, batch: Any) -> Inputs:
        return self.task.inputs(batch)

    def items(self, inputs: Inputs) -> int:
        return self.task.items(inputs)

    def forward(self, model: Any, batch: Any) -> Any:
        return self.task.forward(model, batch)

    def logits(self, outputs: Any) -> "Tensor":
        return self.task.logits(outputs)

    def smaller(self, fraction: float, cache: Path) -> "nn.Module | None":
        return self.task.smaller(fraction, cache)

    def fingerprint(self) -> Mapping[str, str]:
        return {**self.task.fingerprint(), "weights": sha256(self.weights)[:16]}


def sha256(path: Path) -> str:
    """Hexadecimal hash of a file of weights.

    Raises:
        ConfigError: it cannot be read.
    """
    import hashlib

    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Name a file of weights (safetensors).") from error


def _apart(wanted: Mapping[str, "Tensor"], given: Mapping[str, "Tensor"]) -> str:
    """What differs in names and shapes, the first few of each; empty: nothing."""
    shapes = {
        name: f"{name} is {list(given[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    }
    missing = [f"{name} is missing" for name in wanted if name not in given]
    foreign = [f"{name} is unknown" for name in given if name not in wanted]
    told = [*shapes.values(), *missing, *foreign]
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return "; ".join(told[:SHOWN]) + more
