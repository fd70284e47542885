"""Real workers: killed, out of memory, stuck, on a full disk."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import psutil
import pytest
import toys

from autogreen.errors import EvaluationError, RefusedError, StudyError
from autogreen.executors import EXECUTORS, Job, translated
from autogreen.measurement import Protocol
from autogreen.process import ask_each
from autogreen.techniques import TECHNIQUES
from autogreen.workbench import Setup
from autogreen.workload import Workload

cloudpickle.register_pickle_by_value(toys)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")


def setup(folder: Path, fault: str = "") -> Setup:
    (folder / "artifacts").mkdir(exist_ok=True)
    return Setup(
        task=toys.Corners(fault=fault),
        workload=Workload(batch=64),
        protocol=Protocol(**toys.QUICK),
        device="cpu",
        folder=folder,
        cache=folder,
    )


class Asks:
    """Stands in for the evaluator inside a worker: each method is one way to fail."""


@pytest.fixture
def local(tmp_path):
    executor = EXECUTORS["local"](setup(tmp_path))
    yield executor
    executor.close()


def run(executor, call, limit_s=None, **arguments):
    executor.submit(Job(call=call, arguments=arguments, limit_s=limit_s))
    return executor.next_done()


@pytest.mark.parametrize("name", [name for name in EXECUTORS if name != "ray"])  # test_ray.py has a cluster
def test_contract(name, tmp_path):
    executor = EXECUTORS[name](setup(tmp_path))
    try:
        assert executor.slots >= 1
        done = run(executor, "prepare")
        assert done.error is None and done.value["item"] == "image" and done.duration_s > 0
        failed = run(executor, "publish", key="none", recipe=None, reference="none", protocol=None)
        assert isinstance(failed.error, Exception) and failed.value is None
        assert run(executor, "prepare").error is None  # a failed job leaves the executor usable
    finally:
        executor.close()
        executor.close()


def test_a_technique_that_the_space_does_not_use_looks_at_nothing(tmp_path, monkeypatch):
    def cannot(model, example):
        raise RefusedError("pruning: the dependencies of this model cannot be traced.")

    monkeypatch.setattr(TECHNIQUES["pruning"], "units", cannot)
    executor = EXECUTORS["inline"](setup(tmp_path))
    found = run(executor, "prepare", sections=("quantization", "runtime"))
    assert found.error is None and list(found.value["anatomy"]["units"]) == ["quantization"]
    assert "cannot be traced" in str(run(executor, "prepare").error)


def test_a_killed_worker_costs_one_job_and_is_replaced(local):
    assert run(local, "prepare").error is None
    first = local._process.pid
    local.submit(Job(call="prepare"))
    os.kill(first, signal.SIGKILL)
    done = local.next_done()
    assert isinstance(done.error, EvaluationError) and "SIGKILL" in str(done.error)
    assert run(local, "prepare").error is None
    assert local._process.pid != first


def test_a_stuck_worker_is_killed_at_its_limit_with_its_children(local, monkeypatch):
    monkeypatch.setattr("autogreen.executors.local.GRACE_S", 0.5)
    assert run(local, "prepare").error is None
    os.kill(local._process.pid, signal.SIGSTOP)
    done = run(local, "prepare", limit_s=0.5)
    assert "time limit" in str(done.error)
    assert local._process is None


def test_a_worker_dies_with_its_parent(tmp_path):
    """The coordinator is killed; worker and whatever it started are gone within seconds."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(toys.__file__).parent)!r})
import cloudpickle, toys, test_executors
from pathlib import Path
from autogreen.executors import EXECUTORS, Job
cloudpickle.register_pickle_by_value(toys)
executor = EXECUTORS["local"](test_executors.setup(Path({str(tmp_path)!r})))
executor.submit(Job(call="prepare")); executor.next_done()
print(executor._process.pid, flush=True)
import time; time.sleep(60)
"""
    import subprocess

    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent by 10 s")


def test_what_an_exception_means():
    with pytest.raises(OSError) as full, Path("/dev/full").open("w") as handle:
        handle.write("x" * 100_000)
    assert isinstance(translated(full.value), StudyError) and "disk is full" in str(translated(full.value))
    assert isinstance(translated(PermissionError(13, "no", "/x")), StudyError)
    assert "out of memory" in str(translated(MemoryError()))
    assert "ValueError: odd" in str(translated(ValueError("odd")))


def test_a_process_that_was_asked_dies_with_the_one_who_asked(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\nfrom pathlib import Path\nfrom os import getpid\nfrom autogreen.process import answer\n"
        f"def work(job):\n    Path({str(tmp_path / 'pid')!r}).write_text(str(getpid()))\n    time.sleep(60)\n"
        "answer(work)\n"
    )
    ask = (
        "from autogreen.errors import EvaluationError\nfrom autogreen.process import ask\n"
        "ask('slow', {}, device='cpu', what='it', done='done', limit_s=60, failure=EvaluationError)"
    )
    path = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))
    asker = subprocess.Popen([sys.executable, "-c", ask], env={**os.environ, "PYTHONPATH": path})
    end = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.2)
    pid = int((tmp_path / "pid").read_text())
    asker.kill()
    asker.wait()
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def test_answers_come_one_by_one_and_those_before_a_death_are_good(tmp_path, monkeypatch):
    (tmp_path / "several.py").write_text(
        "import os, time\nfrom autogreen.process import answer_each\n"
        "def work(job):\n    yield {'said': job}\n    print('noise')\n    yield {'said': 2}\n"
        "    if job == 'die':\n        os.kill(os.getpid(), 9)\n    if job == 'sleep':\n        time.sleep(60)\n"
        "    if job == 'raise':\n        raise ValueError('odd')\n"
        "answer_each(work)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *filter(None, sys.path))))
    for job, limit_s, told in (
        ("die", 60, "the process that counted it died .signal SIGKILL."),
        ("raise", 60, "it could not be counted: ValueError: odd"),
        ("sleep", 6, "it was not counted within 6 s"),
        ("end", 60, None),
    ):
        answers = ask_each(
            "several", job, device="cpu", what="it", done="counted", limit_s=limit_s, failure=EvaluationError
        )
        assert [next(answers), next(answers)] == [{"said": job}, {"said": 2}]
        if told is None:
            assert list(answers) == []
        else:
            with pytest.raises(EvaluationError, match=told):
                next(answers)
