"""The end of a search: front members and controls measured afresh, and judged once on the test split; and members
trained again from other seeds, which tells what of a result was the seed's luck. What ships is the first's artifact."""

from collections.abc import Iterator
from typing import Any

from autogreen.errors import EvaluationError, MeterError
from autogreen.evaluation import Evaluation, Request
from autogreen.fidelity import epochs
from autogreen.front import Front
from autogreen.jobs import Jobs
from autogreen.measurement import Protocol
from autogreen.references import baseline
from autogreen.store import Store


def finalists(jobs: Jobs, store: Store, wanted: int, protocol: Protocol) -> Iterator[str]:
    """Measure finalists and controls longer, beside the reference, and judge them once on the test split; tell which
    is next."""
    published = store.get("published", {})
    for evaluation in _chosen(store, wanted):
        if evaluation.key in published:
            continue
        yield f"measuring {evaluation.effect.id} again, on the test split"
        try:
            published[evaluation.key] = _published(jobs, store, evaluation, protocol)
            store.put("published", published)
        except (EvaluationError, MeterError) as error:
            yield f"{evaluation.effect.id} was not measured again: {error}"


def from_other_seeds(jobs: Jobs, store: Store, seeds: int, protocol: Protocol) -> Iterator[str]:
    """Train what was published and is trained at all from so many seeds, its own among them, and judge each on the test
    split; tell which is next."""
    known: dict[str, dict[str, Any]] = store.get("seeds", {})
    for evaluation in _trained(store):
        mine = known.setdefault(evaluation.key, {})
        for seed in range(evaluation.seed + 1, evaluation.seed + seeds):
            if str(seed) in mine:
                continue
            yield f"training {evaluation.effect.id} from seed {seed}"
            request = Request(effect=evaluation.effect, seed=seed, reference=baseline(store).key)
            try:
                mine[str(seed)] = _published(jobs, store, jobs.evaluate(request), protocol)
                store.put("seeds", known)
            except (EvaluationError, MeterError) as error:
                yield f"{evaluation.effect.id} from seed {seed}: {error}"


def _published(jobs: Jobs, store: Store, evaluation: Evaluation, protocol: Protocol) -> dict[str, Any]:
    arguments = {"evaluation": evaluation, "reference": baseline(store).key, "protocol": protocol}
    found: dict[str, Any] = jobs.call("publish", arguments).to_json()
    return found


def _trained(store: Store) -> list[Evaluation]:
    """Published members that more than one training could have given."""
    results = store.results()
    found = [trial.evaluation for trial in results.measured if trial.evaluation is not None]
    return [
        evaluation for evaluation in found if evaluation.key in results.published and epochs(evaluation.effect.parts)
    ]


def _chosen(store: Store, wanted: int) -> list[Evaluation]:
    """Finalists and controls. Chosen once for so many trials: what is measured afresh moves the front, and would
    otherwise move the choice with every run."""
    results = store.results()
    chosen = store.get("finalists", {})
    if (chosen.get("trials"), chosen.get("wanted")) != (len(results.trials), wanted):
        keys = [point.evaluation.key for point in Front.of(results).finalists(wanted)]
        chosen = {"trials": len(results.trials), "wanted": wanted, "keys": keys}
        store.put("finalists", chosen)
    found = [trial.evaluation for trial in results.measured if trial.evaluation is not None]
    controls = [control for control in results.controls.values() if control.status == "measured"]
    return [*(evaluation for evaluation in found if evaluation.key in chosen["keys"]), *controls]
