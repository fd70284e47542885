"""Workload: how the model is used while it is measured. Results of different workloads are never compared."""

from dataclasses import dataclass
from typing import Any, Literal

from autogreen.errors import ConfigError
from autogreen.measurement import Measurement
from autogreen.queueing import Load

_DEFAULT: Any = object()  # None has a meaning of its own


@dataclass(frozen=True, kw_only=True)
class Workload:
    """kind: `single`, one request at a time; `offline`, batches as fast as possible; `server`, requests of one example
    that come by themselves, a Poisson process, and wait in a queue.
    batch: examples a call; 1 in `single`; in `offline` 64 by default, None leaves it to the policies
    (parallelism.batch), as `server` always does.
    rate_per_s: requests a second, above 0. p95_s: seconds within which 95 of 100 have to be answered, from when they
    came, above 0. Both in `server` alone.

    Source: MLPerf Inference scenarios (Reddi et al., ISCA 2020): single stream, offline and server.
    """

    kind: Literal["single", "offline", "server"] = "offline"
    batch: int | None = _DEFAULT
    rate_per_s: float | None = None
    p95_s: float | None = None

    def __post_init__(self) -> None:
        if self.batch is _DEFAULT:
            object.__setattr__(self, "batch", {"single": 1, "offline": 64, "server": None}[self.kind])
        if self.kind == "single" and self.batch not in (None, 1):
            raise ConfigError(f"batch must be 1 (or left out) in a single workload, not {self.batch!r}")
        if self.kind == "server" and self.batch is not None:
            raise ConfigError(
                f"batch is {self.batch!r}, and how many requests of a server go together is the policies' to choose; "
                "write it as space.parallelism.batch"
            )
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch must be 1 or more, or null to leave it to the policies, not {self.batch!r}")
        for name, unit in (("rate_per_s", "requests a second"), ("p95_s", "seconds")):
            value = getattr(self, name)
            if self.kind != "server" and value is not None:
                raise ConfigError(f"{name} belongs to a server workload, and this one is {self.kind}")
            if self.kind == "server" and (value is None or not 0 < value < float("inf")):
                raise ConfigError(f"{name} must be a number above 0 ({unit}) in a server workload, not {value!r}")

    def __str__(self) -> str:
        return f"Workload({', '.join(f'{key}={value!r}' for key, value in self.to_json().items())})"

    @property
    def fixed_batch(self) -> int | None:
        """The batch that every policy has, or None where policies choose."""
        return 1 if self.kind == "single" else self.batch

    def load(self, batch: int, batch_delay_s: float) -> Load | None:
        """What a server with these batches has to bear; None where nobody waits in a queue."""
        if self.rate_per_s is None or self.p95_s is None:
            return None
        return Load(rate_per_s=self.rate_per_s, p95_s=self.p95_s, batch=batch, batch_delay_s=batch_delay_s)

    def excess(self, measurement: Measurement | None) -> dict[str, float]:
        """By how many seconds the limit is missed (0 or less: it holds); nothing where there is no limit, or nothing
        was measured. A queue that grows without end misses any limit, however long it was looked at: by its share of
        the limit at least."""
        if self.p95_s is None or measurement is None or measurement.served is None:
            return {}
        served = measurement.served
        reached_s = served.p95_s.mean if served.stable else max(served.p95_s.mean, served.utilization * self.p95_s)
        return {"p95_s": reached_s - self.p95_s}

    def to_json(self) -> dict[str, Any]:
        """What its kind has, as plain data."""
        named = ("rate_per_s", "p95_s") if self.kind == "server" else ("batch",)
        return {"kind": self.kind, **{name: getattr(self, name) for name in named}}
