"""How one model's work is placed and grouped on devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import TYPE_CHECKING, Any, ClassVar

from autogreen.engines import DEGREES, room
from autogreen.errors import ConfigError
from autogreen.techniques import Target, Technique, Unit

if TYPE_CHECKING:
    from torch import nn

    from autogreen.tasks import Inputs

ENGINES = ("eager", "inductor")  # whose artifacts hold a part of a model, and the sums between parts


@dataclass(frozen=True, kw_only=True)
class Parallelism(Technique):
    """threads: operating-system threads within one operation (torch.set_num_threads), of each rank; 1 or more.
    batch: items a call of a replica; only where the workload leaves it free, otherwise the workload's own.
    batch_delay_s: how long the oldest request of a server may wait for its batch to fill, 0 or more; 0: a free replica
    takes what waits. In `server` workloads alone.

    Degrees, 1 each where they are left out; a policy runs on data x tensor x pipeline ranks, one process each, on as
    many GPUs, or on one CPU together:

        data       replicas of the model behind one queue, each with batches of its own
        tensor     every split layer on all ranks: of heads and hidden features each rank has its share, and the shares
                   of what they add up to are summed by an all-reduce (Megatron-LM). Layers that cannot be split stay
                   whole on every rank; convolutions do
        pipeline   the model's operations in so many stages, one after the other, balanced by the time they take; a
                   batch goes through in micro-batches (GPipe)

    micro_batch: examples that a pipeline takes at a time; divides the batch; by default the batch over the stages.

    All are settings of the runtime: they stand in the recipe of the artifact, and the weights stay as they are.

    Source: https://docs.pytorch.org/docs/stable/notes/cpu_threading_torchscript_inference.html (intra-op threads);
    Shoeybi et al., Megatron-LM, 2019; Huang et al., GPipe, NeurIPS 2019.
    """

    ordered: ClassVar[bool] = False

    threads: int = 1
    batch: int | None = None
    batch_delay_s: float | None = None
    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "batch_delay_s" and value is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, not {value!r}")
        if self.batch_delay_s is not None and not 0 <= self.batch_delay_s < inf:
            raise ConfigError(f"batch_delay_s must be 0 or more (seconds), not {self.batch_delay_s!r}")

    @classmethod
    def units(cls, model: "nn.Module", example: "Inputs") -> tuple[Unit, ...]:
        """What tensor parallelism can split. Finding that takes seconds, so `anatomy.survey` is asked for it only where
        a space opens `tensor`."""
        from autogreen.techniques.parallelism.shards import units

        return tuple(units(model, example))

    @classmethod
    def effect(cls, settings: Sequence["Parallelism"], units: Sequence[Unit]) -> dict[str, Any]:
        setting = settings[0] if settings else cls()
        effect: dict[str, Any] = {"threads": setting.threads}
        if setting.batch is not None:
            effect["batch"] = setting.batch
        if setting.batch_delay_s and setting.batch != 1:  # a batch of one never waits to be filled
            effect["batch_delay_s"] = setting.batch_delay_s
        effect |= {name: degree for name in DEGREES if (degree := getattr(setting, name)) > 1}
        if setting.micro_batch is not None and setting.pipeline > 1:
            effect["micro_batch"] = setting.micro_batch
        return effect

    @classmethod
    def refusal(cls, effect: dict[str, Any], units: Sequence[Unit], target: Target) -> str | None:
        degrees = {name: effect[name] for name in DEGREES if name in effect}
        return (
            _too_many(effect["threads"], degrees, target)
            or (_not_carried(degrees, target.engine) if degrees.keys() - {"data"} else None)
            or (_remembering(target.mutated) or _uneven(effect, target.batch) if "pipeline" in degrees else None)
            or (_unsplit(degrees["tensor"], units) if "tensor" in degrees else None)
        )


def _too_many(threads: int, degrees: dict[str, int], target: Target) -> str | None:
    """Why there is no room for the ranks, or none for them to speak with each other."""
    device = target.device
    here = room(device) if target.room is None else target.room
    ranks = prod(degrees.values())
    told = " x ".join(f"{name} {degree}" for name, degree in degrees.items())
    if not device.startswith("cuda"):
        if threads * ranks > here:
            of_ranks = f"threads: {threads}" + (f" on each of {ranks} ranks ({told})" if ranks > 1 else "")
            return f"{of_ranks} on a machine with {here} cores for this process"
        return None
    if ranks == 1:
        return None
    import torch

    if ranks > here:
        return f"{told} wants {ranks} GPUs from {device} on, and there {'is' if here == 1 else 'are'} {here}"
    if degrees.keys() - {"data"} and not torch.distributed.is_nccl_available():
        return f"{told}: this build of PyTorch has no NCCL, over which the ranks would speak"
    return None


def _not_carried(degrees: dict[str, int], engine: str) -> str | None:
    split = " and ".join(sorted(degrees.keys() - {"data"}))
    if len(degrees.keys() - {"data"}) > 1:
        return f"{split} in one policy: stages of shards are not built; give one of them degree 1"
    if engine not in ENGINES:
        return f"{split}: artifacts of the engine {engine!r} are whole models; {' and '.join(ENGINES)} carry parts"
    return None


def _remembering(mutated: tuple[str, ...]) -> str | None:
    if not mutated:
        return None
    return (
        f"pipeline: a call changes what the model keeps ({', '.join(mutated[:3])}), as a decoder does that generates "
        "token by token, and the next call waits for that: no stage would ever work beside another. Take tensor or data"
    )


def _uneven(effect: dict[str, Any], batch: int | None) -> str | None:
    batch = batch or effect.get("batch")
    if batch is None:
        return None
    stages, size = effect["pipeline"], effect.get("micro_batch")
    if size is None:
        return None if batch % stages == 0 else f"micro_batch: a batch of {batch} over {stages} stages leaves a rest"
    return None if batch % size == 0 else f"micro_batch: {size} does not divide the batch of {batch}"


def _unsplit(degree: int, units: Sequence[Unit]) -> str | None:
    if not units:
        return (
            "tensor: nothing of this model can be split: it has no heads and no hidden features between linear layers "
            "(convolutions stay whole). Take data or pipeline"
        )
    uneven = [f"{unit.width} {WORDS[unit.structure]} of {unit.name}" for unit in units if unit.width % degree]
    return f"tensor: {degree} does not divide the {', the '.join(uneven[:3])}" if uneven else None


WORDS = {"head": "heads", "neuron": "features"}
