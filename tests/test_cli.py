"""The command line as a user meets it: a sweep in a folder of his own, the likeliest mistakes, exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

TASK = Path(__file__).parent / "toys.py"
EXPERIMENT = """
task: {"toys:Corners": {width: 8}}
workload: {kind: offline, batch: 64}
space:
  pruning: [{each: "*", ratio: {choice: [0.0, 0.5]}, round_to: 4}]
  distillation: {epochs: 1, alpha: {choice: [0.0, 0.5]}}
  runtime: {engine: eager}
constraints: {max_loss: 0.9}
protocol: {warmup_s: 0.0, window_s: 0.02, min_windows: 2, max_windows: 2, foreign_limit: 99.0}
budget: {trials: 2}
device: cpu
finalists: 1
"""


def run(folder, *arguments, code=0):
    found = subprocess.run(
        [sys.executable, "-m", "autogreen.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert found.returncode in (code if isinstance(code, tuple) else (code,)), found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    return found.stdout if found.returncode == 0 else found.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a task of the user's own and one finished sweep."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "toys.py").write_text(TASK.read_text())
    (folder / "corners.yaml").write_text(EXPERIMENT)
    told = run(folder, "sweep", "corners.yaml")
    assert "done: 2/2 trials" in told and "Next: autogreen export corners" in told and "estimated" in told
    return folder


def test_front_as_json_page_and_table(place):
    told = json.loads(run(place, "front", "corners", "--json"))
    assert set(told) >= {"study", "task", "workload", "hardware", "unit", "baseline", "plain", "front", "search"}
    assert told["baseline"]["energy_per_item_j"]["tier"] == "estimated" and told["search"]["trials"] == 2
    run(place, "front", "corners", "--html", "front.html")
    assert "<html" in (place / "front.html").read_text()[:500].lower()
    assert "baseline" in run(place, "front", "corners")


def test_two_fronts_side_by_side_as_table_json_and_page(place):
    assert "0 of corners beaten by corners" in run(place, "front", "corners", "corners")
    told = json.loads(run(place, "front", "corners", "corners", "--json", "--html", "sides.html"))
    assert told["gained"] == told["lost"] == [] and told["hypervolume"]["gain"]["mean"] == 0
    assert "side by side" in (place / "sides.html").read_text()
    assert "There are: corners" in run(place, "front", "corners", "cornrs", code=1)


def test_a_report_stands_beside_the_study_or_where_it_is_wanted(place):
    assert run(place, "report", "corners").strip() == "runs/corners/report.html"
    page = (place / "runs" / "corners" / "report.html").read_text()
    assert "Where the joules go" in page and "everything else" in page  # a real sweep tells the time of layers
    run(place, "report", "corners", "--to", "told.html")
    assert (place / "told.html").read_text() == page
    assert "There are: corners" in run(place, "report", "cornrs", code=1)


def test_export_verify_and_a_flipped_byte(place):
    run(place, "export", "corners", "--pick", "cheapest", "--to", "bundle")
    told = run(place, "verify", "bundle", code=(0, 3))  # windows of 0.02 s on a busy machine prove nothing of energy
    assert "every hash" in told or "Files and outputs are as recorded" in told
    weights = place / "bundle" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "weights.safetensors" in run(place, "verify", "bundle", code=1)
    assert "not empty" in run(place, "export", "corners", "--to", "bundle", code=1)


def test_a_verification_that_proves_nothing_has_an_exit_code_of_its_own(monkeypatch, capsys):
    from autogreen import bundle, cli
    from autogreen.errors import NotConclusiveError

    def busy(folder, **_):
        raise NotConclusiveError("not conclusive: the machine was busy.")

    monkeypatch.setattr(bundle, "verify", busy)
    monkeypatch.setattr(sys, "argv", ["autogreen", "verify", "bundle"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 3 and capsys.readouterr().err == "not conclusive: the machine was busy.\n"


def test_the_mirror_was_written_and_is_written_once(place):
    assert (place / "runs" / "mlflow.db").exists()
    told = run(place, "sync", "corners")
    assert told.startswith("0 of ") and "viewStateShareKey=autogreen-" in told


def test_ui_serves_the_newest_study_and_says_where(place):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.listen()
        assert f"port {port} cannot be used" in run(place, "ui", "--port", str(port), code=1)
    command = [sys.executable, "-W", "ignore", "-m", "autogreen.cli", "ui", "--port", str(port)]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        link = process.stdout.readline().strip()
        assert link.startswith(f"http://127.0.0.1:{port}/#/experiments/") and "viewStateShareKey=autogreen-" in link
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1] == "" and process.returncode == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)


def test_measure_one_policy(place):
    (place / "half.yaml").write_text('pruning: [{target: "0", ratio: 0.5, round_to: 4}]\nruntime: {engine: eager}\n')
    assert "−50 % channels" in run(place, "measure", "corners.yaml", "--policy", "half.yaml")


def test_doctor_and_list(place):
    found = json.loads(run(place, "doctor", "--json", "--device", "cpu"))
    assert {meter["name"] for meter in found["meters"]} >= {"nvml", "estimate"}
    assert all(meter["reason"] and meter["advice"] for meter in found["meters"])
    told = run(place, "list")
    assert "digits" in told and "inductor" in told and "estimate" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sweep", "cornres.yaml"], "does not exist. Did you mean 'corners.yaml'"),
        (["sweep", "."], "is a folder"),
        (["sweep", "corners.yaml", "--set", "budgett.trials=3"], "unknown key 'budgett'. Did you mean 'budget'"),
        (["sweep", "corners.yaml", "--set", "budget.trials=three"], "budget.trials"),
        (["sweep", "corners.yaml", "--set", "task=digit"], "unknown task 'digit'. Did you mean 'digits'"),
        (["sweep", "corners.yaml", "--set", "space.pruning=[{target: x, ratio: 1.5}]"], "ratio must be in [0, 1)"),
        (["sweep", "corners.yaml", "--set", "device=cuda:0"], "device 'cuda:0' is not here"),
        (["front", "cornrs"], "There are: corners"),
        (["sync", "cornrs"], "There are: corners"),
        (["sync", "corners", "--tracking", "http://127.0.0.1:9"], "cannot be reached: nothing listens there"),
        (["ui", "--runs", "nowhere"], "no study in nowhere/"),
        (["sweep", "corners.yaml", "--set", "tracking=http://me:secret@host"], "MLFLOW_TRACKING_PASSWORD"),
        (["export", "corners", "--to", "x", "--pick", "bset"], "bset"),
        (["verify", "nowhere"], "nowhere"),
        (["list", "task"], "Did you mean 'tasks'"),
        (["measure", "corners.yaml", "--policy", "corners.yaml"], "unknown key"),
    ],
)
def test_mistakes_get_one_clear_line(place, arguments, told):
    message = run(place, *arguments, code=1)
    assert told in message and message.startswith("error: ") and len(message.strip().splitlines()) <= 2


def test_debug_shows_the_traceback(place):
    found = subprocess.run(
        [sys.executable, "-m", "autogreen.cli", "--debug", "front", "cornrs"], cwd=place, capture_output=True, text=True
    )
    assert found.returncode != 0 and "Traceback" in found.stderr


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_no_write_permission(place, tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in run(place, "sweep", "corners.yaml", "--runs", str(tmp_path / "runs"), code=1)


def test_a_folder_that_cannot_be_made(place):
    (place / "file").write_text("")
    assert "cannot be written" in run(place, "sweep", "corners.yaml", "--runs", "file/runs", code=1)


def test_ctrl_c_says_that_nothing_is_lost(place):
    command = [sys.executable, "-m", "autogreen.cli", "sweep", "corners.yaml", "--fresh", "--runs", "stopped"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "references" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and told.endswith(
        "stopped. Nothing is lost: the same command goes on where it was.\n"
    )
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "told"), [(["frnt"], "Did you mean 'front'?"), (["sweep"], "EXPERIMENT.yaml"), (["front"], "name")]
)
def test_a_wrong_call_is_told_in_words(tmp_path, arguments, told):
    assert told in run(tmp_path, *arguments, code=2)
