"""The mirror of a sweep that runs: filled beside it, waited for by nothing, gone with it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import toys
from mlflow_pages import until

from autogreen import measure
from autogreen.errors import TrackingError
from autogreen.front import Front
from autogreen.store import Store
from autogreen.sweep import sweep
from autogreen.tracking import Background, Server, find, sync, worker

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture(autouse=True)
def own_lease(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is measured on this machine is none of these tests' business."""
    folder = str(tmp_path_factory.mktemp("lease"))
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setenv("TMPDIR", folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that a sweep has left, never mirrored."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    for _ in sweep(toys.experiment(), folder, folder.parent / ".cache"):
        pass
    return folder


def copied(finished: Path, to: Path) -> Path:
    return Path(shutil.copytree(finished, to / "toy"))


def seen_by(process: Background) -> psutil.Process:
    return psutil.Process(process._process.pid)


def test_a_sweep_ends_with_a_link_to_all_that_it_found(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    with Background(folder, None) as mirror:  # begun before there is a study
        for _ in sweep(toys.experiment(), folder, tmp_path / ".cache"):
            pass
        link = mirror.finish(60)
    front, server = Front.of(Store.open(folder).results()), Server(uri=None, runs=tmp_path)
    assert find(front, server) == link and sync(front, server).written == 0


def test_it_is_filled_while_the_sweep_runs_and_waits_while_somebody_measures(finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path)
    server, front = Server(uri=None, runs=tmp_path), Front.of(Store.open(folder).results())
    with Background(folder, None) as mirror:
        with measure.lease():
            assert measure.lease_is_held()
            time.sleep(2)
            assert not (tmp_path / "mlflow.db").exists()
            assert seen_by(mirror).nice() == worker.NICE
        assert not measure.lease_is_held()
        until(lambda: (tmp_path / "mlflow.db").exists() and find(front, server))  # nobody told it to finish
        assert mirror.finish(60) == find(front, server)
    assert sync(front, server).written == 0


def test_a_dead_server_costs_a_sweep_nothing(finished: Path, tmp_path: Path) -> None:
    folder, tried = copied(finished, tmp_path), list[object]()
    with socket.socket() as dying:
        dying.bind(("127.0.0.1", 0))
        dying.listen(8)
        dying.setblocking(False)

        def broken() -> bool:
            with suppress(BlockingIOError):
                connection, who = dying.accept()
                connection.close()
                tried.append(who)
            return bool(tried)

        with Background(folder, f"http://127.0.0.1:{dying.getsockname()[1]}") as mirror:
            until(broken)
            time.sleep(1)  # it has understood
            began = time.monotonic()
            with pytest.raises(TrackingError, match="cannot be reached"):
                mirror.finish(60)
            assert time.monotonic() - began < 1  # nobody waits for what was dead a moment ago
    assert not (tmp_path / "mlflow.db").exists()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_never_answers_is_waited_for_as_long_as_was_granted(
    finished: Path, tmp_path: Path, silent: str
) -> None:
    folder = copied(finished, tmp_path)
    with Background(folder, silent) as mirror:
        began = time.monotonic()
        with pytest.raises(TrackingError, match="not filled yet after 1 s"):
            mirror.finish(1)
        assert time.monotonic() - began < 5
        left = seen_by(mirror)
    assert not left.is_running()


def test_a_process_that_died_is_told(tmp_path: Path) -> None:
    with Background(tmp_path / "toy", None) as mirror:
        seen_by(mirror).kill()
        with pytest.raises(TrackingError, match="ended early"):
            mirror.finish(30)


def test_it_ends_with_a_sweep_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from autogreen.tracking import Background\n"
        f"mirror = Background(pathlib.Path({str(tmp_path / 'toy')!r}), None).__enter__()\n"
        "print(mirror._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(3)
        os.kill(parent.pid, signal.SIGKILL)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)
