"""Strategies: who proposes the next policy.

    direct   every hole is a parameter of Optuna's sampler                     small spaces
    guided   a forecast of every choice, corrected by trials, and few knobs    many layers
    listed   policies that are known already (no choice of an experiment)      a front measured again

`enqueue` may fix the next trial; `fill` makes a policy of the trial that Optuna then gives. What a strategy must know
of a trial it fixed is that trial's user attribute `proposal`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from autogreen.registry import Table

if TYPE_CHECKING:
    from optuna import Study, Trial

    from autogreen.measurement import Interval
    from autogreen.policy import Policy

STRATEGIES = Table(
    "strategy",
    {
        "direct": "autogreen.strategies.direct:Direct",
        "guided": "autogreen.strategies.guided:Guided",
    },
)

WASTED = 300  # proposals in a row that cost nothing (repeats, refusals) before the space counts as exhausted


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A finished trial. answers: hole -> value. loss: against the reference. ratio: energy over the reference's, None
    where it was not measured."""

    answers: Mapping[str, Any]
    loss: "Interval"
    ratio: "Interval | None"


def given(study: "Study") -> int:
    """How many of a strategy's first proposals were made: `proposal` numbers them, and one that was cut off and handed
    back keeps its number."""
    proposals = (trial.user_attrs.get("proposal", {}) for trial in study.get_trials(deepcopy=False))
    return len({proposal["given"] for proposal in proposals if "given" in proposal})


def distinct(proposals: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of equals."""
    return [one for place, one in enumerate(proposals) if one not in proposals[:place]]


class Strategy(Protocol):
    """Contract of the family. What is proposed follows from the seed, the trial's number and what was seen alone, so
    that a study which goes on proposes what the uninterrupted one would have."""

    def enqueue(
        self, study: "Study", number: int, seen: Sequence[Seen], pending: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Fix parameters of trial `number`, or leave it to the sampler. pending: answers of trials that are being
        evaluated on other devices."""
        ...

    def fill(self, trial: "Trial", seen: Sequence[Seen]) -> "tuple[Policy, dict[str, Any]]":
        """The trial's policy, and the answer to every hole."""
        ...
