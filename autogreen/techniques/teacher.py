"""The teacher of a distillation: its logits, remembered, and the hidden states that a student is held against."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autogreen.errors import RefusedError
from autogreen.techniques import Context

if TYPE_CHECKING:
    from torch import Tensor, nn

States = dict[str, list["Tensor"]]  # by block, an output for each time that it ran


@dataclass
class Memory:
    """logits: by the digest of the batch. size_bytes: of all of them."""

    logits: dict[str, "Tensor"] = field(default_factory=dict)
    size_bytes: int = 0


class Teacher:
    """The uncompressed model in inference mode and in its own precision, whatever the student is trained in.

    Its logits are remembered by the content of the batch (right for any loader, shuffled or augmented) for as long as
    the worker lives, in the host's memory: a GPU's is for models. Once `MAX_BYTES` are full, what else is asked is
    computed anew. Nothing is evicted: epochs walk the same batches in turn, and whoever drops the oldest never meets
    one again. Hidden states are larger by far and never remembered.
    """

    MAX_BYTES = 2**30

    def __init__(self, context: Context) -> None:
        self._context = context
        self._memory: Memory = context.cache.setdefault("teacher", Memory())
        context.teacher.to(context.device).eval()

    def logits(self, batch: Any) -> "Tensor":
        """What the teacher answers to a batch."""
        from autogreen.tasks import digest

        key, known = digest(batch), self._memory.logits
        if key not in known:
            logits, _ = self.states(batch, ())
            if self._memory.size_bytes + logits.nbytes > self.MAX_BYTES:
                return logits
            known[key] = logits.cpu()
            self._memory.size_bytes += logits.nbytes
        return known[key].to(self._context.device)

    def states(self, batch: Any, blocks: Sequence[str]) -> tuple["Tensor", States]:
        """The same, with the outputs of the named blocks."""
        import torch

        task, teacher = self._context.task, self._context.teacher
        with torch.no_grad(), recorded(teacher, blocks, learning=False) as states:
            return task.logits(task.forward(teacher, batch)), states


@contextmanager
def recorded(model: "nn.Module", blocks: Sequence[str], *, learning: bool) -> Iterator[States]:
    """While it lasts, keep the first floating-point tensor that each block returns: in passes with gradients where
    `learning`, otherwise in those without. Whoever reads them clears them."""
    import torch

    from autogreen.techniques.trace import tensors

    states: States = {}

    def keep(name: str) -> Any:
        def hook(module: "nn.Module", args: Any, output: Any) -> None:
            found = [leaf for leaf in tensors(output) if leaf.is_floating_point()]
            if found and torch.is_grad_enabled() is learning:
                states.setdefault(name, []).append(found[0])

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in blocks]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def matching_blocks(student: "nn.Module", teacher: "nn.Module", example: Any) -> tuple[str, ...]:
    """Blocks (`trace.block_of`; single layers where a model has none) that both models run and whose outputs have the
    same shapes; the last, which gives the model's own outputs, is none.

    Raises:
        RefusedError: no block is left; those that were looked at are named with their shapes.
    """
    import torch
    from torch import nn

    from autogreen.techniques.trace import block_of, call_once, tensors

    layers = [name for name, module in teacher.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    blocks = dict.fromkeys(block for name in layers if (block := block_of(name)) != name) or dict.fromkeys(layers)
    present = dict(student.named_modules())
    shared = [name for name in blocks if name in present]
    args, kwargs = example
    found: list[States] = []
    own: set[int] = set()
    for model in (teacher, student):
        call_once(model.eval(), example)
        with torch.no_grad(), recorded(model, shared, learning=False) as states:
            outputs = tensors(model(*args, **kwargs))
        own |= {id(leaf) for leaf in outputs}
        found.append(states)
    theirs, ours = found
    shapes = {
        name: ([tuple(leaf.shape) for leaf in theirs[name]], [tuple(leaf.shape) for leaf in ours[name]])
        for name in shared
        if name in theirs and name in ours and not any(id(leaf) in own for leaf in theirs[name])
    }
    agreeing = tuple(name for name, (wide, narrow) in shapes.items() if wide == narrow)
    if not agreeing:
        told = "; ".join(f"{name} {narrow} for {wide}" for name, (wide, narrow) in shapes.items())
        raise RefusedError(
            "distillation: hidden needs a block whose outputs are shaped alike in student and teacher, and there is "
            f"none ({told or 'they share no block'}). Set hidden to 0, or leave the channels between blocks unpruned."
        )
    return agreeing
