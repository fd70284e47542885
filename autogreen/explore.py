"""The search as a function of anything that can be evaluated: no model, no study on disk.

    strategy -> policy -> evaluate -> strategy ...

What a sweep does with a model, a worker and a store; here to try strategies on, or to search what is not a model.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autogreen.policy import Policy
from autogreen.samplers import make_sampler
from autogreen.strategies import WASTED, Seen, Strategy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autogreen.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class Explored:
    """A finished trial."""

    number: int
    policy: Policy
    answers: "Mapping[str, Any]"
    evaluation: "Evaluation"


def explore(
    evaluate: Callable[[Policy], "Evaluation"],
    strategy: Strategy,
    *,
    trials: int,
    max_loss: float,
    sampler: str = "tpe",
    seed: int = 0,
) -> Iterator[Explored]:
    """Ask, evaluate, tell; yield every finished trial. A policy is evaluated once: proposed again, it teaches the
    sampler what is known and is no trial.

    evaluate: the policy's loss against its reference and its energy ratio, with intervals. max_loss: the floor; a trial
    is infeasible where even the lower end of its loss lies above.
    """
    import optuna

    study = optuna.create_study(directions=["minimize", "minimize"])
    seen: list[Seen] = []
    known: dict[str, Evaluation] = {}
    number = wasted = 0
    while len(seen) < trials and wasted < WASTED:
        study.sampler = make_sampler(sampler, seed, number, trials)
        strategy.enqueue(study, number, seen)
        trial = study.ask()
        policy, answers = strategy.fill(trial, seen)
        key = json.dumps(policy.to_json(), sort_keys=True)
        found = known.get(key) or evaluate(policy)
        assert found.loss is not None, "what is explored is compared with a reference"
        trial.set_constraint("max_loss", found.loss.low - max_loss)
        study.tell(trial, [found.loss.mean, found.ratio.mean if found.ratio else 1.0])
        number, wasted = number + 1, wasted + 1
        if key not in known:
            known[key], wasted = found, 0
            seen.append(Seen(answers=answers, loss=found.loss, ratio=found.ratio))
            yield Explored(number=len(seen) - 1, policy=policy, answers=answers, evaluation=found)
