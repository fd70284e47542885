"""A study on disk. Optuna's storage is the one truth; all else is beside it and can be told from it.

runs/NAME/
  study.db      Optuna's sqlite: trials, with policy and evaluation as attributes; references and the bill
  artifacts/    KEY/ : model.pt2, weights.safetensors, recipe.json, for policies that may still be on the front
  scores/       KEY-validation.npz : one number per example
  lock          held by the one process that drives the study
"""

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from autogreen import quality
from autogreen.errors import EvaluationError, StudyError
from autogreen.evaluation import Evaluation, Published
from autogreen.measurement import Interval
from autogreen.policy import FORMAT
from autogreen.results import Bill, Results, TrialResult
from autogreen.schema import parse_json

KEEP_BYTES = 5e9  # of artifacts on disk that may be wanted again, those of references not counted
KEEP_TIMES = 4  # or so many times the largest of a reference: a large model's are large
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {  # energy: joules per item over the baseline's
    "quality": "maximize",
    "energy": "minimize",
    "latency": "minimize",
}


class Store:
    """One study's folder, open. Use `Store.create` to begin or go on, `Store.open` to look."""

    def __init__(self, folder: Path, study: optuna.Study) -> None:
        self.folder = folder
        self.study = study

    @classmethod
    def create(cls, folder: Path, objectives: Sequence[str] = ("quality", "energy")) -> "Store":
        """Open the study in `folder`, beginning it, with these objectives, if it is not there.

        Raises:
            StudyError: the folder cannot be written, or the study in it is damaged.
        """
        try:
            for part in ("artifacts", "scores"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / "lock").touch()
        except OSError as error:
            raise StudyError(
                f"{error.filename} cannot be written: {error.strerror}. Choose another with --runs."
            ) from error
        return cls(folder, _study(folder, objectives))

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Open an existing study to read it.

        Raises:
            StudyError: there is none, or it is damaged.
        """
        if not (folder / "study.db").exists():
            others = sorted(path.parent.name for path in folder.parent.glob("*/study.db"))
            there = f"There are: {', '.join(others)}." if others else "Run `autogreen sweep EXPERIMENT.yaml` first."
            raise StudyError(f"no study {folder.name!r} in {folder.parent}/. {there}")
        return cls(folder, _study(folder))

    @classmethod
    def newest(cls, runs: Path) -> Path:
        """Folder of the study that was written last.

        Raises:
            StudyError: there is none.
        """
        found = list(runs.glob("*/study.db"))
        if not found:
            raise StudyError(f"no study in {runs}/. Run `autogreen sweep EXPERIMENT.yaml` first.")
        return max(found, key=lambda path: path.stat().st_mtime).parent

    @classmethod
    def discard(cls, folder: Path) -> None:
        """Delete a study, unless a process drives it."""
        if (folder / "lock").exists():
            with cls(folder, None).lock():  # type: ignore[arg-type]
                shutil.rmtree(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for one process.

        Raises:
            StudyError: another process holds it.
        """
        with (self.folder / "lock").open("r+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = handle.read().strip() or "unknown"
                raise StudyError(
                    f"{self.folder.name!r} is being driven by another process (pid {holder}). Wait for it, or stop it."
                ) from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    # -- facts about the study -----------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """A fact, as plain data."""
        return self.study.user_attrs.get(key, default)

    def put(self, key: str, value: Any) -> None:
        """Keep a fact; the write is atomic.

        Raises:
            StudyError: the disk is full or the file not writable.
        """
        with writing(self.folder):
            self.study.set_user_attr(key, value)

    def check_fingerprint(self, fingerprint: Mapping[str, str]) -> None:
        """Keep what identifies the study, or compare it with what was kept.

        Raises:
            StudyError: something changed; numbers from before and after must not stand side by side.
        """
        kept = self.get("fingerprint")
        if kept is None:
            self.put("fingerprint", dict(fingerprint))
            return
        kept = {"objectives": "quality, energy", **kept}  # there were no others when it was not kept
        changed = [key for key in sorted({*kept, *fingerprint}) if kept.get(key) != fingerprint.get(key)]
        if changed:
            told = "; ".join(f"{key} was {_short(kept.get(key))}, is {_short(fingerprint.get(key))}" for key in changed)
            raise StudyError(
                f"study {self.folder.name!r} was begun with other settings: {told}. Undo the change, give the "
                "experiment another name (copy the YAML file), or begin anew with --fresh."
            )

    @property
    def bill(self) -> Bill:
        """What the search has cost so far."""
        return Bill(**self.get("bill", {"energy_j": 0.0, "seconds": {}}))

    def pay(self, energy_j: float, seconds: Mapping[str, float], joules: Mapping[str, float]) -> None:
        """Add to the search's own bill."""
        bill = self.bill
        self.put(
            "bill",
            {
                "energy_j": bill.energy_j + energy_j,
                "seconds": _added(bill.seconds, seconds),
                "joules": _added(bill.joules, joules),
            },
        )

    # -- trials --------------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """All trials that stand for a policy of their own (repeats, refusals and requeued ones left out)."""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if "policy" in trial.user_attrs and "requeued" not in trial.user_attrs
        ]

    def requeue(self) -> int:
        """Hand trials that a dead process left running back to the queue; return how many."""
        left = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        with writing(self.folder):
            for trial in left:
                if trial.params or "proposal" in trial.user_attrs:
                    self.study.enqueue_trial(
                        trial.params, user_attrs={"proposal": trial.user_attrs.get("proposal", {})}
                    )
                optuna.Trial(self.study, trial._trial_id).set_user_attr("requeued", True)
                self.study.tell(trial.number, state=TrialState.FAIL)
        return len(left)

    def trial(self, key: str) -> FrozenTrial | None:
        """The trial that stands for an evaluation key, finished or not."""
        return next((trial for trial in self.trials() if trial.user_attrs.get("key") == key), None)

    def golden(self) -> Any:
        """Real inputs that were kept with the study: positional and keyword arguments."""
        from safetensors.torch import load_file

        from autogreen.tasks.trees import unpack

        path = self.folder / "golden.json"
        shape = parse_json(path.read_bytes(), str(path))
        return unpack(shape, load_file(self.folder / "golden.safetensors"))

    def between(self, worse: str, better: str) -> Interval | None:
        """By how much one evaluation loses more than another, paired; None where scores are gone."""
        try:
            reference, candidate = (quality.load(self.folder, key, "validation") for key in (better, worse))
            return quality.loss(reference, candidate)
        except (OSError, EvaluationError):
            return None

    def keep_only(self, always: Collection[str], others: Collection[str] = ()) -> None:
        """Delete the artifacts of all other keys. Of `others` the largest go too, until what is left of them takes no
        more than `KEEP_BYTES`, or `KEEP_TIMES` what the largest of `always` takes."""
        found = [path for path in (self.folder / "artifacts").iterdir() if path.is_dir()]
        for path in found:
            if path.name not in (*always, *others):
                shutil.rmtree(path, ignore_errors=True)
        sizes = {path: _size(path) for path in found if path.exists()}
        cap = max(KEEP_BYTES, KEEP_TIMES * max((sizes[path] for path in sizes if path.name in always), default=0))
        kept = sorted((path for path in sizes if path.name not in always), key=sizes.__getitem__)
        while kept and sum(sizes[path] for path in kept) > cap:
            shutil.rmtree(kept.pop(), ignore_errors=True)

    def results(self) -> Results:
        """Everything found so far.

        Raises:
            StudyError: the references are not measured yet, or policies are told in another format.
        """
        found = self.get("fingerprint", {"effects": f"format {FORMAT}"}).get("effects", "format 1")
        if found != f"format {FORMAT}":
            raise StudyError(
                f"the policies of study {self.folder.name!r} are told in {found}; this autogreen reads {FORMAT}, where "
                "the same words mean other things. Use the autogreen that made it, or begin anew with --fresh."
            )
        references = self.get("references", {})
        if not {"baseline", "plain"} <= set(references):
            raise StudyError(f"study {self.folder.name!r} has not measured its references yet; run the sweep again.")
        facts = self.get("facts")
        return Results(
            study=self.folder.name,
            experiment=facts["experiment"],
            task=facts["task"],
            workload=facts["workload"],
            hardware=facts["hardware"],
            item=facts["item"],
            tier=facts["tier"],
            boundary=facts["boundary"],
            baseline=Evaluation.from_json(references["baseline"]),
            plain=Evaluation.from_json(references["plain"]),
            controls={name: Evaluation.from_json(data) for name, data in self.get("controls", {}).items()},
            trials=tuple(_result(trial) for trial in self.trials()),
            published={key: Published.from_json(data) for key, data in self.get("published", {}).items()},
            seeds={
                key: tuple(Published.from_json(data) for data in found.values())
                for key, found in self.get("seeds", {}).items()
            },
            reference_point=tuple(facts["reference_point"]),
            max_loss=facts["max_loss"],
            bill=self.bill,
            fingerprint=self.get("fingerprint", {}),
            between=self.between,
            data=facts.get("data", ""),
        )


def _result(trial: FrozenTrial) -> TrialResult:
    attributes = trial.user_attrs
    data = attributes.get("evaluation")
    evaluation = None if data is None else Evaluation.from_json(data)
    state = "waiting" if not trial.state.is_finished() else "failed" if evaluation is None else evaluation.status
    return TrialResult(
        number=trial.number,
        state=state,
        params=attributes.get("params", {}),
        policy=attributes["policy"],
        evaluation=evaluation,
        feasible=bool(attributes.get("feasible", False)),
        reason=attributes.get("reason", ""),
    )


def _study(folder: Path, objectives: Sequence[str] = ()) -> optuna.Study:
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{folder / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
        directions = [DIRECTIONS[name] for name in objectives]
        if others := [name for name in optuna.get_all_study_names(storage) if name != folder.name]:
            raise StudyError(f"the study in {folder} is called {others[0]!r}: give the folder that name again.")
        if not optuna.get_all_study_names(storage):
            if not directions:
                raise StudyError(f"study {folder.name!r} has not begun. Run `autogreen sweep EXPERIMENT.yaml` first.")
            return optuna.create_study(study_name=folder.name, storage=storage, directions=directions)
        study = optuna.load_study(study_name=folder.name, storage=storage)
        if directions and len(study.directions) != len(directions) and "fingerprint" not in study.user_attrs:
            optuna.delete_study(study_name=folder.name, storage=storage)  # nothing was told yet, to any objective
            study = optuna.create_study(study_name=folder.name, storage=storage, directions=directions)
        return study
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        RuntimeError,
        json.JSONDecodeError,
    ) as error:
        reason = str(error).splitlines()[0]
        if "readonly" in reason or "unable to open" in reason or "disk" in reason:
            raise StudyError(
                f"{folder / 'study.db'} cannot be written: {reason}. Choose another with --runs."
            ) from error
        raise StudyError(
            f"{folder / 'study.db'} is damaged ({reason}). The artifacts beside it are untouched: restore it from "
            "a copy, or move the folder away and run the sweep again."
        ) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a database that cannot be written into one clear error; sqlite has rolled the write back."""
    import sqlalchemy.exc

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        raise StudyError(
            f"{folder / 'study.db'} cannot be written: {str(cause).splitlines()[0]}. What was told before is safe: "
            "make room, or mend the permissions, and run the same command again."
        ) from error


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}


def _size(path: Path) -> int:
    total = 0
    for entry in path.rglob("*"):
        with suppress(OSError):
            total += entry.stat().st_size
    return total


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 200 else text[:197] + "...")
