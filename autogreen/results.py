"""Results: everything a study has found so far, as frozen values. Fronts, pages and mirrors are made from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from autogreen.carbon import Carbon
from autogreen.evaluation import Evaluation, Published
from autogreen.measurement import Interval
from autogreen.meters import Tier


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One policy that the search tried. `params` are the knobs that varied, in plain values.

    state: `measured`; `gated` (hopeless quality, never measured); `stopped` (while it trained); `failed` (`reason`
    tells); `waiting` (not finished).
    feasible: every constraint holds.
    """

    number: int
    state: Literal["measured", "gated", "stopped", "failed", "waiting"]
    params: Mapping[str, Any]
    policy: Mapping[str, Any]
    evaluation: Evaluation | None = None
    feasible: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What the search itself cost, training and compilers included. seconds: by phase, `total` among them. joules: by
    purpose: probing, training, compiling, scoring, measuring; `wasted` on trials that failed or were stopped."""

    energy_j: float
    seconds: Mapping[str, float]
    joules: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        return self.seconds.get("total", 0.0)

    @property
    def words(self) -> str:
        """Where the joules went, as far as it is known: the largest share first."""
        known = sorted(self.joules.items(), key=lambda found: -found[1])
        return ", ".join(f"{name} {joules / self.energy_j:.0%}" for name, joules in known if joules > 0)


@dataclass(frozen=True, kw_only=True)
class Results:
    """item: what is counted. baseline: the reference in its best runtime; plain: in plain use (eager). controls: by
    name. published: by evaluation key; seeds: by the same, the trainings from other seeds. reference_point: (loss,
    energy ratio), and seconds where latency is an objective, of the hypervolume; fixed when the study began. max_loss:
    the quality floor, as a loss against the baseline, or None. experiment: as resolved. fingerprint: what identifies
    the study, by name. between: of two evaluation keys, by how much the first loses more than the second on the same
    validation examples; None where the scores are gone. data: digest of what identifies the task's model, data and
    code; empty in studies from before it was kept.
    """

    study: str
    experiment: Mapping[str, Any]
    task: str
    workload: Mapping[str, Any]
    hardware: Mapping[str, Any]
    item: str
    tier: Tier
    boundary: str
    baseline: Evaluation
    plain: Evaluation
    controls: Mapping[str, Evaluation]
    trials: tuple[TrialResult, ...]
    published: Mapping[str, Published]
    seeds: Mapping[str, tuple[Published, ...]] = field(default_factory=dict, kw_only=True)
    reference_point: tuple[float, ...]
    max_loss: float | None
    bill: Bill
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    between: Callable[[str, str], Interval | None] = lambda worse, better: None
    data: str = ""

    @property
    def carbon(self) -> Carbon | None:
        """The intensity that the experiment states; None: no emission is told."""
        return Carbon.of(self.experiment)

    @property
    def by_latency(self) -> bool:
        """Whether latency is an objective, beside quality and energy."""
        return "latency" in self.experiment.get("objectives", ())

    @property
    def stopped(self) -> tuple[TrialResult, ...]:
        return tuple(trial for trial in self.trials if trial.state == "stopped")

    @property
    def saved_j(self) -> float:
        """Joules that stopping trials early saved, about."""
        return sum(trial.evaluation.saved_j for trial in self.trials if trial.evaluation is not None)

    @property
    def measured(self) -> tuple[TrialResult, ...]:
        return tuple(trial for trial in self.trials if trial.state == "measured")
