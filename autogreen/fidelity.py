"""Fidelities: a trial is looked at before its training ends, and stopped where not even a lucky end would help it.

    pruned, untrained -> loss -> energy -> a ninth of the epochs -> loss -> a third -> loss -> to the end -> energy

Energy comes before training, for training changes weights and not the kernels that multiply them. A lucky end is the
loss at this rung less the most that any finished trial still gained from there; where a policy of the front needs no
more energy, loses no more than that and, if latency is an objective, answers no later, the rest of the training is
saved. So the whole front decides, not one objective; and nothing is stopped for being worse than a fixed share of the
others: what a search proposes late is all good.

Looking costs a trial that goes on a second compilation and measurement: where training takes four times as much as
everything else, it pays from about one trial in four that stops. So it is done there only, and energy is measured early
only once something is known of what training still gains.

Source: Jamieson and Talwalkar, Non-stochastic Best Arm Identification, AISTATS 2016, and Li et al., ASHA, MLSys 2020
(rungs at powers of 3); Schmucker et al., Multi-objective Asynchronous Successive Halving, 2021 (on fronts); Swersky et
al., Freeze-Thaw Bayesian Optimization, 2014 (stopping by where training is expected to end).
"""

import math
import statistics
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import le
from typing import TYPE_CHECKING, Any

from autogreen.measurement import Interval, Measurement

if TYPE_CHECKING:
    from torch import nn

    from autogreen.results import Results

SHARES = (0.0, 1 / 9, 1 / 3)  # of the epochs, after which a trial is looked at
FEWEST = 5  # finished trials that tell what training still gains
DOMINANT = 4.0  # joules of training over those of everything else


@dataclass(frozen=True, kw_only=True)
class Rung:
    """place: in `SHARES`. epochs: that were trained by then. loss: of the model in training, paired, on validation."""

    place: int
    epochs: int
    loss: Interval


@dataclass(frozen=True, kw_only=True)
class Stakes:
    """What a trial is up against. front: (loss, energy ratio) of feasible policies, and latency where that is an
    objective. gained: by rung, what each finished trial lost less at its end than there. epoch_j: joules of an
    epoch."""

    front: tuple[tuple[float, ...], ...]
    gained: Mapping[int, tuple[float, ...]]
    epoch_j: float

    @classmethod
    def of(cls, results: "Results") -> "Stakes | None":
        """None while too few trials were trained to tell, or where training is not what a trial costs."""
        ended = [trial.evaluation for trial in results.trials if trial.evaluation and trial.state != "stopped"]
        trained = [evaluation for evaluation in ended if epochs(evaluation.effect.parts)]
        training = math.fsum(evaluation.joules.get("training", 0.0) for evaluation in trained)
        total = math.fsum(joules for evaluation in trained for joules in evaluation.joules.values())
        if len(trained) < FEWEST or training < DOMINANT * (total - training):
            return None

        def timed(measured: Measurement) -> tuple[float, ...]:
            return (measured.judged_latency_s.mean,) if results.by_latency else ()

        gained: dict[int, list[float]] = {}
        for evaluation in trained:
            if evaluation.loss is not None:
                for rung in evaluation.rungs:
                    gained.setdefault(rung.place, []).append(rung.loss.mean - evaluation.loss.mean)
        return cls(
            front=tuple(
                (found.loss.mean, found.ratio.mean, *timed(found.measurement))
                for trial in results.trials
                if trial.feasible and (found := trial.evaluation) and found.loss and found.ratio and found.measurement
            ),
            gained={place: tuple(values) for place, values in gained.items() if len(values) >= FEWEST},
            epoch_j=training / sum(epochs(evaluation.effect.parts) for evaluation in trained),
        )

    def hopeless(self, rung: Rung, ratio: Interval, latency_s: Interval) -> bool:
        """Whether a policy of the front beats the lucky end from this rung at this energy and latency."""
        if rung.place not in self.gained:
            return False
        lucky = (rung.loss.mean - max(self.gained[rung.place]), ratio.low, latency_s.low)
        return any(all(map(le, place, lucky)) for place in self.front)  # `lucky` has one axis more than it may need

    def expected(self, rung: Rung) -> Interval:
        """The loss at the end, as the others fared from this rung."""
        gained = self.gained[rung.place]
        mean = rung.loss.mean - statistics.fmean(gained)
        half = math.hypot((rung.loss.high - rung.loss.low) / 2, 1.96 * statistics.stdev(gained))
        return Interval(mean=mean, low=mean - half, high=mean + half)


class StopTraining(Exception):
    """A lucky end would not help."""

    def __init__(self, look: "Look") -> None:
        super().__init__("stopped early")
        self.look = look

    @property
    def loss(self) -> Interval:
        """As expected at the end."""
        return self.look.stakes.expected(self.look.rungs[-1])

    @property
    def quality(self) -> Interval:
        """The same, as quality."""
        whole, loss = self.look.reference.mean, self.loss
        return Interval(mean=whole - loss.mean, low=whole - loss.high, high=whole - loss.low)

    @property
    def saved_j(self) -> float:
        return (self.look.epochs - self.look.rungs[-1].epochs) * self.look.stakes.epoch_j


@dataclass(kw_only=True)
class Look:
    """Looks at one model in training. reference: its quality. epochs: of the whole. judge: model -> its loss. weigh:
    model -> what measuring it told, `ratio` among it."""

    stakes: Stakes
    reference: Interval
    epochs: int
    judge: Callable[["nn.Module"], Interval]
    weigh: Callable[["nn.Module"], Mapping[str, Any]]
    rungs: list[Rung] = field(default_factory=list)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: "nn.Module", epochs: int) -> None:
        """After so many epochs.

        Raises:
            StopTraining: the rest would be in vain.
        """
        place = bisect_right(SHARES, epochs / self.epochs) - 1
        if epochs == self.epochs or (self.rungs and self.rungs[-1].place >= place):
            return
        rung = Rung(place=place, epochs=epochs, loss=self.judge(model))
        self.rungs.append(rung)
        if not self.stakes.gained:
            return
        if not self.measured:
            self.measured = self.weigh(model)
        if self.stakes.hopeless(rung, self.measured["ratio"], self.measured["measurement"].judged_latency_s):
            raise StopTraining(self)


def epochs(parts: Mapping[str, Any]) -> int:
    """For how many an effect trains."""
    found: int = parts.get("distillation", {}).get("epochs", 0)
    return found
