"""Every hole is a parameter of Optuna's sampler."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autogreen.samplers import first
from autogreen.space import SearchSpace
from autogreen.strategies import Seen, given

if TYPE_CHECKING:
    from optuna import Study, Trial

    from autogreen.policy import Policy


class Direct:
    """The first trials are what an engineer would try by hand; all others are the sampler's."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        proposals = list(first(space)) if space.holes() else []
        self.given = [one for place, one in enumerate(proposals) if one not in proposals[:place]]

    def enqueue(self, study: "Study", number: int, seen: Sequence[Seen]) -> None:
        if (place := given(study)) < len(self.given):
            study.enqueue_trial(self.given[place], user_attrs={"proposal": {"given": place}})

    def fill(self, trial: "Trial", seen: Sequence[Seen]) -> "tuple[Policy, dict[str, Any]]":
        policy = self.space.fill(trial)
        return policy, self.space.shown(trial.params)
