"""Policies that are known already, one after another."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autogreen.strategies import Seen, given

if TYPE_CHECKING:
    from optuna import Study, Trial

    from autogreen.policy import Policy


class Listed:
    """policies: each with the answers to the holes that it was found by."""

    def __init__(self, policies: "Sequence[tuple[Policy, Mapping[str, Any]]]") -> None:
        self.policies = policies

    def enqueue(
        self, study: "Study", number: int, seen: Sequence[Seen], pending: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        study.enqueue_trial({}, user_attrs={"proposal": {"given": given(study)}})

    def fill(self, trial: "Trial", seen: Sequence[Seen]) -> "tuple[Policy, dict[str, Any]]":
        policy, answers = self.policies[trial.user_attrs["proposal"]["given"]]
        return policy, dict(answers)
