"""How one model's work is placed and grouped on a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from autogreen.engines import cores
from autogreen.errors import ConfigError
from autogreen.techniques import Target, Technique, Unit


@dataclass(frozen=True, kw_only=True)
class Parallelism(Technique):
    """threads: operating-system threads within one operation (torch.set_num_threads), 1 or more.
    batch: items a call; only where the workload leaves it free, otherwise the workload's own.

    Both are settings of the runtime: they stand in the recipe of the artifact, and the model stays as it is.

    Source: https://docs.pytorch.org/docs/stable/notes/cpu_threading_torchscript_inference.html (intra-op threads).
    """

    ordered: ClassVar[bool] = False

    threads: int = 1
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads must be 1 or more, not {self.threads!r}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch must be 1 or more, not {self.batch!r}")

    @classmethod
    def effect(cls, settings: Sequence["Parallelism"], units: Sequence[Unit]) -> dict[str, Any]:
        setting = settings[0] if settings else cls()
        effect = {"threads": setting.threads}
        return effect if setting.batch is None else {**effect, "batch": setting.batch}

    @classmethod
    def refusal(cls, effect: dict[str, Any], units: Sequence[Unit], target: Target) -> str | None:
        if effect["threads"] > cores():
            return f"threads: {effect['threads']} on a machine with {cores()} cores for this process"
        return None
