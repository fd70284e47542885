"""Jobs of one study: asked of a worker, waited for, and put on the bill, whatever becomes of them."""

import time
from collections.abc import Mapping
from typing import Any

from autogreen.errors import LostError
from autogreen.evaluation import Evaluation, Request
from autogreen.executors import Done, Executor, Job
from autogreen.experiment import Budget
from autogreen.store import Store


class Jobs:
    """One session's; the bill is the study's."""

    def __init__(self, budget: Budget, store: Store, executor: Executor) -> None:
        self.budget, self.store, self.executor = budget, store, executor
        self._clock = time.monotonic()

    def call(self, call: str, arguments: Mapping[str, Any]) -> Any:
        """Run one job that the study cannot do without; on the next device where one is lost with it.

        Raises:
            AutogreenError: what the worker said.
        """
        while True:
            self.executor.submit(Job(call=call, arguments=arguments))
            done = self.executor.next_done()
            self.pay(done)
            if done.error is None:
                return done.value
            if not isinstance(done.error, LostError):
                raise done.error

    def call_on_each(self, call: str) -> None:
        """Run one job on every device at once, but for those that are lost with it.

        Raises:
            AutogreenError: what one of the workers said.
        """
        running = self.executor.slots
        for _ in range(running):
            self.executor.submit(Job(call=call))
        answers = [self.executor.next_done() for _ in range(running)]
        for done in answers:
            self.pay(done)
        for done in answers:
            if done.error is not None and not isinstance(done.error, LostError):
                raise done.error

    def evaluate(self, request: Request) -> Evaluation:
        """Evaluate what the study cannot do without."""
        found: Evaluation = self.call("evaluate", {"request": request})
        return found

    def submit(self, request: Request) -> None:
        """Begin to evaluate a trial."""
        self.executor.submit(Job(call="evaluate", arguments={"request": request}, limit_s=request.limit_s))

    def pay(self, done: Done) -> None:
        """Put a job on the bill; one that failed at the mean power of those that did not."""
        value = done.value if isinstance(done.value, Mapping) else vars(done.value) if done.value else {}
        seconds, joules, spent_j = dict(value.get("seconds", {})), value.get("joules", {}), value.get("spent_j")
        now = time.monotonic()
        seconds["total"], self._clock = now - self._clock, now
        if spent_j is None:
            bill = self.store.bill
            spent_j = done.duration_s * bill.energy_j / max(bill.total_s, 1.0)
        if done.error is not None or value.get("status") in ("gated", "stopped"):
            joules = {"wasted": spent_j}
        self.store.pay(spent_j, seconds, joules)

    def left(self, running: int) -> bool:
        """Whether the budget allows one more trial beside those running."""
        budget, bill = self.budget, self.store.bill
        finished = sum(trial.state.is_finished() for trial in self.store.trials())
        if budget.trials is not None and finished + running >= budget.trials:
            return False
        if budget.seconds is not None and bill.total_s >= budget.seconds:
            return False
        return budget.energy_j is None or bill.energy_j < budget.energy_j

    def limit_s(self) -> float:
        """Seconds that one trial may take."""
        left = float("inf") if self.budget.seconds is None else self.budget.seconds - self.store.bill.total_s
        return min(self.budget.trial_seconds, left)

    def limit_j(self) -> float | None:
        """Joules that one trial may take; None: as many as it likes."""
        limit = self.budget.energy_j
        return None if limit is None else limit - self.store.bill.energy_j
