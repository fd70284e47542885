"""Fine-tuning, with the uncompressed model as teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autogreen.errors import ConfigError
from autogreen.techniques import Context, Technique, Unit

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Distillation(Technique):
    """Train the compressed model for `epochs` passes over the training split on

        alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * task loss

    temperature: T, above 0. alpha: in [0, 1]; 0 is plain fine-tuning. learning_rate: peak of a one-cycle schedule.
    For a task whose outputs are values rather than logits the soft part is the mean squared error to the teacher's
    outputs, which is what the formula tends to at high T.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015.
    """

    ordered: ClassVar[bool] = False

    epochs: int = 1
    temperature: float = 4.0
    alpha: float = 0.5
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ConfigError(f"epochs must be 0 or more, not {self.epochs!r}")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be in [0, 1], not {self.alpha!r}")
        for name in ("temperature", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)!r}")

    @classmethod
    def effect(cls, settings: Sequence["Distillation"], units: Sequence[Unit]) -> dict[str, Any] | None:
        if not settings or settings[0].epochs == 0:
            return None
        setting = settings[0]
        effect: dict[str, Any] = {
            "epochs": setting.epochs,
            "alpha": setting.alpha,
            "learning_rate": setting.learning_rate,
        }
        if setting.alpha > 0:  # without a soft part its temperature does nothing
            effect["temperature"] = setting.temperature
        return effect

    @classmethod
    def apply(cls, effect: dict[str, Any] | None, model: "nn.Module", context: Context) -> "nn.Module":
        if effect is None:
            return model
        from autogreen.tasks.training import train

        task, alpha, temperature = context.task, effect["alpha"], effect.get("temperature", 1.0)
        teacher = _Teacher(context) if alpha > 0 else None

        def loss(outputs: Any, batch: Any) -> "Tensor":
            hard = task.loss(outputs, batch)
            if teacher is None:
                return hard
            soft = soft_loss(task.logits(outputs), teacher(batch), temperature, task.outputs)
            mixed: Tensor = alpha * soft + (1 - alpha) * hard
            return mixed

        return train(
            model,
            task,
            loss,
            epochs=effect["epochs"],
            learning_rate=effect["learning_rate"],
            seed=context.seed,
            device=context.device,
            check=context.check,
        )


def soft_loss(student: "Tensor", teacher: "Tensor", temperature: float, outputs: str) -> "Tensor":
    """Distillation loss of two [..., classes] tensors of logits, averaged over all but the last axis: T² · KL."""
    import torch.nn.functional as F

    if outputs == "values":
        return F.mse_loss(student, teacher)
    classes = student.shape[-1]
    divergence = F.kl_div(
        F.log_softmax(student.reshape(-1, classes) / temperature, dim=-1),
        F.log_softmax(teacher.reshape(-1, classes) / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


class _Teacher:
    """The teacher's outputs, remembered by the content of the batch: right for any loader, shuffled or augmented."""

    MAX_BYTES = 2**30

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[str, Tensor] = context.cache.setdefault("teacher", {})
        context.teacher.to(context.device).eval()

    def __call__(self, batch: Any) -> "Tensor":
        import torch

        from autogreen.tasks import digest

        key = digest(batch)
        if key not in self._known:
            with torch.no_grad():
                logits = self._context.task.logits(self._context.task.forward(self._context.teacher, batch))
            if (len(self._known) + 1) * logits.nbytes > self.MAX_BYTES:
                return logits
            self._known[key] = logits
        return self._known[key]
