"""The mirror: real MLflow on sqlite, filled once and only once; servers that are dead, slow or missing; its limits."""

import json
import math
import os
import random
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autogreen.errors import ConfigError, TrackingError
from autogreen.front import Front, progress
from autogreen.results import Results, TrialResult
from autogreen.testing import scripted_evaluation, scripted_results
from autogreen.tracking import Filled, Server, fill, find, sync, view
from autogreen.tracking.connection import alone, patience
from autogreen.tracking.mirror import children, curves, cut, experiment_name, identity, names_of, parent

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
FOLDERS: set[Path] = set()
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


def mirror(results: Results, folder: Path) -> Filled:
    return sync(Front.of(results), Server(uri=None, runs=folder.parent))


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
    """Of an artifact, which no path of this machine names."""
    (folder,) = {Path(place) for place in FOLDERS if (Path(place) / run.info.run_id).exists()}
    assert run.info.artifact_uri == f"mlflow-artifacts:/{run.info.run_id}/artifacts"
    return (folder / run.info.run_id / "artifacts" / name).read_text()


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
    with sqlite3.connect(folder.parent / "mlflow.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return (folder.parent / "mlflow.db").read_bytes()


@pytest.fixture
def folder(tmp_path: Path, migrated: bytes) -> Path:
    (tmp_path / "mlflow.db").write_bytes(migrated)
    FOLDERS.add(tmp_path / "mlartifacts")
    return tmp_path / "scripted"


# --- real MLflow ------------------------------------------------------------------------------------------------------


def test_a_study_is_mirrored_whole(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    told = mirror(study(data="d1g35t"), folder)
    assert told.link.startswith("http://127.0.0.1:5000/#/experiments/")
    shown = f"viewStateShareKey=autogreen-{identity(Front.of(study()))}&compareRunsMode=CHART"
    assert told.link.endswith(f"/runs?{shown}&workflowType=machine_learning") and told.written == told.held == 9
    assert find(Front.of(study()), Server(uri=None, runs=folder.parent)) == told.link
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
    (held,) = sweep.inputs.dataset_inputs
    assert (held.dataset.name, held.dataset.digest) == ("toy", "d1g35t")
    colours = [found[key].data.tags["mlflow.runColor"] for key in ("trial 1", "trial 2", "reference baseline")]
    assert len(set(colours)) == 3 and "mlflow.runColor" not in found["trial 4"].data.tags
    order = sorted(found, key=lambda key: found[key].data.tags.get("autogreen.order", "9"))
    assert order[2:6] == ["reference baseline", "reference plain use", "control scratch", "trial 2"]


def trial_key(number: int) -> str:
    evaluation = study().trials[number].evaluation
    assert evaluation is not None
    return evaluation.key


def test_a_second_sync_changes_nothing_and_a_grown_study_only_what_changed(folder: Path) -> None:
    mirror(study(), folder)
    first = runs(folder)
    assert mirror(study(), folder).written == 0
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


@pytest.mark.parametrize("at", ["create_run", "log_batch", "set_terminated", "set_experiment_tag"])
def test_a_run_created_but_not_filled_is_filled(folder: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    from mlflow import MlflowClient

    whole, done = getattr(MlflowClient, at), []

    def dies(*args: Any, **named: Any) -> Any:
        done.append(args)
        if len(done) >= (1 if at == "set_experiment_tag" else 4):
            raise ConnectionError("the server died")
        return whole(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, at, dies)
        patch.setattr(fill.time, "sleep", lambda seconds: None)
        with pytest.raises(TrackingError, match="the server died"):
            mirror(study(), folder)
    mirror(study(), folder)
    assert all(run.info.status in ("FINISHED", "FAILED") for run in runs(folder).values())
    assert len(runs(folder)) == 9 and mirror(study(), folder).written == 0


def test_what_two_made_at_once_is_one_run_again(folder: Path) -> None:
    """Both choose the same: also a sweep made twice, with children below each."""
    mirror(study(), folder)
    first, found = runs(folder), client(folder)
    for key in ("sweep", "trial 1", "control scratch"):
        run = first[key]
        for late in (1, -1):  # one lost and one won against
            found.create_run(run.info.experiment_id, start_time=run.info.start_time + late, tags=run.data.tags)
    mirror(study(), folder)
    after = runs(folder)
    assert set(after) == set(first) and mirror(study(), folder).written == 0
    assert all(after[key].info.start_time == first[key].info.start_time - 1 for key in ("sweep", "trial 1"))
    assert after["trial 1"].data.params == first["trial 1"].data.params
    assert {run.data.tags.get("mlflow.parentRunId") for key, run in after.items() if key != "sweep"} == {
        after["sweep"].info.run_id
    }


def test_a_copied_folder_is_the_same_study(folder: Path, tmp_path: Path) -> None:
    """Runs are found again and their artifacts lie in the copy, whatever became of the original."""
    mirror(study(), folder)
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in tmp_path.glob("mlflow.db*"):
        (copy / path.name).write_bytes(path.read_bytes())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mlartifacts").rglob("*")}
    grown = study(trials=(*study().trials[:5], replace(study().trials[0], number=7)))
    assert mirror(grown, copy / "scripted").held == 10
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mlartifacts").rglob("*")} == before
    FOLDERS.add(copy / "mlartifacts")
    assert text(runs(copy / "scripted")["trial 7"], "policy.json")


def test_one_process_fills_a_mirror_at_a_time(tmp_path: Path) -> None:
    server, told = Server(uri=None, runs=tmp_path), list[str]()
    with alone("s", server) as ours, alone("s", server) as theirs, alone("other", server) as another:
        assert (ours, theirs, another) == (True, False, True)
        waiter = threading.Thread(target=lambda: alone("s", server, waiting=told.append).__enter__(), daemon=True)
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive() and told == [f"waiting for process {os.getpid()}, which fills this mirror now"]
    waiter.join(5)
    assert not waiter.is_alive()


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
    assert json.loads(text(found["trial 3"], "uncut.json")) == {"reason": "y" * 9000}
    uncut = json.loads(text(found["trial 0"], "uncut.json"))
    assert set(uncut) == set(params) and uncut["layer0.(q|k) ß"] == "x" * 7000
    assert found["trial 0"].data.tags["autogreen.study"] == 'it\'s "odd" %'
    assert mirror(results, folder) and len(runs(folder)) == len(found)


# --- servers ----------------------------------------------------------------------------------------------------------


def refused(uri: str, folder: Path) -> str:
    began = time.monotonic()
    with pytest.raises(TrackingError) as told:
        sync(Front.of(study()), Server(uri=uri, runs=folder))
    assert time.monotonic() - began < 5
    return str(told.value)


def test_a_dead_server_is_told_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "nothing listens there" in refused(f"http://127.0.0.1:{port}", tmp_path)
    assert "no such host" in refused("http://no-such-host.invalid", tmp_path)
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


def test_a_server_that_never_answers_is_given_up(silent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "TIMEOUT_S", 1.0)
    assert "does not answer in time" in refused(f"http://127.0.0.1:{silent}", tmp_path)


@pytest.mark.parametrize(
    "uri",
    ["nonsense://x", "sqlite:///x.db", "postgresql://me:secret@host/db", "http://[broken", "host:5000", "http://"],
)
def test_an_address_that_means_nothing_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        Server(uri=uri, runs=tmp_path)
    assert "secret" not in str(told.value)


def test_credentials_stay_out_of_addresses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as told:
        Server(uri="https://me:secret@host", runs=tmp_path)
    assert "secret" not in str(told.value)


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(TrackingError, match=r"mlflow\.db failed: .*not a database.* Mend or move that file"):
        mirror(study(), tmp_path / "s")


def test_without_mlflow_there_is_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackingError, match="mlflow is not installed"):
        mirror(study(), tmp_path / "s")


def test_without_plotly_there_is_no_page_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from autogreen.cli import searching

    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    searching._page(Front.of(study()), tmp_path)
    told = capsys.readouterr().out
    assert "No page, for plotly" in told and f"autogreen front {tmp_path.name} --html" in told
    assert not (tmp_path / "front.html").exists()


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


def test_links_name_the_real_server(tmp_path: Path) -> None:
    behind = Server(uri="https://host:8443/mlflow/", runs=tmp_path)
    assert view.link(behind, "7", "abc") == (
        "https://host:8443/mlflow/#/experiments/7/runs?viewStateShareKey=autogreen-abc&compareRunsMode=CHART"
        "&workflowType=machine_learning"
    )
    assert view.link(Server(uri=None, runs=tmp_path, port=6001), "7", "abc").startswith("http://127.0.0.1:6001/#/")


def shown(results: Results) -> tuple[dict[str, Any], dict[str, Any]]:
    """The view's tag, and the page's state in it."""
    knobs = names_of(knob for trial in results.trials for knob in trial.params)
    told = json.loads(view.state(Front.of(results), "abc", 5, knobs))
    return told, json.loads(told["state"])


def test_the_view_has_a_name_and_two_charts_of_what_is_measured() -> None:
    told, page = shown(study())
    assert told["name"] == "Pareto front: scripted" and told["createdAt"] == 5
    scatter, parallel = page["compareRunCharts"]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("energy_per_item_j", "quality")
    assert parallel["selectedParams"] == ["width"]  # the scheme is the same everywhere
    assert parallel["selectedParams"][0] in next(run.params for run in children(Front.of(study())) if run.params)
    assert page["searchFilter"] == "tags.`autogreen.id` = 'abc' AND metrics.energy_per_item_j > 0"


@pytest.mark.parametrize(("workload", "metric"), [({}, "latency_s"), ({"kind": "server", "p95_s": 0.1}, "p95_s")])
def test_latency_has_a_chart_and_an_axis_where_it_is_an_objective(workload: dict[str, Any], metric: str) -> None:
    found = scripted_results([(0.0, 0.9, 0.010), (0.0, 1.7, 0.006)])
    found = replace(found, workload={**found.workload, **workload})
    scatter, latency, parallel = shown(found)[1]["compareRunCharts"]
    assert scatter["yaxis"]["key"] == "quality" and parallel["selectedMetrics"][-1] == metric
    assert (latency["type"], latency["xaxis"]["key"], latency["yaxis"]["key"]) == (
        "SCATTER",
        "energy_per_item_j",
        metric,
    )
    assert {"front.svg", "latency.svg"} <= set(parent(Front.of(found)).files)


def test_of_many_knobs_those_are_shown_that_energy_depends_on() -> None:
    chance = random.Random(0)
    energies = [chance.uniform(0.2, 1.0) for _ in range(120)]
    results = scripted_results([(0.001 * n, energy) for n, energy in enumerate(energies)])
    noise = [{f"layer {k}": chance.choice(["none", "bf16", "int8"]) for k in range(200)} for _ in energies]
    trials = tuple(
        replace(
            trial,
            params={
                **knobs,
                "unique": n,
                "layer 77": "int8" if energy < 0.5 else "none",
                "ratio": energy + chance.gauss(0, 0.05),
                "constant": 1,
            },
        )
        for n, (trial, knobs, energy) in enumerate(zip(results.trials, noise, energies, strict=True))
    )
    found = view.telling(Front.of(replace(results, trials=trials)))
    assert len(found) == view.KNOBS and set(found[:2]) == {"layer 77", "ratio"} and "constant" not in found


def test_a_front_larger_than_the_page_says_so() -> None:
    places = [(0.0007 * n, 0.97**n) for n in range(120)]
    told, _ = shown(scripted_results(places, noise=(0.0001, 0.001)))
    assert told["name"] == "Pareto front: scripted (the first 100 of 120 members)"


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
    found = names_of(["a(b", "a)b", "a_b", "ok.name/x y"])
    assert len(set(found.values())) == 4 and {"ok.name/x y", "a_b"} <= set(found.values())
    twice = names_of(["pruning.ratio:conv1", "pruning[conv1].ratio", "quantization[block a.0].scheme"])
    assert names_of(["ok", "ok", "a b", "ok", "a b"]) == {"ok": "ok", "a b": "a b"}
    assert len(set(twice.values())) == 3 and twice["quantization[block a.0].scheme"] == "quantization.scheme:block a.0"
    assert cut("x" * 10, 10) == "x" * 10
    assert len(cut("x" * 99, 50)) == 50 and cut("x" * 99, 50).endswith("(99 characters, cut)")


def test_curves_add_up() -> None:
    assert list(curves(Front.of(study()))["energy_spent_j"].values()) == [10, 20, 30, 30, 40]


def test_curves_end_before_what_is_still_evaluated() -> None:
    waiting = replace(study().trials[5], number=2)
    trials = (*study().trials[:2], waiting, *study().trials[3:5])
    assert set(curves(Front.of(study(trials=trials)))["hypervolume"]) == {0, 1}
