"""Who proposes in a study: the strategy, what it has seen, and for a guided one the probes that it begins with.

Probes are kept with the study, section by section and a few at a time: a search that is killed while it probes goes on
where it was. So are the policies of an earlier study that are tried first; what they cost and lost there says nothing
about this model, or this machine, and is not read.
"""

import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from autogreen.anatomy import Anatomy
from autogreen.errors import ConfigError, EvaluationError, MeterError, RefusedError
from autogreen.evaluation import Evaluation
from autogreen.experiment import Experiment
from autogreen.front import Front
from autogreen.heritage import Heritage
from autogreen.kernels import ENGINE, Case, Kernels, kept
from autogreen.policy import Policy
from autogreen.probe import Probed
from autogreen.probing import Asked, asked, forecast, guessed, paired, unmeasured
from autogreen.samplers import make_sampler
from autogreen.space import SearchSpace
from autogreen.store import Store
from autogreen.strategies import Seen, Strategy, given
from autogreen.strategies.direct import Direct
from autogreen.strategies.guided import Guided
from autogreen.strategies.listed import Listed

TRIALS_WORTH = 2  # of time for kernels that nobody measured here yet; they are kept for later studies
BUDGET_WORTH = 0.1  # of the seconds that are left; a search that has few of them is there to search
AT_ONCE = 16  # effects a job, so that progress is shown and little is lost
RECALLED = 12  # policies of an earlier study


def recall(name: str | None, store: Store) -> list[dict[str, Any]]:
    """Answers to the holes of an earlier study beside this one: its front, the knee first.

    Raises:
        ConfigError: it is this very study.
        StudyError: there is none of that name, or it cannot be read.
    """
    if name is None:
        return []
    if name == store.folder.name:
        raise ConfigError(f"warm_start names {name!r}, which is this very study: it goes on by itself. Name another.")
    known: list[dict[str, Any]] | None = store.get("recalled")
    if known is None:
        front = Front.of(Store.open(store.folder.parent / name).results())
        known = [dict(point.trial.params) for point in front.finalists(RECALLED) if point.trial is not None]
        store.put("recalled", known)
    return known


class Proposals:
    """Asks Optuna for trials as the experiment's strategy wants them."""

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        space: SearchSpace,
        recalled: Sequence[Mapping[str, Any]],
        heritage: Heritage | None = None,
    ) -> None:
        self.experiment, self.store, self.space, self.heritage = experiment, store, space, heritage
        self.offers = [params for answers in recalled if (params := space.params(answers))]
        self.strategy: Strategy = Direct(space, self.offers)
        if heritage is not None:
            policies = ((SearchSpace.from_json(one.policy).policy(), one.answers) for one in heritage.policies)
            self.strategy = Listed(tuple(policies))

    def probe(self, anatomy: Anatomy, call: Callable[[str, Mapping[str, Any]], Any], cache: Path) -> Iterator[str]:
        """Ask the worker what the strategy wants to know before the first trial; tell how far it is. Where nothing can
        be probed the search is direct."""
        if self.experiment.strategy != "guided" or not self.space.holes() or self.heritage is not None:
            return
        questions, left_out = asked(self.space, anatomy)
        yield from (f"{hole} is searched without a forecast: {reason}" for hole, reason in left_out.items())
        alone = yield from self._answers(questions, call, "options")
        pairs = yield from self._answers(paired(alone), call, "pairs of neighbours")
        measured = yield from self._kernels(questions, anatomy, call, cache)
        batch = self.experiment.workload.fixed_batch or 1
        try:
            foreseen, unknown = forecast({**alone, **pairs}, anatomy, measured, batch)
        except RefusedError as error:
            yield f"searched without a forecast: {error}"
            return
        yield from (f"{hole} is searched without a forecast: {reason}" for hole, reason in unknown.items())
        if left := guessed(questions, anatomy, measured, batch):
            told = f"what {', '.join(left)} save in some layers is guessed until trials tell"
            yield f"{told}; `autogreen kernels --experiment FILE` measures it beforehand"
        loss, dearest, *_ = self.store.get("facts")["reference_point"]
        self.strategy = Guided(
            self.space, foreseen, self.offers, seed=self.experiment.seed, max_loss=loss, dearest=dearest
        )

    def _kernels(
        self, questions: Sequence[Asked], anatomy: Anatomy, call: Callable[[str, Mapping[str, Any]], Any], cache: Path
    ) -> Generator[str, None, Kernels | None]:
        """What is known of this device's kernels. What is missing is measured, the layers that do most work first, for
        as long as a few trials take."""
        facts, batch = self.store.get("facts"), self.experiment.workload.fixed_batch
        known = kept(facts["hardware"], facts["tier"], facts["boundary"], cache)
        if batch is None or ENGINE not in self.space.options("runtime", "engine"):
            return known
        tried = set[Case]()
        while self._kernels_left_s() > 0 and (
            waiting := [c for c in unmeasured(questions, anatomy, known, batch) if c not in tried]
        ):
            began, case = time.monotonic(), waiting[0]
            tried.add(case)
            yield f"what {case} saves here; {len(waiting)} shapes and schemes are not known yet"
            try:
                call("kernel", {"case": case})
            except MeterError as error:
                yield f"kernels are not measured: {error}"
                return known
            except (EvaluationError, RefusedError) as error:
                yield f"{case} is not known: {error}"
            self.store.put("kernels_s", self.store.get("kernels_s", 0.0) + time.monotonic() - began)
            known = kept(facts["hardware"], facts["tier"], facts["boundary"], cache)
        return known

    def _kernels_left_s(self) -> float:
        """Seconds for kernels, less what this study spent on them. A trial takes what half of the evaluations so far
        took at most: the first compiles what later ones find compiled, a control may train from scratch."""
        done = [*self.store.get("references", {}).values(), *self.store.get("controls", {}).values()]
        allowed: float = TRIALS_WORTH * statistics.median(sum(one["seconds"].values()) for one in done)
        if (seconds := self.experiment.budget.seconds) is not None:
            allowed = min(allowed, BUDGET_WORTH * (seconds - self.store.bill.total_s))
        spent: float = self.store.get("kernels_s", 0.0)
        return allowed - spent

    def _answers(
        self, questions: Sequence[Asked], call: Callable[[str, Mapping[str, Any]], Any], what: str
    ) -> Generator[str, None, dict[Asked, Probed]]:
        """Of the model, as far as they are not kept yet."""
        known: dict[str, Any] = self.store.get("probes", {})
        while missing := [one for one in questions if one.key not in known]:
            section = missing[0].section
            now = [one for one in missing if one.section == section][:AT_ONCE]
            yield f"{len(questions) - len(missing)} of {len(questions)} {what}"
            found = call("probe", {"section": section, "effects": [one.effect for one in now]})["probed"]
            known |= {one.key: answer for one, answer in zip(now, found, strict=True)}
            self.store.put("probes", known)
        return {one: Probed(**known[one.key]) for one in questions}

    def more(self) -> bool:
        """Whether there is anything left to propose: always, but for policies that are known already."""
        if self.heritage is None or given(self.store.study) < len(self.heritage.policies):
            return True
        waiting = self.store.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        return bool(waiting)

    def weights(self, trial: optuna.Trial) -> Path | None:
        """What was trained for a trial's policy before, if anything was."""
        if self.heritage is None:
            return None
        known = self.heritage.policies[trial.user_attrs["proposal"]["given"]]
        return self.heritage.weights(self.store.folder.parent, known.key)

    def ask(self) -> tuple[optuna.Trial, Policy]:
        """The next trial, and its policy."""
        study, wanted = self.store.study, self.experiment
        trials = study.get_trials(deepcopy=False)
        study.sampler = make_sampler(wanted.sampler, wanted.seed, len(trials), wanted.budget.trials)
        seen = self._seen()
        if not any(trial.state == optuna.trial.TrialState.WAITING for trial in trials):
            pending = [trial.user_attrs["params"] for trial in self.store.trials() if not trial.state.is_finished()]
            self.strategy.enqueue(study, len(trials), seen, pending)
        trial = study.ask()
        policy, answers = self.strategy.fill(trial, seen)
        trial.set_user_attr("params", answers)
        return trial, policy

    def _seen(self) -> list[Seen]:
        """Finished trials, gated ones too."""
        found = []
        for trial in self.store.trials():
            if data := trial.user_attrs.get("evaluation"):
                evaluation = Evaluation.from_json(data)
                if evaluation.loss is not None:
                    answers = trial.user_attrs["params"]
                    found.append(Seen(answers=answers, loss=evaluation.loss, ratio=evaluation.ratio))
        return found
