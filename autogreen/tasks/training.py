"""The one training loop: from scratch for a task's own networks, fine-tuning and distillation for policies."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autogreen.errors import EvaluationError
from autogreen.tasks import Task, count, to_device


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
) -> nn.Module:
    """Train in place with AdamW on a one-cycle schedule; return the model in inference mode.

    loss: (outputs, batch) -> scalar. learning_rate: the schedule's peak. seed: data order, dropout and whatever else
    torch draws. check: called before every step; raises when time is up.

    Source: Smith and Topin, Super-Convergence, 2018 (schedule); Loshchilov and Hutter, ICLR 2019 (AdamW).

    Raises:
        EvaluationError: the loss is not finite, or the train split gives no batch.
    """
    torch.manual_seed(seed)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(True)  # frozen as a whole, for inference; single frozen layers stay so
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # convolutions run faster so
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2, fused=True)
    steps = max(2, epochs * count(task.batches("train", 0)))
    rise = max(0.2, 2 / (steps + 1))  # a rise of no step at all would divide by zero
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=rise)
    trained = 0
    for epoch in range(epochs):
        for given in task.batches("train", epoch):
            check()
            trained += 1
            batch = to_device(given, device)
            value = loss(task.forward(model, batch), batch)
            if not torch.isfinite(value):
                raise EvaluationError(f"the training loss is {value.item()} in epoch {epoch + 1}; lower learning_rate.")
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if schedule.last_epoch < steps:  # a loader may give more batches than it promised
                schedule.step()
    if epochs and not trained:
        raise EvaluationError("the train split gave no batch: there is nothing to train on.")
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval()
