"""In this very process: for debugging and tests. A crash takes the coordinator along; the study still resumes."""

import time
from collections import deque
from typing import ClassVar

from autogreen.evaluate import Evaluator
from autogreen.executors import Done, Job, NoSettings, translated
from autogreen.workbench import Setup


class Inline:
    """One job at a time, run when its result is asked for."""

    settings: ClassVar[type] = NoSettings
    slots = 1

    def __init__(self, setup: Setup) -> None:
        self._evaluator = Evaluator(setup)
        self._waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def next_done(self) -> Done:
        job = self._waiting.popleft()
        began = time.monotonic()
        try:
            value = getattr(self._evaluator, job.call)(**job.arguments)
        except Exception as error:  # noqa: BLE001 - user code may raise anything; what it means is told apart there
            return Done(job=job, error=translated(error), duration_s=time.monotonic() - began)
        return Done(job=job, value=value, duration_s=time.monotonic() - began)

    def close(self) -> None:
        self._waiting.clear()
        self._evaluator.close()
