"""What is asked of a worker and what comes back: plain frozen values with an exact JSON round trip."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from autogreen.engines import Kernel, Recipe
from autogreen.fidelity import Rung, Stakes
from autogreen.floor import Work
from autogreen.layerwork import LayerWork
from autogreen.measurement import Interval, Measurement
from autogreen.policy import Effect


@dataclass(frozen=True, kw_only=True)
class Request:
    """Evaluate one effect.

    start: `baseline`, the task's model, or `scratch`, its network of half the width trained from scratch.
    weights: file of what was trained for this effect before; it is loaded, and nothing is trained.
    reference: key of the artifact to measure beside and to pair scores with, or None.
    max_loss: stop without spending joules on measuring when the paired loss is above this beyond its interval.
    stakes: what it must hold its own against while it trains; None: it is trained to the end.
    limit_s, limit_j: hard caps on time and energy.
    """

    effect: Effect
    start: Literal["baseline", "scratch"] = "baseline"
    seed: int = 0
    weights: Path | None = None
    reference: str | None = None
    max_loss: float | None = None
    stakes: Stakes | None = None
    limit_s: float | None = None
    limit_j: float | None = None

    @property
    def key(self) -> str:
        """Names the artifact and the scores on disk: one effect, start and seed."""
        return f"{self.effect.id}-{self.start}-s{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One policy, really applied.

    status: `measured`; `gated`: its quality was hopeless and no joules were spent on measuring it; `stopped`: while it
    trained, the front was seen to be out of reach (see `fidelity`). Of one that was stopped, quality and loss are those
    expected at its end, and energy is that of the untrained weights.
    quality: mean score on validation. loss: reference minus this, paired per example; None for a reference.
    energy_per_item_j, latency_s: from `measurement`; ratio: energy per item over the reference's, interleaved.
    kernels: matrix kernels of one call, counted. layers: the one of them that ran each convolution and linear layer.
    layer_work: of the same layers, what each is and does; empty where the engine or an older study does not tell.
    work: FLOPs and bytes of one call, at least. times_above_floor: joules over the least that this work can cost on the
    device (see `floor`), 1 or more within the intervals; None where nothing bounds it.
    size_bytes: the artifact's. memory_bytes: weights and the peak of what one call allocates; None where the engine
    does not tell.
    communication: of a policy on several ranks, the share of a call's time, from 0 to 1, in collectives and in waiting
    for other ranks, mean over the ranks of a replica; None where one rank does all.
    rungs: its loss while it trained, where that was looked at. saved_j: by stopping it, about.
    seconds, joules: by phase. spent_j: all that this evaluation cost, training and compilers included.
    host: name of the machine that ran it, whose board the measurement's boundary names; empty in older studies.
    """

    key: str
    effect: Effect
    start: str
    seed: int
    status: Literal["measured", "gated", "stopped"]
    quality: Interval
    loss: Interval | None = None
    ratio: Interval | None = None
    measurement: Measurement | None = None
    size_bytes: int | None = None
    memory_bytes: int | None = None
    recipe: Recipe | None = None
    kernels: tuple[Kernel, ...] = ()
    layers: Mapping[str, str] = field(default_factory=dict)
    layer_work: Mapping[str, LayerWork] = field(default_factory=dict)
    work: Work | None = None
    times_above_floor: float | None = None
    communication: float | None = None
    rungs: tuple[Rung, ...] = ()
    saved_j: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    joules: Mapping[str, float] = field(default_factory=dict)
    spent_j: float = 0.0
    host: str = ""

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["effect"] = self.effect.parts
        data["measurement"] = None if self.measurement is None else self.measurement.to_json()
        data["layer_work"] = {name: list(work) for name, work in self.layer_work.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evaluation":
        def interval(name: str) -> Interval | None:
            return None if data[name] is None else Interval(**data[name])

        return cls(
            **{
                **data,
                "effect": Effect.of(data["effect"]),
                "quality": Interval(**data["quality"]),
                "loss": interval("loss"),
                "ratio": interval("ratio"),
                "measurement": None if data["measurement"] is None else Measurement.from_json(data["measurement"]),
                "recipe": None if data["recipe"] is None else Recipe(**data["recipe"]),
                "kernels": tuple(Kernel(**kernel) for kernel in data["kernels"]),
                "layer_work": {name: LayerWork(*work) for name, work in data.get("layer_work", {}).items()},
                "rungs": tuple(Rung(**{**rung, "loss": Interval(**rung["loss"])}) for rung in data.get("rungs", ())),
                "work": None if data.get("work") is None else Work(**data["work"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Published:
    """A front member measured afresh and judged once on the test split. times_above_floor: as of an `Evaluation`."""

    key: str
    test: Interval
    test_loss: Interval
    ratio: Interval
    measurement: Measurement
    times_above_floor: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    joules: Mapping[str, float] = field(default_factory=dict)
    spent_j: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "measurement": self.measurement.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Published":
        intervals = {name: Interval(**data[name]) for name in ("test", "test_loss", "ratio")}
        return cls(**{**data, **intervals, "measurement": Measurement.from_json(data["measurement"])})
