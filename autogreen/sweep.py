"""The search: the only code that drives Optuna.

    prepare -> references -> controls -> [ask -> fill -> evaluate -> tell]* -> finalists -> front

How a trial that is stopped early still teaches: NSGA-II, NSGA-III and GP read finished trials only, so a gated trial is
told as finished, with the quality it had, the energy of the reference point (the worst that the front counts) and a
violated constraint. A policy that was evaluated before is told again with its recorded values, at no cost. Every
proposal comes from a sampler seeded by the study's seed and the trial's number: a resumed study proposes what the
uninterrupted one would have, given the same evaluations.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from autogreen import finals, hardware, references, restriction
from autogreen.anatomy import Anatomy
from autogreen.errors import MeterError, RefusedError, StudyError
from autogreen.evaluation import Evaluation, Request
from autogreen.executors import Done, Executor, opened
from autogreen.experiment import Experiment, pick_device
from autogreen.fidelity import Stakes, epochs
from autogreen.front import Front, standing
from autogreen.heritage import Heritage
from autogreen.jobs import Jobs
from autogreen.payback import Payback
from autogreen.policy import FORMAT
from autogreen.proposals import Proposals, recall
from autogreen.space import SearchSpace
from autogreen.store import Store, writing
from autogreen.strategies import WASTED
from autogreen.workbench import Setup

HOPELESS = 20  # trials in a row that fail before the search gives up


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a search stands. seconds, energy_j: spent so far, earlier sessions included."""

    stage: str
    note: str = ""
    trials: int = 0
    measured: int = 0
    front: int = 0
    hypervolume: float = 0.0
    seconds: float = 0.0
    energy_j: float = 0.0


def sweep(experiment: Experiment, folder: Path, cache: Path, heritage: Heritage | None = None) -> Iterator[Progress]:
    """Run or continue the experiment in `folder`; yield where it stands after every step. heritage: evaluate these
    policies, with weights that were trained for them, instead of searching.

    Closing the iterator (Ctrl-C does) stops all work and hands unfinished trials back.

    Raises:
        AutogreenError: the study cannot go on; everything told before is safe on disk.
    """
    store = Store.create(folder, experiment.objectives)
    with store.lock():
        store.requeue()
        recalled = recall(experiment.warm_start, store)
        trainer = experiment.training_device
        setup = Setup(
            task=experiment.task,
            workload=experiment.workload,
            protocol=experiment.protocol,
            device=pick_device(experiment.device),
            training_device=None if trainer is None else pick_device(trainer, "training_device"),
            ranks=experiment.ranks,
            folder=folder.absolute(),
            cache=cache.absolute(),
            meter=experiment.meter,
            weights=None if heritage is None else heritage.weights(folder.parent, heritage.baseline),
        )
        executor = opened(experiment.executor, setup)
        run = _Run(experiment, store, executor, setup, recalled, heritage)
        try:
            yield run.progress("preparing", "building the baseline; the first time it is trained")
            for refused in run.prepare():
                yield run.progress("preparing", f"left out: {refused}")
            yield from run.floor()
            yield from run.references()
            yield from run.probes()
            yield from run.trials()
            run.refuse_if_nothing_is_feasible()
            yield from run.finalists()
        finally:
            executor.close()
            store.requeue()


class _Run:
    """State of one session of a search."""

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        executor: Executor,
        setup: Setup,
        recalled: Sequence[Mapping[str, Any]],
        heritage: Heritage | None,
    ) -> None:
        self.experiment, self.store, self.executor = experiment, store, executor
        self.recalled, self.heritage = recalled, heritage
        self.jobs = Jobs(experiment.budget, store, executor)
        self.device, self.cache = setup.device, setup.cache
        self.anatomy: Anatomy
        self.space: SearchSpace
        self.proposals: Proposals
        self.room: int  # of the worker, which may have more GPUs than are here
        self._costs_known = False

    # -- stages --------------------------------------------------------------------------------------------------

    def prepare(self) -> list[str]:
        """Learn the model's anatomy, check that the study is the same, take out what cannot run here or costs for sure;
        tell what."""
        found = self.jobs.call("prepare", {"sections": restriction.surveyed(self.experiment.space)})
        self.experiment.refuse_untellable(found["meter"]["tier"])
        self.anatomy = Anatomy.from_json(found["anatomy"])
        self.store.check_fingerprint(
            {
                **self.experiment.task.fingerprint(),
                "effects": f"format {FORMAT}",
                "space": _digest(self.experiment.space.to_json()),
                "workload": str(self.experiment.workload),
                "constraints": str(self.experiment.constraints),
                "machine": hardware.name(found["hardware"]),
                "torch": found["hardware"]["torch"],
                "driver": found["hardware"].get("driver", "none"),
                "meter": f"{found['meter']['tier']} {dict(self.experiment.meter)}",
                "boundary of the energy": found["meter"]["boundary"],
                **({"training device": trainer} if (trainer := self.experiment.training_device) else {}),
                **({"policies of": self.heritage.study} if self.heritage else {}),
                "objectives": ", ".join(self.experiment.objectives),
            }
        )
        expanded = self.experiment.space.expand(self.anatomy)
        self.room, batch = found["room"], self.experiment.workload.fixed_batch
        self.space, refused = restriction.restrict(
            expanded, self.anatomy, device=self.device, batch=batch, room=self.room
        )
        self.space, dear = restriction.without(self.space, self._dear(found))
        refused |= dear
        self._facts = {
            "experiment": self.experiment.to_json(),
            "task": self.experiment.task_text,
            "data": _digest(dict(self.experiment.task.fingerprint())),
            "workload": self.experiment.workload.to_json(),
            **{key: found[key] for key in ("hardware", "item")},
            **{key: found["meter"][key] for key in ("tier", "boundary")},
            "max_loss": self.experiment.constraints.max_loss,
            "holes": {name: hole.extremes() for name, hole in self.space.holes().items()},
            "refused": refused,
        }
        return [f"{reason} ({len(holes)} knobs)" for reason, holes in refused.items()]

    def floor(self) -> Iterator[Progress]:
        """Learn what work costs this device at least; without it the search goes on, and says so."""
        yield self.progress("preparing", "what work costs this machine at least; about 10 s the first time")
        try:
            self.jobs.call_on_each("unit_costs")
            self._costs_known = True
        except MeterError as error:
            yield self.progress("preparing", f"measurements are held against no floor: {error}")

    def references(self) -> Iterator[Progress]:
        """Measure plain use, the best runtime of the same weights, and the controls."""
        where = (self.jobs, self.store, self.space, self.anatomy, self.device)
        for note in references.references(*where, self.experiment.workload, self._facts["refused"]):
            yield self.progress("references", note)
        self.baseline = references.baseline(self.store)
        if self.store.get("facts") is None:
            worst = references.worst(self.store, self.experiment)
            self.store.put("facts", {**self._facts, "reference_point": worst})
        self._restate_carbon()
        trained = self.heritage.control_weights(self.store.folder.parent) if self.heritage else {}
        for note in references.controls(*where, self.room, trained):
            yield self.progress("controls", note)

    def probes(self) -> Iterator[Progress]:
        """What the strategy wants to know before the first trial."""
        self.proposals = Proposals(self.experiment, self.store, self.space, self.recalled, self.heritage)
        if self.recalled:
            told = f"{len(self.proposals.offers)} of {len(self.recalled)} policies of {self.experiment.warm_start!r}"
            yield self.progress("searching", f"{told} say something here and are tried first")
        for note in self.proposals.probe(self.anatomy, self.jobs.call, self.cache):
            yield self.progress("probing", note)

    def trials(self) -> Iterator[Progress]:
        """Ask, evaluate, tell, until the budget is spent."""
        pending: dict[str, optuna.Trial] = {}
        failures, wasted, patience = 0, 0, WASTED if self.space.holes() or self.heritage else 1
        yield self.progress("searching")
        while True:
            if unpaid := self._unpaid():
                patience = 0
            while (
                self.proposals.more()
                and len(pending) < self.executor.slots
                and wasted < patience
                and self.jobs.left(len(pending))
            ):
                trial, request = self._propose()
                if request is None:
                    wasted += 1
                    continue
                wasted = 0
                pending[request.key] = trial
                self.jobs.submit(request)
            if not pending:
                if unpaid:
                    yield self.progress("searching", f"searching on no longer pays: {unpaid}")
                break
            done, wasted = self.executor.next_done(), 0
            trial = pending.pop(done.job.arguments["request"].key)
            self._tell(trial, done)
            failures = failures + 1 if done.error else 0
            if failures >= HOPELESS:
                raise StudyError(
                    f"the last {failures} trials failed one after another; the last: {done.error} Mend what is wrong "
                    "and run the same command again, or widen the space."
                )
            yield self.progress("searching", "" if done.error is None else f"trial {trial.number}: {done.error}")

    def finalists(self) -> Iterator[Progress]:
        """Measure front members afresh, longer, beside the reference, and judge them once on the test split."""
        if not self._costs_known:  # what is published is held against a floor if the machine ever gets quiet
            yield from self.floor()
        longer = self.experiment.protocol.final()
        for note in finals.finalists(self.jobs, self.store, self.experiment.finalists, longer):
            yield self.progress("finalists", note)
        for note in finals.from_other_seeds(self.jobs, self.store, self.experiment.seeds, longer):
            yield self.progress("finalists", note)
        yield self.progress("done")

    def refuse_if_nothing_is_feasible(self) -> None:
        """Raise, naming what to loosen, when there is no front."""
        trials, what = self.store.trials(), "trials failed"
        if not trials:
            trials = [trial for trial in self.store.study.trials if "reason" in trial.user_attrs]
            what = "proposals were refused"
        if not trials:
            bill = self.store.bill
            raise StudyError(
                f"the budget was spent before the first trial: {bill.total_s:.0f} s and {bill.energy_j:.0f} J, on the "
                "baseline, references, controls and probes. They are kept: raise the budget (`--set "
                "budget.seconds=...`) and run the same command again."
            )
        if any(trial.user_attrs.get("feasible") for trial in trials):
            return
        missed: dict[str, float] = {}
        for trial in trials:
            for name, excess in trial.user_attrs.get("constraints", {}).items():
                if excess > 0:
                    missed[name] = min(missed.get(name, excess), excess)
        if missed:
            told = ", ".join(f"{name} (the nearest missed it by {excess:.4g})" for name, excess in missed.items())
            raise StudyError(f"none of {len(trials)} trials meets the constraints; loosen {told}, or widen the space.")
        reasons = {trial.user_attrs.get("reason", "unknown"): None for trial in trials}
        raise StudyError(f"all {len(trials)} {what}. Why: {' | '.join(list(reasons)[:3])}")

    # -- one trial -----------------------------------------------------------------------------------------------

    def _propose(self) -> tuple[optuna.Trial, Request | None]:
        """Ask for a policy; None where it costs nothing to answer."""
        with writing(self.store.folder):
            trial, policy = self.proposals.ask()
            try:
                effect = policy.effect(self.anatomy)
                batch = self.experiment.workload.fixed_batch
                refusal = effect.refusal(self.anatomy, self.device, batch, self.room)
            except RefusedError as error:
                refusal = str(error)
            if refusal:
                trial.set_user_attr("reason", refusal)
                self.store.study.tell(trial, state=TrialState.PRUNED)
                return trial, None
            trained = self.proposals.weights(trial)
            request = Request(
                effect=effect,
                seed=self.experiment.seed,
                weights=trained,
                reference=self.baseline.key,
                max_loss=self.experiment.constraints.max_loss,
                stakes=Stakes.of(self.store.results()) if trained is None and epochs(effect.parts) else None,
                limit_s=self.jobs.limit_s(),
                limit_j=self.jobs.limit_j(),
            )
            if (twin := self.store.trial(request.key)) is not None:
                self._tell_again(trial, twin)
                return trial, None
            trial.set_user_attr("key", request.key)
            trial.set_user_attr("policy", policy.to_json())
        return trial, request

    def _tell(self, trial: optuna.Trial, done: Done) -> None:
        """Record a finished evaluation; a failure is the trial's own, unless the disk or the study is at fault."""
        if isinstance(done.error, StudyError):
            raise done.error
        with writing(self.store.folder):
            self.jobs.pay(done)
            if done.error is not None:
                trial.set_user_attr("reason", str(done.error))
                self.store.study.tell(trial, state=TrialState.FAIL)
                return
            evaluation: Evaluation = done.value
            violations = self.experiment.excess(evaluation)
            trial.set_user_attr("evaluation", evaluation.to_json())
            trial.set_user_attr("constraints", violations)
            trial.set_user_attr(
                "feasible", evaluation.status == "measured" and max(violations.values(), default=0) <= 0
            )
            self._tell_values(trial, evaluation, violations)
        held = {point.evaluation.key for point in standing(self.store.results()).values()}
        self.store.keep_only(references.keys(self.store), held)

    def _tell_again(self, trial: optuna.Trial, twin: optuna.trial.FrozenTrial) -> None:
        """One effect is evaluated once; proposed again, it teaches the sampler what is known."""
        if data := twin.user_attrs.get("evaluation"):
            evaluation = Evaluation.from_json(data)
            self._tell_values(trial, evaluation, self.experiment.excess(evaluation))
        else:
            self.store.study.tell(trial, state=TrialState.FAIL)

    def _tell_values(self, trial: optuna.Trial, evaluation: Evaluation, violations: Mapping[str, float]) -> None:
        for name, excess in violations.items():
            trial.set_constraint(name, excess)
        _, dearest, *slowest_s = self.store.get("facts")["reference_point"]
        ratio = evaluation.ratio.mean if evaluation.ratio else (1.0 if evaluation.status == "measured" else dearest)
        measured = evaluation.measurement
        latency_s = [measured.judged_latency_s.mean if measured else worst_s for worst_s in slowest_s]
        self.store.study.tell(trial, [evaluation.quality.mean, ratio, *latency_s])

    def _unpaid(self) -> str | None:
        """Why another trial does not pay; None while it does, or nobody asks."""
        items = self.experiment.budget.payback
        told = None if items is None else Payback.of(self.store.results())
        return None if told is None or items is None else told.against(items)

    # -- helpers of the stages -----------------------------------------------------------------------------------

    def _restate_carbon(self) -> None:
        """The intensity changes no measurement, so a study goes on with the one that its experiment states now."""
        facts = self.store.get("facts")
        stated = self.experiment.to_json()["carbon"]
        if facts["experiment"].get("carbon") != stated:
            self.store.put("facts", {**facts, "experiment": {**facts["experiment"], "carbon": stated}})

    def _dear(self, found: Mapping[str, Any]) -> restriction.Dear:
        """What measured kernels rule out. Kept with the study: it sees the same space when it goes on, whatever was
        measured meanwhile."""
        dear: restriction.Dear | None = self.store.get("dear")
        if dear is None:
            dear, batch = {}, self.experiment.workload.fixed_batch
            if self.store.get("facts") is None:  # else it began when there were no measured kernels
                dear = restriction.dear_here(self.space, self.anatomy, found, batch=batch, cache=self.cache)
            self.store.put("dear", dear)
        return dear

    def progress(self, stage: str, note: str = "") -> Progress:
        bill = self.store.bill
        trials = self.store.trials()
        found: dict[str, Any] = {}
        if self.store.get("facts") is not None and any(trial.user_attrs.get("feasible") for trial in trials):
            front = Front.of(self.store.results())
            found = {"front": len(front.members), "hypervolume": front.hypervolume}
        return Progress(
            stage=stage,
            note=note,
            trials=sum(trial.state.is_finished() for trial in trials),
            measured=sum(
                "evaluation" in t.user_attrs and t.user_attrs["evaluation"]["status"] == "measured" for t in trials
            ),
            seconds=bill.total_s,
            energy_j=bill.energy_j,
            **found,
        )


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
