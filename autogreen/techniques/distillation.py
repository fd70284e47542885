"""Fine-tuning, with the uncompressed model as teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autogreen.errors import ConfigError, EvaluationError, RefusedError
from autogreen.techniques import Context, Target, Technique, Unit
from autogreen.techniques.quantization.schemes import DTYPES, missing_instructions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autogreen.techniques.teacher import States

CHUNK = 2**24  # logits compared at once: 64 MiB in float32


@dataclass(frozen=True, kw_only=True)
class Distillation(Technique):
    """Train the compressed model for `epochs` passes over the training split on

        alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * task loss + hidden * H

    temperature: T, above 0. alpha: in [0, 1]; 0 is plain fine-tuning. For a task whose outputs are values rather than
    logits the soft part is the mean squared error to the teacher's outputs, which is what the formula tends to at
    high T. hidden: weight, 0 or more, of H: over the blocks whose outputs are shaped alike in both models, the mean of
    |student - teacher|^2 / |teacher|^2 (relative, so that one weight suits blocks of every scale). Pruning within
    blocks leaves their outputs as wide as they were; where nothing matches, the policy is refused.

    learning_rate: peak of the schedule. schedule: `one_cycle`, `cosine` (with a warm-up) or `constant`.
    precision: `float32`, or mixed precision in `bf16` or `fp16`: products in 16 bits, weights in float32, and for fp16
    a scaled loss. It makes training cheaper where the device has such instructions, and is refused where it has none.
    patience: epochs in a row without a lower loss on the calibration split, after which training stops; the best
    epoch's weights are kept. None: no early stop.

    student: fraction, in (0, 1]. 1: the compressed model learns. Below 1, the task's own network of that fraction of
    the width learns, after the task has trained it from scratch; it is not pruned as well.

    rounds: with pruning, do it in so many parts, with as even a share of the epochs after each: score, remove, train,
    and again. stop_loss: the constrained form, the fewest weights whose loss is still near enough: the first round
    whose loss on the calibration split is more than `stop_loss` (in the unit of the task's loss) above the teacher's
    is undone and the last. Both stand here, not in the rules of pruning, because they share out the epochs of the
    whole model; without pruning they say nothing.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015; Romero et al., FitNets, ICLR
    2015, and Jiao et al., TinyBERT, EMNLP 2020 (hidden states); Micikevicius et al., Mixed Precision Training, ICLR
    2018; Han et al., Learning both Weights and Connections, NeurIPS 2015 (rounds); Molchanov et al., Pruning
    Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017 (rounds; bounded loss); Renda et al.,
    Comparing Rewinding and Fine-tuning, ICLR 2020 (every round has a whole schedule of its own).
    """

    ordered: ClassVar[bool] = False

    epochs: int = 1
    temperature: float = 4.0
    alpha: float = 0.5
    hidden: float = 0.0
    learning_rate: float = 1e-3
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    patience: int | None = None
    student: float = 1.0
    rounds: int = 1
    stop_loss: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ConfigError(f"epochs must be 0 or more, not {self.epochs!r}")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be in [0, 1], not {self.alpha!r}")
        if not 0 < self.student <= 1:
            raise ConfigError(f"student must be in (0, 1], not {self.student!r}; 1 is the compressed model itself")
        for name in ("temperature", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)!r}")
        for name in ("hidden", "stop_loss"):
            if (value := getattr(self, name)) is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{name} must be 0 or more, not {value!r}")
        for name in ("rounds", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, not {value!r}")

    @classmethod
    def effect(cls, settings: Sequence["Distillation"], units: Sequence[Unit]) -> dict[str, Any] | None:
        if not settings:
            return None
        setting = settings[0]
        if setting.epochs == 0:  # a smaller student may also be taken as the task trained it
            return {"epochs": 0, "student": setting.student} if setting.student < 1 else None
        effect: dict[str, Any] = {
            "epochs": setting.epochs,
            "alpha": setting.alpha,
            "learning_rate": setting.learning_rate,
        }
        if setting.alpha > 0:  # without a soft part its temperature does nothing
            effect["temperature"] = setting.temperature
        for other in fields(cls):
            value = getattr(setting, other.name)
            if other.name not in ("epochs", "alpha", "learning_rate", "temperature") and value != other.default:
                effect[other.name] = value
        return effect

    @classmethod
    def settle(cls, effect: dict[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
        if "pruning" not in parts:
            return {key: value for key, value in effect.items() if key not in ("rounds", "stop_loss")}
        if "student" in effect:
            raise RefusedError(
                f"distillation: student {effect['student']} is a smaller network of the task's own, and what pruning "
                "would remove are channels of the full one. Use one of the two."
            )
        if effect.get("rounds", 1) > effect["epochs"]:
            raise RefusedError(
                f"distillation: {effect['rounds']} rounds of pruning need an epoch each, and there are "
                f"{effect['epochs']} epochs. Raise epochs or lower rounds."
            )
        return effect

    @classmethod
    def refusal(cls, effect: dict[str, Any], units: Sequence[Unit], target: Target) -> str | None:
        precision = effect.get("precision", "float32")
        if precision != "float32" and (reason := missing_instructions(DTYPES[precision], target.device)):
            return f"precision {precision!r}: {reason}"
        return None

    @classmethod
    def of_round(cls, effect: dict[str, Any], number: int) -> dict[str, Any]:
        """What is trained in round `number`, from 1: as even a share of the epochs, the later rounds the longer."""
        rounds = effect.get("rounds", 1)
        first, last = ((effect["epochs"] * place) // rounds for place in (number - 1, number))
        return {**effect, "epochs": last - first, "first_epoch": first}

    @classmethod
    def excess_loss(cls, model: "nn.Module", context: Context) -> float:
        """Mean loss on the calibration split above the teacher's, in the unit of the task's loss.

        Raises:
            EvaluationError: there is no such split, it holds NaN, or a loss is not finite.
        """
        import math

        from autogreen.tasks.training import calibration_loss, refuse_broken

        if "teacher loss" not in context.cache:
            refuse_broken(context.task.batches("calibration"))
            teacher = context.teacher.to(context.device)
            context.cache["teacher loss"] = calibration_loss(teacher, context.task, context.device, context.check)
        excess = calibration_loss(model, context.task, context.device, context.check) - context.cache["teacher loss"]
        if not math.isfinite(excess):
            raise EvaluationError(
                f"the loss on the calibration split is {excess + context.cache['teacher loss']}, the teacher's "
                f"{context.cache['teacher loss']}: stop_loss can tell nothing from that."
            )
        return float(excess)

    @classmethod
    def apply(cls, effect: dict[str, Any] | None, model: "nn.Module", context: Context) -> "nn.Module":
        if not effect or not effect["epochs"]:
            return model
        from autogreen.tasks.training import train
        from autogreen.techniques.teacher import Teacher, matching_blocks, recorded

        task, alpha, temperature = context.task, effect["alpha"], effect.get("temperature", 1.0)
        hidden = effect.get("hidden", 0.0)
        teacher = Teacher(context) if alpha or hidden else None
        blocks = matching_blocks(model, context.teacher, context.example) if hidden else ()

        def loss(outputs: Any, batch: Any) -> "Tensor":
            hard: Tensor = (1 - alpha) * task.loss(outputs, batch)
            if teacher is None:
                return hard
            logits, theirs = teacher.states(batch, blocks) if blocks else (teacher.logits(batch), {})
            soft = alpha * soft_loss(task.logits(outputs), logits, temperature, task.outputs) if alpha else 0.0
            inner = hidden * hidden_loss(ours, theirs) if blocks else 0.0
            ours.clear()
            total: Tensor = hard + soft + inner
            return total

        with recorded(model, blocks, learning=True) as ours:
            return train(
                model,
                task,
                loss,
                epochs=effect["epochs"],
                learning_rate=effect["learning_rate"],
                seed=context.seed,
                device=context.device,
                check=context.check,
                precision=effect.get("precision", "float32"),
                schedule=effect.get("schedule", "one_cycle"),
                patience=effect.get("patience"),
                first_epoch=effect.get("first_epoch", 0),
                look=context.look,
            )


def soft_loss(student: "Tensor", teacher: "Tensor", temperature: float, outputs: str) -> "Tensor":
    """Distillation loss of two [..., classes] tensors of logits, averaged over all but the last axis: T² · KL.

    Over a large vocabulary it goes `CHUNK` logits at a time and computes each chunk once more on the way back, so that
    no whole copy of [n, tokens, vocabulary] is kept for the gradient.
    """
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    if outputs == "values":
        return F.mse_loss(student, teacher.to(student.dtype))
    classes = student.shape[-1]

    def divergence(ours: "Tensor", theirs: "Tensor") -> "Tensor":
        return F.kl_div(
            F.log_softmax(ours / temperature, dim=-1),
            F.log_softmax(theirs.to(ours.dtype) / temperature, dim=-1),
            reduction="sum",
            log_target=True,
        )

    ours, theirs = student.reshape(-1, classes), teacher.reshape(-1, classes)
    at_once = max(1, CHUNK // classes)
    if len(ours) <= at_once:
        total = divergence(ours, theirs)
    else:
        total = ours.new_zeros(())
        for pair in zip(torch.split(ours, at_once), torch.split(theirs, at_once), strict=True):
            total = total + checkpoint(divergence, *pair, use_reentrant=False, preserve_rng_state=False)
    return total * (temperature**2 / len(ours))


def hidden_loss(student: "States", teacher: "States") -> "Tensor":
    """Mean over blocks (and the times that each ran) of |student - teacher|² / |teacher|²: 0 for equals, 1 for a
    student that answers 0."""
    import torch

    losses = []
    for name, theirs in teacher.items():
        for our, their in zip(student[name], theirs, strict=True):
            known = their.float()
            size = known.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
            losses.append((our.float() - known).square().sum() / size)
    return torch.stack(losses).mean()
