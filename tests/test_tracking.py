"""The mirror: real MLflow on sqlite, filled once and only once; servers that are dead, slow or missing; its limits."""

import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autogreen.front import Front, progress
from autogreen.results import Results, TrialResult
from autogreen.testing import scripted_evaluation, scripted_results
from autogreen.tracking import fill, link, sync
from autogreen.tracking.connection import patience
from autogreen.tracking.mirror import children, curves, cut, experiment_name, identity, named, parent

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
PLACES = ((0.0, 0.8), (0.004, 0.3), (0.03, 1.0))


def study(**fields: Any) -> Results:
    found = scripted_results(PLACES)
    failed = TrialResult(number=3, state="failed", params={"width": 0.5}, policy={}, reason="out of memory")
    gated = TrialResult(
        number=4,
        state="gated",
        params={"width": 0.1},
        policy={},
        evaluation=scripted_evaluation(0.5, 0.1, name="g", status="gated"),
    )
    waiting = TrialResult(number=5, state="waiting", params={}, policy={})
    return replace(found, **{"trials": (*found.trials, failed, gated, waiting), **fields})


def mirror(results: Results, folder: Path, uri: str | None = None) -> str | None:
    return sync(Front.of(results), uri=uri, folder=folder, timeout_s=60)


def client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")


def runs(folder: Path) -> dict[str, Any]:
    found = client(folder)
    (experiment,) = (e for e in found.search_experiments() if e.name != "Default")
    held = found.search_runs([experiment.experiment_id])
    by_key = {run.data.tags["autogreen.key"]: run for run in held}
    assert len(by_key) == len(held), "a run exists twice"
    return by_key


def text(run: Any, name: str) -> str:
    return (Path(run.info.artifact_uri.removeprefix("file://")) / name).read_text()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database after MLflow's own migrations, which take longer than everything else here."""
    folder = tmp_path_factory.mktemp("migrated") / "runs" / "scripted"
    assert mirror(replace(study(), task="other"), folder)
    found = client(folder)
    for experiment in found.search_experiments():
        if experiment.name != "Default":
            found.rename_experiment(experiment.experiment_id, "old")
            found.delete_experiment(experiment.experiment_id)
    return (folder.parent / "mlflow.db").read_bytes()


@pytest.fixture
def folder(tmp_path: Path, migrated: bytes) -> Path:
    (tmp_path / "mlflow.db").write_bytes(migrated)
    return tmp_path / "scripted"


# --- real MLflow ------------------------------------------------------------------------------------------------------


def test_a_study_is_mirrored_whole(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    told = mirror(study(), folder)
    assert told is not None and told.startswith("http://127.0.0.1:5000/#/experiments/")
    assert told.endswith("/runs?workflowType=machine_learning")
    assert capfd.readouterr() == ("", "") and dict(os.environ) == before
    found = runs(folder)
    assert set(found) == {
        "sweep", "reference baseline", "reference plain use", "control scratch", *(f"trial {n}" for n in range(5))
    }  # fmt: skip
    trial, sweep = found["trial 1"], found["sweep"]
    assert trial.info.status == "FINISHED" and found["trial 3"].info.status == "FAILED"
    assert trial.data.params == {"width": "0.996", "scheme": "w8a8_static"}
    assert trial.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert trial.data.tags["autogreen.study"] == "scripted" and trial.data.tags["autogreen.trial"] == "1"
    expected = {"state": "measured", "feasible": "true", "on_front": "true", "tier": "estimated"}
    assert expected.items() <= trial.data.tags.items() and len(trial.data.tags["policy_id"]) == 12
    assert found["trial 2"].data.tags["on_front"] == "false"
    assert found["trial 3"].data.tags["reason"] == "out of memory" and found["trial 3"].data.metrics == {}
    assert found["trial 4"].data.tags["state"] == "gated" and "energy_ratio" not in found["trial 4"].data.metrics
    metrics = trial.data.metrics
    for name in ("quality", "quality_loss", "energy_per_item_j", "energy_ratio", "latency_s"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert metrics["energy_per_item_j"] == pytest.approx(0.3e-3) and metrics["size_bytes"] == 100_000
    assert metrics["memory_bytes"] == 300_000
    assert json.loads(text(trial, "policy.json")) == study().trials[1].policy
    assert json.loads(text(trial, "evaluation.json"))["key"] == trial_key(1)
    table = json.loads(text(sweep, "front_table.json"))
    assert len(table["data"]) == 2 + 3 and all(len(row) == len(table["columns"]) for row in table["data"])
    assert json.loads(sweep.data.tags["mlflow.loggedArtifacts"]) == [{"path": "front_table.json", "type": "table"}]
    assert text(sweep, "front.svg").startswith("<svg") and "Plotly.newPlot" in text(sweep, "front.html")
    assert json.loads(text(sweep, "experiment.json")) == {"name": "scripted", "seed": 0}
    areas = client(folder).get_metric_history(sweep.info.run_id, "hypervolume")
    assert sorted((m.step, m.value) for m in areas) == progress(study())
    spent = client(folder).get_metric_history(sweep.info.run_id, "energy_spent_j")
    assert sorted((m.step, m.value) for m in spent) == [(0, 10), (1, 20), (2, 30), (3, 30), (4, 40)]


def trial_key(number: int) -> str:
    evaluation = study().trials[number].evaluation
    assert evaluation is not None
    return evaluation.key


def test_a_second_sync_changes_nothing_and_a_grown_study_only_what_changed(folder: Path) -> None:
    mirror(study(), folder)
    first = runs(folder)
    mirror(study(), folder)
    second = runs(folder)
    assert {k: (r.info.run_id, r.info.end_time) for k, r in first.items()} == {
        k: (r.info.run_id, r.info.end_time) for k, r in second.items()
    }
    history = client(folder).get_metric_history(first["sweep"].info.run_id, "hypervolume")
    assert len(history) == 5
    new = replace(study().trials[0], number=5, evaluation=scripted_evaluation(-0.02, 0.29, name="new"))
    mirror(replace(study(), trials=(*study().trials[:5], new)), folder)
    third = runs(folder)
    assert set(third) - set(first) == {"trial 5"}
    assert third["trial 1"].info.run_id == first["trial 1"].info.run_id
    assert third["trial 1"].data.tags["on_front"] == "false" and third["trial 5"].data.tags["on_front"] == "true"
    assert len(json.loads(text(third["sweep"], "front_table.json"))["data"]) == 1 + 3


def test_a_run_created_but_not_filled_is_filled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, done = fill._write, []

    def dies(*args: Any) -> None:
        done.append(args)
        if len(done) == 4:
            raise ConnectionError("the server died")
        write(*args)

    monkeypatch.setattr(fill, "_write", dies)
    assert mirror(study(), folder) is not None  # it was reached, before it died
    half = runs(folder)
    assert [run.info.status for run in half.values()].count("RUNNING") == 2  # the sweep and one trial
    monkeypatch.setattr(fill, "_write", write)
    mirror(study(), folder)
    assert all(run.info.status in ("FINISHED", "FAILED") for run in runs(folder).values())
    assert len(runs(folder)) == 9


def test_a_study_begun_afresh_under_the_same_name_is_another_sweep(folder: Path) -> None:
    mirror(study(), folder)
    other = study(plain=scripted_evaluation(0.0, 1.51, name="plain"))
    mirror(other, folder)
    found = client(folder)
    (experiment,) = (e for e in found.search_experiments() if e.name != "Default")
    sweeps = found.search_runs([experiment.experiment_id], "tags.role = 'sweep'")
    assert len(sweeps) == 2 and len({run.data.tags["autogreen.id"] for run in sweeps}) == 2


def test_what_mlflow_would_cut_or_refuse(folder: Path) -> None:
    long = {f"layer{i}.(q|k) ß": "x" * 7000 if i == 0 else i for i in range(230)}
    params = {**long, "a//b": 1, "../up": 2, "k" * 300: 3}
    trial = replace(study().trials[0], params=params)
    failed = replace(study().trials[3], reason="y" * 9000)
    results = study(study='it\'s "odd" %', trials=(trial, failed))
    assert mirror(results, folder)
    found = runs(folder)
    held = found["trial 0"].data.params
    assert len(held) == len(params) and max(map(len, held)) <= 250
    assert sum("7000 characters, cut" in value for value in held.values()) == 1
    assert "9000 characters, cut" in found["trial 3"].data.tags["reason"]
    assert found["trial 0"].data.tags["autogreen.study"] == 'it\'s "odd" %'
    assert mirror(results, folder) and len(runs(folder)) == len(found)


# --- servers ----------------------------------------------------------------------------------------------------------


def within(seconds: float, uri: str, folder: Path, timeout_s: float) -> str | None:
    began = time.monotonic()
    told = sync(Front.of(study()), uri=uri, folder=folder, timeout_s=timeout_s)
    assert time.monotonic() - began < seconds
    with fill._one_at_a_time:  # what is left in the background ends by itself
        return told


def test_a_dead_server_costs_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert within(10, f"http://127.0.0.1:{port}", tmp_path / "s", 8) is None
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def silent() -> Iterator[int]:
    """A server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(listening.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def test_a_server_that_never_answers_is_given_up(silent: int, tmp_path: Path) -> None:
    assert within(2.5, f"http://127.0.0.1:{silent}", tmp_path / "s", 2) is None


@pytest.mark.parametrize("uri", ["nonsense://x", "sqlite:////proc/no/such/place.db", "http://[broken"])
def test_an_address_that_means_nothing_is_no_error(uri: str, tmp_path: Path) -> None:
    assert within(21, uri, tmp_path / "s", 20) is None


def test_without_mlflow_there_is_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert sync(Front.of(study()), uri=None, folder=tmp_path / "s", timeout_s=5) is None


def test_without_plotly_there_is_no_page_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from autogreen.cli import searching

    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    searching._mirror(Front.of(study()), tmp_path, None)
    told = capsys.readouterr().out
    assert "No page, for plotly" in told and f"autogreen front {tmp_path.name} --html" in told
    assert not (tmp_path / "front.html").exists()


def test_no_time_is_no_mirror(tmp_path: Path) -> None:
    assert within(0.5, "http://127.0.0.1:1", tmp_path / "s", 0.0) is None


def test_what_silences_mlflow_is_what_it_reads() -> None:
    from mlflow import environment_variables

    before = dict(os.environ)
    with patience(5):
        assert environment_variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get()
        assert environment_variables.MLFLOW_DISABLE_TELEMETRY.get()
        assert not environment_variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.get()
        assert not environment_variables.MLFLOW_ENABLE_ASYNC_LOGGING.get()
        assert environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 5
        assert environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 0
    assert dict(os.environ) == before


# --- plain values -----------------------------------------------------------------------------------------------------


def test_links_hide_passwords_and_land_on_the_runs() -> None:
    assert link("https://me:secret@host:8443/mlflow/", "7") == (
        "https://host:8443/mlflow/#/experiments/7/runs?workflowType=machine_learning"
    )


def test_experiment_names_what_must_agree() -> None:
    assert experiment_name(Front.of(study())) == "toy · offline 64 · Scripted CPU, 2 cores, AVX512"
    assert len(experiment_name(Front.of(study(task="t" * 900)))) == 400


def test_infinity_and_unknown_are_left_out() -> None:
    evaluation = replace(scripted_evaluation(0.0, 0.5, name="layer0"), spent_j=math.inf, memory_bytes=None)
    results = study(trials=(replace(study().trials[0], evaluation=evaluation),))
    (run,) = (run for run in children(Front.of(results)) if run.key == "trial 0")
    assert "spent_j" not in run.metrics and "memory_bytes" not in run.metrics
    assert all(map(math.isfinite, run.metrics.values()))
    assert all(math.isfinite(value) for value in parent(Front.of(results)).metrics.values())


def test_identity_survives_growth_and_a_copy_through_json() -> None:
    whole, begun = Front.of(study()), Front.of(study(trials=()))
    assert identity(whole) == identity(begun)
    copied = type(study().plain).from_json(json.loads(json.dumps(study().plain.to_json())))
    assert identity(Front.of(study(plain=copied))) == identity(whole)
    assert identity(Front.of(study(study="other"))) != identity(whole)


def test_names_stay_distinct() -> None:
    found = named({"a(b": 1, "a)b": 2, "a_b": 3, "ok.name/x y": 4})
    assert sorted(found.values()) == [1, 2, 3, 4] and "ok.name/x y" in found and "a_b" in found
    assert cut("x" * 10, 10) == "x" * 10
    assert len(cut("x" * 99, 50)) == 50 and cut("x" * 99, 50).endswith("(99 characters, cut)")


def test_curves_add_up() -> None:
    assert list(curves(Front.of(study()))["energy_spent_j"].values()) == [10, 20, 30, 30, 40]
