"""The end of a search: front members and controls measured afresh, and judged once on the test split."""

from collections.abc import Iterator

from autogreen.errors import EvaluationError, MeterError
from autogreen.evaluation import Evaluation
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
        arguments = {"evaluation": evaluation, "reference": baseline(store).key, "protocol": protocol}
        try:
            published[evaluation.key] = jobs.call("publish", arguments).to_json()
            store.put("published", published)
        except (EvaluationError, MeterError) as error:
            yield f"{evaluation.effect.id} was not measured again: {error}"


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
