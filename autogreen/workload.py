"""Workload: how the model is used while it is measured. Results of different workloads are never compared."""

from dataclasses import dataclass
from typing import Any, Literal

from autogreen.errors import ConfigError

_DEFAULT: Any = object()  # None has a meaning of its own


@dataclass(frozen=True, kw_only=True)
class Workload:
    """kind: `single`, one request at a time; `offline`, batches as fast as possible.
    batch: items a call; 1 in `single`; in `offline` 64 by default, None leaves it to the policies (parallelism.batch).

    Source: MLPerf Inference scenarios (Reddi et al., ISCA 2020): single stream and offline.
    """

    kind: Literal["single", "offline"] = "offline"
    batch: int | None = _DEFAULT

    def __post_init__(self) -> None:
        if self.batch is _DEFAULT:
            object.__setattr__(self, "batch", 1 if self.kind == "single" else 64)
        if self.kind == "single" and self.batch not in (None, 1):
            raise ConfigError(f"batch must be 1 (or left out) in a single workload, not {self.batch!r}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch must be 1 or more, or null to leave it to the policies, not {self.batch!r}")

    @property
    def fixed_batch(self) -> int | None:
        """The batch that every policy has, or None where policies choose."""
        return 1 if self.kind == "single" else self.batch
