"""How one model's work is placed and grouped on a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from autogreen.engines import cores
from autogreen.errors import ConfigError
from autogreen.techniques import Target, Technique, Unit


@dataclass(frozen=True, kw_only=True)
class Parallelism(Technique):
    """threads: operating-system threads within one operation (torch.set_num_threads), 1 or more.
    batch: items a call; only where the workload leaves it free, otherwise the workload's own.
    batch_delay_s: how long the oldest request of a server may wait for its batch to fill, 0 or more; 0: a free replica
    takes what waits. In `server` workloads alone.

    All are settings of the runtime: they stand in the recipe of the artifact, and the model stays as it is.

    Source: https://docs.pytorch.org/docs/stable/notes/cpu_threading_torchscript_inference.html (intra-op threads).
    """

    ordered: ClassVar[bool] = False

    threads: int = 1
    batch: int | None = None
    batch_delay_s: float | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads must be 1 or more, not {self.threads!r}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch must be 1 or more, not {self.batch!r}")
        if self.batch_delay_s is not None and not 0 <= self.batch_delay_s < inf:
            raise ConfigError(f"batch_delay_s must be 0 or more (seconds), not {self.batch_delay_s!r}")

    @classmethod
    def effect(cls, settings: Sequence["Parallelism"], units: Sequence[Unit]) -> dict[str, Any]:
        setting = settings[0] if settings else cls()
        effect: dict[str, Any] = {"threads": setting.threads}
        if setting.batch is not None:
            effect["batch"] = setting.batch
        if setting.batch_delay_s and setting.batch != 1:  # a batch of one never waits to be filled
            effect["batch_delay_s"] = setting.batch_delay_s
        return effect

    @classmethod
    def refusal(cls, effect: dict[str, Any], units: Sequence[Unit], target: Target) -> str | None:
        if effect["threads"] > cores():
            return f"threads: {effect['threads']} on a machine with {cores()} cores for this process"
        return None
