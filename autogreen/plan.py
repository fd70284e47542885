"""A dry run: what a sweep would do and cost, told from one real trial."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from autogreen.errors import StudyError
from autogreen.experiment import Experiment
from autogreen.store import Store
from autogreen.sweep import sweep


def plan(experiment: Experiment, folder: Path, cache: Path) -> dict[str, Any]:
    """What a sweep would do: holes, refusals and their reasons, and time, joules and disk from one real trial."""
    shutil.rmtree(folder, ignore_errors=True)
    one = replace(experiment, budget=replace(experiment.budget, trials=1), finalists=0)
    steps = list(sweep(one, folder, cache))
    store = Store.open(folder)
    results = store.results()
    spent = [trial.evaluation for trial in results.trials if trial.evaluation is not None]
    if not spent:
        raise StudyError(f"the trial that the prediction rests on failed: {results.trials[0].reason}")
    seconds, energy_j = sum(spent[0].seconds.values()), spent[0].spent_j
    trials = experiment.budget.trials or round((experiment.budget.seconds or seconds) / seconds)
    disk = sum(path.stat().st_size for path in (folder / "artifacts").rglob("*") if path.is_file())
    return {
        "holes": store.get("facts")["holes"],
        "refused": store.get("facts")["refused"],
        "trials": trials,
        "seconds": round(steps[-1].seconds + seconds * (trials - 1)),
        "energy_j": steps[-1].energy_j + energy_j * (trials - 1),
        "disk_bytes": disk * max(1, trials // 3),
        "tier": results.tier,
        "from": "one trial, run for real; later ones differ with what they train and compile",
    }
