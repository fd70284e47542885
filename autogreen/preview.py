"""What a search learns first, of the model and the machine, without a study: for who only asks."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from autogreen.executors import Job, opened
from autogreen.experiment import Experiment, pick_device
from autogreen.workbench import Setup


def prepared(experiment: Experiment, sections: Collection[str], runs: Path) -> dict[str, Any]:
    """The answer of `Evaluator.prepare`: the model is built where a search would build it, and kept where it keeps it.

    Raises:
        AutogreenError: the task or its model is at fault.
    """
    folder = runs / f".{experiment.name}-preview"
    folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        task=experiment.task,
        workload=experiment.workload,
        protocol=experiment.protocol,
        device=pick_device(experiment.device),
        ranks=experiment.ranks,
        folder=folder.absolute(),
        cache=(runs / ".cache").absolute(),
        meter=experiment.meter,
    )
    executor = opened(experiment.executor, setup)
    try:
        executor.submit(Job(call="prepare", arguments={"sections": tuple(sections)}))
        done = executor.next_done()
    finally:
        executor.close()
        shutil.rmtree(folder, ignore_errors=True)
    if done.error is not None:
        raise done.error
    found: dict[str, Any] = done.value
    return found
