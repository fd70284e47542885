"""The one training loop: from scratch for a task's own networks, fine-tuning and distillation for policies.

batch -> forward (16 bits where asked) -> loss (float32) -> gradients (scaled for fp16) -> float32 weights
epoch -> calibration loss -> the best weights so far, or patience is at its end
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from autogreen.errors import EvaluationError
from autogreen.tasks import Task, count, plain, rows, to_device

Precision = Literal["float32", "bf16", "fp16"]
Schedule = Literal["one_cycle", "cosine", "constant"]

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
MAX_SKIPPED = 20  # steps in a row: the scale starts at 2^16 and halves with each, so by then it is below 1
WARM_UP = 0.1  # of the steps, before the cosine


def train(
    model: nn.Module,
    task: Task,
    loss: Callable[[Any, Any], Tensor],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    device: str,
    check: Callable[[], None] = lambda: None,
    precision: Precision = "float32",
    schedule: Schedule = "one_cycle",
    patience: int | None = None,
    first_epoch: int = 0,
    look: Callable[[nn.Module, int], None] = lambda model, epochs: None,
) -> nn.Module:
    """Train in place with AdamW; return the model in inference mode, every weight the same object as before.

    loss: (outputs, batch) -> scalar; outputs come in float32. learning_rate: the schedule's peak. seed: data order,
    dropout and whatever else torch draws. check: called before every step; raises when time is up.

    precision: what matrix products are computed in. bf16 and fp16 are mixed precision: autocast over float32 weights.
    Weights that are stored in 16 bits are raised to float32 here and cast back at the end: steps of 1e-3 of a weight
    are lost in bfloat16. fp16 scales the loss; a step that overflows is skipped and the scale halved, and only
    `MAX_SKIPPED` such steps in a row, or a training without any other, are an error. Processors without 16-bit
    instructions emulate them: right, and slower than float32.

    schedule: `one_cycle`; `cosine`, from a linear warm-up over a tenth of the steps down to 0; `constant`.

    patience: stop after so many epochs in a row that did not lower the task's loss on the calibration split, and keep
    the best epoch's weights. None: train to the end and keep the last. A one-cycle rate falls late, and so does the
    loss: a short patience goes better with the other two.

    first_epoch: number of the first epoch, for a training in several parts: each shuffles and augments anew.

    look: shown the model in inference mode after each epoch, and how many there were, those before the first counted;
    it may raise to end the training.

    Source: Micikevicius et al., Mixed Precision Training, ICLR 2018 (float32 weights, loss scaling); Smith and Topin,
    Super-Convergence, 2018 (one cycle); Loshchilov and Hutter, SGDR, ICLR 2017 (cosine); Goyal et al., Accurate, Large
    Minibatch SGD, 2017 (warm-up); Loshchilov and Hutter, ICLR 2019 (AdamW); Prechelt, Early Stopping - But When?, 1998.

    Raises:
        EvaluationError: the loss is not finite, the train split gives no batch, or `patience` finds no calibration
            batch or one with NaN.
    """
    if patience is not None:
        refuse_broken(task.batches("calibration"))
    torch.manual_seed(seed + 1_000_003 * first_epoch)  # torch's CPU generator reads the lower 32 bits only
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(True)  # frozen as a whole, for inference; single frozen layers stay so
    stored = _raise_to_float32(model.to(device))
    feeding = model.register_forward_pre_hook(_float32_inputs, with_kwargs=True) if stored else None
    if not any(_overruns(module) for module in model.modules()) or device != "cpu":
        _lay_out(model, torch.channels_last)  # convolutions run faster so
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2, fused=True)
    steps = max(2, epochs * count(task.batches("train", first_epoch)))
    rate = _rate(schedule, optimizer, learning_rate, steps)
    scaler = torch.amp.GradScaler(device.partition(":")[0], enabled=precision == "fp16")
    best = _Best()
    seen = moved = skipped = 0
    for epoch in range(first_epoch, first_epoch + epochs):
        for given in task.batches("train", epoch):
            check()
            seen += 1
            batch = to_device(given, device)
            with _autocast(device, precision):
                outputs = task.forward(model, batch)
            value = loss(_float32(outputs), batch)
            if finite := bool(torch.isfinite(value)):
                optimizer.zero_grad(set_to_none=True)
                scale = scaler.get_scale()
                scaler.scale(value).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
                scaler.update()
                finite = scaler.get_scale() >= scale  # it fell where a gradient overflowed and the step was left out
            elif not scaler.is_enabled():
                raise EvaluationError(f"the training loss is {value.item()} in epoch {epoch + 1}; lower learning_rate.")
            skipped = 0 if finite else skipped + 1
            if skipped > MAX_SKIPPED:
                raise EvaluationError(
                    f"{skipped} steps in a row overflowed in fp16, up to epoch {epoch + 1} (the loss is "
                    f"{value.item():.4g}); use bf16 or float32, or lower learning_rate."
                )
            moved += finite
            if finite and rate.last_epoch < steps:  # a loader may give more batches than it promised
                rate.step()
        if patience is not None:
            reached = calibration_loss(model, task, device, check)
            if not math.isfinite(reached):
                raise EvaluationError(
                    f"the calibration loss is {reached} after epoch {epoch + 1}; lower learning_rate."
                )
            best.offer(reached, model)
            if best.waited == patience:
                break
        look(model.eval(), epoch + 1)
        model.train()
    if epochs and not seen:
        raise EvaluationError("the train split gave no batch: there is nothing to train on.")
    if epochs and not moved:
        raise EvaluationError(f"all {seen} steps overflowed in fp16; use bf16 or float32, or train longer.")
    best.restore(model)
    if feeding is not None:
        feeding.remove()
    optimizer.zero_grad(set_to_none=True)  # gradients would be copied and kept with the model
    for tensor, dtype in stored:
        tensor.data = tensor.data.to(dtype)
    _lay_out(model, torch.contiguous_format)
    return model.eval()


def calibration_loss(model: nn.Module, task: Task, device: str, check: Callable[[], None] = lambda: None) -> float:
    """Mean of the task's loss over the examples of the calibration split, in inference mode; not always finite.

    Raises:
        EvaluationError: the split gives no batch.
    """
    model.eval()
    total, examples = 0.0, 0
    with torch.no_grad():  # not torch.inference_mode: what a module keeps from that cannot be trained with
        for given in task.batches("calibration"):
            check()
            batch = to_device(given, device)
            here = rows(task.inputs(batch))
            total += task.loss(_float32(task.forward(model, batch)), batch).item() * here
            examples += here
    if not examples:
        raise EvaluationError("the calibration split gave no batch: patience and stop_loss need its loss.")
    return total / examples


def refuse_broken(batches: Iterable[Any]) -> None:
    """Look at calibration data before anything is trained by it.

    Raises:
        EvaluationError: there is no batch, or one holds NaN.
    """
    number = 0
    for number, batch in enumerate(batches, start=1):
        for leaf in tree_leaves(plain(batch)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.isnan().any():
                raise EvaluationError(f"calibration batch {number} holds NaN; mend the data of the calibration split.")
    if not number:
        raise EvaluationError("the calibration split gave no batch: patience and stop_loss need its loss.")


class _Best:
    """The weights of the epoch with the least calibration loss, in the host's memory."""

    def __init__(self) -> None:
        self.loss = math.inf
        self.waited = 0
        self._kept: list[Tensor] = []

    def offer(self, loss: float, model: nn.Module) -> None:
        self.waited += 1
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            self._kept = [tensor.detach().to("cpu", copy=True) for tensor in _tensors(model)]

    def restore(self, model: nn.Module) -> None:
        with torch.no_grad():
            for tensor, kept in zip(_tensors(model), self._kept, strict=False):
                tensor.copy_(kept)


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    return chain(model.parameters(), model.buffers())


def _raise_to_float32(model: nn.Module) -> list[tuple[Tensor, torch.dtype]]:
    """Give 16-bit weights 32 bits; return which they were. Their data is exchanged, the objects stay: hooks on a
    gradient (they keep pruned weights at zero) live on them."""
    stored = [(tensor, tensor.dtype) for tensor in _tensors(model) if tensor.dtype in HALF.values()]
    for tensor, _ in stored:
        tensor.data = tensor.data.float()
    return stored


def _overruns(module: nn.Module) -> bool:
    """Whether oneDNN would write past a buffer when it takes this layer's gradient in channels-last: wrong gradients at
    best, a broken heap at worst. So it does for strided convolutions of one pixel with fewer inputs than a vector
    register holds: 8 with AVX2, 16 with AVX-512.

    Source: https://github.com/uxlfoundation/oneDNN/issues/6035 (open when this was written; in torch 2.11 and 2.13).
    """
    if not isinstance(module, nn.Conv2d):
        return False
    return set(module.kernel_size) == {1} and max(module.stride) > 1 and module.in_channels // module.groups < 16


def _lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    for tensor in _tensors(model):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=layout)


def _float32(tree: Any) -> Any:
    """Every 16-bit tensor of a tree in float32, where a loss loses no digits."""
    if not any(isinstance(leaf, Tensor) and leaf.dtype in HALF.values() for leaf in tree_leaves(plain(tree))):
        return tree
    if plain(tree) is not tree:
        return type(tree)(**_float32(plain(tree)))
    return tree_map(
        lambda leaf: leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in HALF.values() else leaf, tree
    )


def _float32_inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return _float32(args), _float32(kwargs)


def _autocast(device: str, precision: Precision) -> AbstractContextManager[Any]:
    return nullcontext() if precision == "float32" else torch.autocast(device.partition(":")[0], HALF[precision])


def _rate(
    schedule: Schedule, optimizer: torch.optim.Optimizer, peak: float, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate of steps 0 to `steps`."""
    if schedule == "one_cycle":
        rise = max(0.2, 2 / (steps + 1))  # a rise of no step at all would divide by zero
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps + 1, pct_start=rise)
    warm = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        if schedule == "constant":
            return 1.0
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
