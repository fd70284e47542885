"""The mirror of a study: written, never read back.

`sync` may be called at any time and any number of times; runs are found again by their tags, so each exists once. A run
counts as filled when it is closed and carries the digest of what it should hold; everything else is filled (again).
A server that is dead, slow or missing costs at most the time that the caller grants, and never an exception.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from autogreen.front import Front
from autogreen.tracking.connection import LOCAL, patience
from autogreen.tracking.mirror import (
    KEY_CHARACTERS,
    PARAM_CHARACTERS,
    TAG_CHARACTERS,
    Run,
    children,
    curves,
    cut,
    experiment_name,
    identity,
    named,
    parent,
)

BATCH = 100  # params or tags a request
_one_at_a_time = threading.Lock()


def sync(front: Front, *, uri: str | None, folder: Path, timeout_s: float) -> str | None:
    """Mirror a study; what an earlier call could not finish is finished now.

    Args:
        uri: of a tracking server or database; None: `mlflow.db` beside the study's folder.
        folder: of the study, `runs/NAME`.
        timeout_s: after this many seconds the caller goes on; a request under way ends in the background.

    Returns:
        The link to the experiment's runs (of a local database: once `autogreen ui` serves it), or None when the
        server could not be reached or mlflow is not installed.
    """
    until, found = time.monotonic() + timeout_s, list[str]()
    worker = threading.Thread(
        target=_quietly, args=(front, uri, folder, until, found), name="mlflow-mirror", daemon=True
    )
    worker.start()
    worker.join(timeout_s)
    return found[0] if found else None


def link(server: str, experiment_id: str) -> str:
    """The page of an experiment's runs; without the last part MLflow opens an empty overview for language models."""
    parts = urlsplit(server)
    host = parts.netloc.rpartition("@")[2]  # a password in the address is not for the screen
    base = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
    return f"{base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


# --- the server's side ------------------------------------------------------------------------------------------------


def _quietly(front: Front, uri: str | None, folder: Path, until: float, found: list[str]) -> None:
    """Runs in its own thread, which no failure may leave."""
    if not _one_at_a_time.acquire(timeout=max(0.0, until - time.monotonic())):
        return
    try:
        with patience(until - time.monotonic()):
            _fill(front, uri, folder, until, found)
    except Exception:  # noqa: BLE001 - a mirror that breaks, in whatever way, costs the study nothing
        return
    finally:
        _one_at_a_time.release()


def _fill(front: Front, uri: str | None, folder: Path, until: float, found: list[str]) -> None:
    from mlflow import MlflowClient

    runs = folder.resolve().parent
    if uri is None:
        runs.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri=uri or f"sqlite:///{runs / 'mlflow.db'}")
    local = uri is None or not uri.startswith("http")
    place = (runs / "mlartifacts").as_uri() if uri is None else None  # MLflow's default is the current folder
    experiment_id = _experiment(client, experiment_name(front), place)
    found.append(link(LOCAL if local or uri is None else uri, experiment_id))

    study = identity(front)
    known = {
        run.data.tags["autogreen.key"]: run
        for run in _all(client, experiment_id, f"tags.`autogreen.id` = '{study}'")
        if "autogreen.key" in run.data.tags
    }
    common = {"autogreen.id": study, "autogreen.study": front.results.study}
    sweep = known.get("sweep") or _create(client, experiment_id, "sweep", front.results.study, common)
    common["mlflow.parentRunId"] = sweep.info.run_id
    for wanted in children(front):
        if time.monotonic() > until:
            return
        run = known.get(wanted.key)
        if run is None or not _filled(run, wanted):
            run = run or _create(client, experiment_id, wanted.key, wanted.name, common)
            _write(client, run, wanted, until)
    if time.monotonic() > until:
        return
    _curves(client, sweep.info.run_id, front)
    wanted = parent(front)
    if not _filled(sweep, wanted):
        _write(client, sweep, wanted, until)


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another sync was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _all(client: Any, experiment_id: str, query: str) -> Iterator[Any]:
    """Runs that match, the oldest last: where two syncs made one run twice, the first one counts."""
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=1000, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _create(client: Any, experiment_id: str, key: str, name: str, common: Mapping[str, str]) -> Any:
    return client.create_run(experiment_id, tags={**common, "autogreen.key": key}, run_name=cut(name, KEY_CHARACTERS))


def _filled(run: Any, wanted: Run) -> bool:
    return bool(run.info.status == wanted.status and run.data.tags.get("autogreen.digest") == wanted.digest)


def _write(client: Any, run: Any, wanted: Run, until: float) -> None:
    """Artifacts first and the digest last, so that a run that carries it is whole."""
    from mlflow.entities import Metric, Param, RunTag

    run_id, now_ms = run.info.run_id, time.time_ns() // 1_000_000
    for name, text in wanted.files.items():
        if time.monotonic() > until:
            return
        client.log_text(run_id, text, name)
    params = [Param(key, cut(value, PARAM_CHARACTERS)) for key, value in named(wanted.params).items()]
    new = [param for param in params if param.key not in run.data.params]  # params cannot be changed once written
    metrics = [Metric(key, value, now_ms, 0) for key, value in wanted.metrics.items()]
    told = {**wanted.tags, "autogreen.digest": wanted.digest}
    tags = [RunTag(key, cut(value, TAG_CHARACTERS)) for key, value in told.items()]
    for first in range(BATCH, len(new), BATCH):
        client.log_batch(run_id, params=new[first : first + BATCH], synchronous=True)
    client.log_batch(run_id, metrics=metrics, params=new[:BATCH], tags=tags, synchronous=True)
    if run.info.status != wanted.status:
        client.set_terminated(run_id, status=wanted.status)


def _curves(client: Any, run_id: str, front: Front) -> None:
    """Hypervolume and joules spent over trials; only what is not there yet."""
    from mlflow.entities import Metric

    now_ms = time.time_ns() // 1_000_000
    for key, curve in curves(front).items():
        there = {(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)}
        new = [Metric(key, value, now_ms, step) for step, value in curve.items() if (step, value) not in there]
        for first in range(0, len(new), 500):
            client.log_batch(run_id, metrics=new[first : first + 500], synchronous=True)
