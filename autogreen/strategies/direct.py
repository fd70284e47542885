"""Every hole is a parameter of Optuna's sampler."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autogreen.samplers import first
from autogreen.space import SearchSpace
from autogreen.strategies import Seen, distinct, given

if TYPE_CHECKING:
    from optuna import Study, Trial

    from autogreen.policy import Policy


class Direct:
    """The first trials are those offered, what they leave open the sampler's; then what an engineer would try by hand;
    all others are the sampler's. offers: parameters for Optuna."""

    def __init__(self, space: SearchSpace, offers: Sequence[Mapping[str, Any]] = ()) -> None:
        self.space = space
        self.given = distinct([*offers, *(first(space) if space.holes() else ())])

    def enqueue(
        self, study: "Study", number: int, seen: Sequence[Seen], pending: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        if (place := given(study)) < len(self.given):
            study.enqueue_trial(dict(self.given[place]), user_attrs={"proposal": {"given": place}})

    def fill(self, trial: "Trial", seen: Sequence[Seen]) -> "tuple[Policy, dict[str, Any]]":
        policy = self.space.fill(trial)
        return policy, self.space.shown(trial.params)
