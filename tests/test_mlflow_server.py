"""The mirror on a real `mlflow server`: over REST, by two at once, while it dies; and its pages in a real browser."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow_pages import chromium, free_port, keep, until

from autogreen.errors import AutogreenError, ConfigError
from autogreen.front import Front
from autogreen.results import Results
from autogreen.testing import scripted_results
from autogreen.tracking import Server, fill, serving, sync

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
PLACES = [(0.002 * n, 0.8**n) for n in range(14)] + [(0.03 + 0.002 * n, 1.0 - 0.02 * n) for n in range(20)]
TWO = """
import sys, pathlib
from autogreen.front import Front
from autogreen.testing import scripted_results
from autogreen.tracking import Server, sync
places = [(0.002 * n, 0.8**n) for n in range(25)]
server = Server(uri=sys.argv[1], runs=pathlib.Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
filled = sync(Front.of(scripted_results(places, study="two")), server)
assert filled.held == 25 + 4, filled
"""


def study() -> Results:
    found = scripted_results(PLACES)
    knobs = [{"scheme": ("int8", "bf16")[n % 2], "ratio": 0.05 * n} for n in range(len(PLACES))]
    trials = zip(found.trials, knobs, strict=True)
    return replace(found, trials=tuple(replace(trial, params=params) for trial, params in trials))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    with serving(folder, port):
        yield Server(uri=f"http://127.0.0.1:{port}", runs=folder / "no studies here")


def held(server: Server, name: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(server.address)
    every = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(every, f"tags.`autogreen.study` = '{name}'")
    by_key = {run.data.tags["autogreen.key"]: run for run in runs}
    assert len(by_key) == len(runs), "a run exists twice"
    return by_key


def test_over_rest_it_is_the_same_and_nothing_is_kept_here(server: Server) -> None:
    from mlflow import MlflowClient

    assert sync(Front.of(study()), server).written == len(PLACES) + 4
    assert sync(Front.of(study()), server).written == 0
    runs = held(server, "scripted")
    assert len(runs) == len(PLACES) + 4 and all(run.info.status == "FINISHED" for run in runs.values())
    files = {found.path for found in MlflowClient(server.address).list_artifacts(runs["sweep"].info.run_id)}
    assert files == {"front.html", "front.svg", "front.json", "front_table.json", "experiment.json"}
    assert not server.runs.exists()


def test_two_machines_at_once_make_each_run_once(server: Server, tmp_path: Path) -> None:
    """Folders for temporary files of their own: the lock of one machine does not help."""
    both = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-W", "ignore", "-c", TWO, str(server.uri), str(tmp_path)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        both.append(subprocess.Popen(command, text=True, env={**os.environ, "TMPDIR": str(tmp_path / name)}, **pipes))
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    runs = held(server, "two")
    assert set(runs) == {"sweep", "reference baseline", "reference plain use", "control scratch"} | {
        f"trial {n}" for n in range(25)
    }
    assert all(run.info.status == "FINISHED" and run.data.metrics for run in runs.values())
    below = {run.data.tags.get("mlflow.parentRunId") for key, run in runs.items() if key != "sweep"}
    assert below == {runs["sweep"].info.run_id}


def test_a_server_that_dies_and_comes_back_ends_up_with_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, errors = free_port(), list[AutogreenError]()
    remote = Server(uri=f"http://127.0.0.1:{port}", runs=tmp_path)
    told: list[str] = []
    monkeypatch.setattr(fill, "TRIES", 8)

    def filling() -> None:
        try:
            sync(Front.of(study()), remote, told.append)
        except AutogreenError as error:
            errors.append(error)

    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server", port) as process:
        thread = threading.Thread(target=filling)
        thread.start()
        until(lambda: sum("runs" in words for words in told) > 5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    until(lambda: any("Trying again" in words for words in told))
    with serving(tmp_path / "server", port):
        thread.join(90)
        assert not thread.is_alive() and not errors
        assert len(held(remote, "scripted")) == len(PLACES) + 4


def test_a_taken_port_is_told(server: Server, tmp_path: Path) -> None:
    port = int(str(server.uri).rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"port {port} .* --port"), serving(tmp_path, port):
        pass


# --- the browser ------------------------------------------------------------------------------------------------------


DRAWN = """
return [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)
    .filter(trace => trace.type.startsWith('scatter'))
    .map(trace => trace.x.map((x, n) => [trace.customdata[n][1], x, trace.y[n]]))
"""


def test_the_link_opens_the_front(server: Server, tmp_path: Path) -> None:
    front = Front.of(study())
    filled = sync(front, server)
    with chromium(tmp_path) as browser:
        browser.get(filled.link)

        expected = {point.name: point for point in front.references}
        expected |= {f"trial {point.trial.number}": point for point in front.members if point.trial}
        (marks,) = until(lambda: browser.execute_script(DRAWN), 30)
        drawn = {name: (x, y) for name, x, y in marks}
        for name, point in expected.items():
            assert drawn[name] == pytest.approx((point.energy_per_item_j.mean, point.quality.mean))
        text = browser.find_element("tag name", "body").text
        assert "Pareto front: scripted" in text and "shared view" in text and "energy_per_item_j vs. quality" in text
        assert len(front.members) == 14
        parallel = "return [...document.querySelectorAll('svg text')].map(t => t.textContent)"
        until(lambda: {"scheme", "ratio", "quality", "int8"} <= set(browser.execute_script(parallel)))
        keep(browser, "view")


def test_the_front_page_works_inside_mlflow_without_a_network(server: Server, tmp_path: Path) -> None:
    front = Front.of(study())
    filled = sync(front, server)
    sweep = held(server, "scripted")["sweep"]
    page = f"{server.page}/#/experiments/{sweep.info.experiment_id}/runs/{sweep.info.run_id}/artifacts/front.html"
    assert filled.link.startswith(f"{server.page}/#/experiments/{sweep.info.experiment_id}/runs")
    with chromium(tmp_path) as browser:
        browser.get(page)
        frame = until(lambda: browser.find_elements("css selector", "iframe"))[0]
        browser.switch_to.frame(frame)
        marks = until(lambda: browser.execute_script("return document.querySelectorAll('#front .point').length"))
        assert marks >= len(front.members) + len(front.references)
        assert "scripted: toy" in browser.find_element("tag name", "h1").text
        browser.switch_to.default_content()
        keep(browser, "front-page")
