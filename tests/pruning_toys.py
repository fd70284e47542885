"""What the tests of pruning share: a task of given batches, and a policy brought to a model."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autogreen.anatomy import survey
from autogreen.tasks import Scores, Split, Task
from autogreen.techniques import Context, Unit
from autogreen.techniques.pruning import Pruning


class Labelled(Task):
    """Batches of (inputs, labels); the model takes the inputs as they are, or a mapping as keywords."""

    item = "example"
    outputs: Literal["logits", "values"] = "logits"

    def __init__(self, batches: Sequence[tuple[Any, Tensor]]) -> None:
        self._batches = list(batches)

    def build(self, cache: Any) -> nn.Module:
        raise NotImplementedError

    def batches(self, split: Split, epoch: int = 0) -> list[tuple[Any, Tensor]]:
        return self._batches

    def inputs(self, batch: Any) -> Any:
        return ((), batch[0]) if isinstance(batch[0], dict) else ((batch[0],), {})

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch[1])

    def score(self, model: Any, split: Split) -> Scores:
        raise NotImplementedError


def labelled(*inputs: Any, classes: int = 5) -> Labelled:
    """Each input is one batch; labels are drawn."""
    generator = torch.Generator().manual_seed(7)

    def labels(given: Any) -> Tensor:
        first = next(iter(given.values())) if isinstance(given, dict) else given
        return torch.randint(0, classes, (len(first),), generator=generator)

    return Labelled([(given, labels(given)) for given in inputs])


def context(model: nn.Module, example: Any, task: Task | None = None) -> Context:
    return Context(
        task=task,  # type: ignore[arg-type]
        example=example,
        seed=0,
        device="cpu",
        teacher=model,
        check=lambda: None,
        cache={},
    )


def units(model: nn.Module, example: Any) -> tuple[Unit, ...]:
    return survey(model, example, ("pruning",)).units["pruning"]


def prune(
    model: nn.Module, example: Any, *rules: Pruning, task: Task | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A pruned copy, and the effect."""
    effect = Pruning.effect(rules, units(model, example))
    return Pruning.apply(effect, copy.deepcopy(model), context(model, example, task)), effect


def kept(dense: Tensor, narrow: Tensor) -> list[int]:
    """Output channels of a dense weight that a narrow one still has, found by the inputs that both kept."""
    return [row for row in range(len(dense)) if any(torch.equal(dense[row], other) for other in narrow)]


def lost(model: nn.Module, narrow: nn.Module, name: str) -> list[int]:
    """Rows of a parameter or buffer that pruning took away; both must agree in the other axes."""
    dense, left = (dict(net.named_parameters()) | dict(net.named_buffers()) for net in (model, narrow))
    return sorted(set(range(len(dense[name]))) - set(kept(dense[name], left[name])))
