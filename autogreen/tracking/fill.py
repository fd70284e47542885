"""The mirror of a study: written, never read back.

A study may be filled at any time, any number of times, from anywhere: its runs are found again by their tags. A run
counts as filled when it is closed, below its sweep, and carries the digest of what it should hold; every other one is
filled (again). A new run is closed last; one that was closed before gets its new digest last.

MLflow cannot promise that a run exists once, so whoever made runs looks again afterwards: where two processes made the
same one, both choose the same to stay (the earliest start, then the lowest id) and delete the other; whoever looks
last sees both.
"""

import gc
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autogreen import files
from autogreen.errors import TrackingError
from autogreen.front import Front
from autogreen.tracking import view
from autogreen.tracking.connection import Server, alone, experiment_for, failures, patience
from autogreen.tracking.mirror import (
    KEY_CHARACTERS,
    Run,
    children,
    curves,
    cut,
    data,
    experiment_name,
    identity,
    names_of,
    parent,
)

BATCH = 100  # params or tags a request
PAGE = 200  # runs a request
TIMEOUT_S = 30.0  # of one request of a sync that somebody waits for
TRIES = 5  # in a row that get nothing done, before a sync that did reach its server gives up


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What a server holds after a fill. link: to the view. written: runs made or changed by it. held: runs of the
    study there, the sweep's own included."""

    link: str
    written: int
    held: int


@dataclass(frozen=True, kw_only=True)
class Held:
    """A run that is on the server, as far as it matters here."""

    run_id: str
    artifact_uri: str
    start_ms: int
    status: str
    tags: Mapping[str, str]
    params: frozenset[str]
    has_data: bool


def sync(front: Front, server: Server, report: Callable[[str], object] = lambda told: None) -> Filled:
    """Fill the mirror of a study until it holds exactly that.

    Args:
        report: told, in a few words, how far it is.

    Raises:
        TrackingError: the server cannot be reached or refuses; what it holds already is not written again next time.
    """
    study = identity(front)
    with patience(TIMEOUT_S), alone(study, server, waiting=report):
        failed, written = 0, 0
        mirror = Mirror(server, study, report=report)
        while True:
            try:
                return mirror.fill(front)
            except TrackingError as error:
                failed = 1 if mirror.written > written else failed + 1
                if not mirror.reached or failed >= TRIES:
                    raise
                written = mirror.written
                report(f"{error} Trying again in {2**failed} s")
                time.sleep(2**failed)
                mirror.forget()


def find(front: Front, server: Server) -> str | None:
    """The link to the view of a study that was mirrored; None where it was not.

    Raises:
        TrackingError: the server cannot be reached or refuses.
    """
    study = identity(front)
    with patience(TIMEOUT_S), failures(server):
        experiment = server.client().get_experiment_by_name(experiment_name(front))
        if experiment is None or experiment.lifecycle_stage == "deleted" or view.tag(study) not in experiment.tags:
            return None
        return view.link(server, experiment.experiment_id, study)


class Mirror:
    """One study's runs on one server, as far as this process knows them.

    pause: called before every request or two; it may wait, or raise to stop. report: as of `sync`.
    """

    def __init__(
        self,
        server: Server,
        study: str,
        *,
        pause: Callable[[], object] = lambda: None,
        report: Callable[[str], object] = lambda told: None,
    ) -> None:
        self.server, self.study, self._pause, self._report = server, study, pause, report
        self.reached, self.written = False, 0
        self._maker = uuid.uuid4().hex
        self._client: Any = None
        self.forget()

    def forget(self) -> None:
        """Ask the server again what it holds."""
        self._experiment_id = ""
        self._held: dict[str, Held] | None = None
        self._steps: dict[str, set[tuple[int, float]]] = {}

    def fill(self, front: Front, *, settle: bool = True) -> Filled:
        """Bring the server up to the study.

        Args:
            settle: look again whether somebody else made the same runs; not needed while more is to come.

        Raises:
            TrackingError: it cannot be reached or refuses.
        """
        written = self.written
        with failures(self.server):
            self._client = self._client or self.server.client()
            if not self._experiment_id:
                place = None if self.server.artifacts is None else "mlflow-artifacts:/"
                self._experiment_id = experiment_for(self._client, experiment_name(front), place)
            self.reached = True
            wanted = list(children(front))
            with _frozen():
                while self._children(front.results.study, wanted) and settle:
                    self._merge(self._listed(f" AND tags.`autogreen.maker` != '{self._maker}'"))
                self._sweep(front)
                self._view(front)
            held = self._known()
        link = view.link(self.server, self._experiment_id, self.study)
        return Filled(link=link, written=self.written - written, held=len(held))

    # -- the sweep and its children --------------------------------------------------------------------------------

    def _children(self, name: str, wanted: Sequence[Run]) -> int:
        """Fill what is not filled; return how many runs were made."""
        made, known = 0, self._known()
        common = {"autogreen.id": self.study, "autogreen.study": name}
        if "sweep" not in known:
            self._create("sweep", name, common)
            self._merge(self._listed(" AND tags.`autogreen.key` = 'sweep'"))  # all runs must hang below the same one
            made = 1
        common["mlflow.parentRunId"] = known["sweep"].run_id
        for done, run in enumerate(wanted):
            held = known.get(run.key)
            below = held is not None and held.tags.get("mlflow.parentRunId") == common["mlflow.parentRunId"]
            if held is not None and below and self._filled(held, run):
                continue
            self._pause()
            self._report(f"{done} of {len(wanted)} runs")
            if held is None:
                held = self._create(run.key, run.name, {**common, **run.tags, "autogreen.digest": run.digest})
                made += 1
            self._write(run.key, held, run, {**run.tags, **common})
        return made

    def _sweep(self, front: Front) -> None:
        """Curves, dataset and the front itself, after all that they are made from."""
        self._pause()
        held = self._known()["sweep"]
        self._curves(held.run_id, front)
        if not held.has_data and (found := data(front)) is not None:
            self._log_data(held.run_id, found.name, found.digest)
        run = parent(front)
        if not self._filled(held, run):
            self._write("sweep", replace(held, has_data=True), run, run.tags)

    @staticmethod
    def _filled(held: Held, run: Run) -> bool:
        return held.status == run.status and held.tags.get("autogreen.digest") == run.digest

    def _create(self, key: str, name: str, tags: Mapping[str, Any]) -> Held:
        told = {**tags, "autogreen.key": key, "autogreen.maker": self._maker}
        texts = {tag: str(value) for tag, value in told.items()}
        run = self._client.create_run(self._experiment_id, tags=texts, run_name=cut(name, KEY_CHARACTERS))
        held = _held(run)
        self._known()[key] = held
        return held

    def _write(self, key: str, held: Held, run: Run, tags: Mapping[str, Any]) -> None:
        """Artifacts first; the digest or the end last, so that a closed run that carries it is whole."""
        from mlflow.entities import Metric, Param, RunTag

        now_ms = time.time_ns() // 1_000_000
        self._upload(held, run.files)
        new = [Param(name, value) for name, value in run.params.items() if name not in held.params]  # written once
        told = {**tags, "autogreen.digest": run.digest}
        changed = [RunTag(name, str(value)) for name, value in told.items() if held.tags.get(name) != str(value)]
        metrics = [Metric(name, value, now_ms, 0) for name, value in run.metrics.items()]
        for first in range(BATCH, len(new), BATCH):
            self._client.log_batch(held.run_id, params=new[first : first + BATCH], synchronous=True)
        self._client.log_batch(held.run_id, metrics=metrics, params=new[:BATCH], tags=changed, synchronous=True)
        if held.status != run.status:
            self._client.set_terminated(held.run_id, status=run.status)
        held_tags = {**held.tags, **{tag.key: tag.value for tag in changed}}
        params = held.params | {param.key for param in new}
        self._known()[key] = replace(held, status=run.status, tags=held_tags, params=params)
        self.written += 1

    def _upload(self, held: Held, texts: Mapping[str, str]) -> None:
        inside = held.artifact_uri.removeprefix("mlflow-artifacts:/")
        if self.server.artifacts is not None and inside != held.artifact_uri:
            for name, text in texts.items():
                with files.whole(self.server.artifacts / inside / name) as partial:
                    partial.write_text(text, encoding="utf-8")
            return
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        # MLflow's client would ask for the run again before each file
        store = get_artifact_repository(held.artifact_uri, tracking_uri=self.server.address)
        with tempfile.TemporaryDirectory() as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
                store.log_artifact(str(Path(folder) / name))

    def _curves(self, run_id: str, front: Front) -> None:
        """Hypervolume and joules spent over trials; only what is not there yet."""
        from mlflow.entities import Metric

        now_ms = time.time_ns() // 1_000_000
        for key, curve in curves(front).items():
            if key not in self._steps:
                there = self._client.get_metric_history(run_id, key)
                self._steps[key] = {(metric.step, metric.value) for metric in there}
            new = [(step, value) for step, value in curve.items() if (step, value) not in self._steps[key]]
            for first in range(0, len(new), 500):
                metrics = [Metric(key, value, now_ms, step) for step, value in new[first : first + 500]]
                self._client.log_batch(run_id, metrics=metrics, synchronous=True)
            self._steps[key] |= set(new)

    def _log_data(self, run_id: str, name: str, digest: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        found = Dataset(name=name, digest=digest, source_type="autogreen task", source=name)
        tags = [InputTag("mlflow.data.context", "search")]
        self._client.log_inputs(run_id, datasets=[DatasetInput(found, tags)])

    # -- what the server holds -------------------------------------------------------------------------------------

    def _known(self) -> dict[str, Held]:
        """Runs of this study by key, each once."""
        if self._held is None:
            self._held = {}
            self._merge(self._listed())
        return self._held

    def _merge(self, listed: Iterable[tuple[str, Held]]) -> None:
        known = self._known()
        for key, held in listed:
            other = known.get(key, held)
            if other.run_id != held.run_id:
                held, goes = sorted((held, other), key=lambda found: (found.start_ms, found.run_id))
                self._delete(goes.run_id)
            known[key] = held

    def _listed(self, more: str = "") -> list[tuple[str, Held]]:
        found, token = [], None
        while True:
            self._pause()
            query = f"tags.`autogreen.id` = '{self.study}'{more}"
            page = self._client.search_runs([self._experiment_id], query, max_results=PAGE, page_token=token)
            found += [(key, _held(run)) for run in page if (key := run.data.tags.get("autogreen.key"))]
            if not (token := page.token):
                return found

    def _delete(self, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.delete_run(run_id)
        except MlflowException:  # the other process was faster
            if self._client.get_run(run_id).info.lifecycle_stage != "deleted":
                raise

    def _view(self, front: Front) -> None:
        sweep, tag = self._known()["sweep"], view.tag(self.study)
        knobs = names_of(knob for trial in front.results.trials for knob in trial.params)
        wanted = view.state(front, self.study, sweep.start_ms, knobs)
        if self._client.get_experiment(self._experiment_id).tags.get(tag) != wanted:
            self._client.set_experiment_tag(self._experiment_id, tag, wanted)


@contextmanager
def _frozen() -> Iterator[None]:
    """Let the garbage collector leave alone what is there: it would look through a large study again and again."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _held(run: Any) -> Held:
    info = run.info
    return Held(
        run_id=info.run_id,
        artifact_uri=info.artifact_uri,
        start_ms=info.start_time,
        status=info.status,
        tags=run.data.tags,
        params=frozenset(run.data.params),
        has_data=bool(run.inputs and run.inputs.dataset_inputs),
    )
