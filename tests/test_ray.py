"""A real Ray cluster of several nodes on this machine: the same study as elsewhere, nodes that are killed, what is
refused."""

import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cloudpickle
import psutil
import pytest
import toys
from processes import ranks
from test_executors import run, setup

from autogreen.errors import ConfigError, EvaluationError, LostError, RefusedError
from autogreen.evaluation import Request
from autogreen.executors import Job, nodes, opened, parcels, relay
from autogreen.front import Front
from autogreen.policy import Effect
from autogreen.store import Store
from autogreen.sweep import sweep

pytest.importorskip("ray", reason="needs the extra ray")
cloudpickle.register_pickle_by_value(toys)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch_pruning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),  # nodes, by Ray's own Cluster
]


@pytest.fixture(scope="module")
def cluster():
    """A head that has nothing to give, and two nodes of one processor each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        found.add_node(num_cpus=1)
    yield found
    found.shutdown()


@pytest.fixture
def executor(cluster, tmp_path):
    executor = opened(on(cluster), setup(tmp_path))
    yield executor
    executor.close()
    executor.close()


def on(cluster, **settings):
    return {"ray": {"address": cluster.address, **settings}}


OURS = "AUTOGREEN_TESTS"  # in the environment of what these tests start: others may be running
os.environ[OURS] = str(os.getpid())


def workers():
    """Processes that evaluate."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "autogreen.executors.worker" in process.cmdline() and process.environ().get(OURS) == str(os.getpid()):
                found.append(process)
    return found


def swept(folder: Path, **changes):
    steps = list(sweep(toys.experiment(**changes), folder, folder.parent / ".cache"))
    return steps, Store.open(folder).results()


# -- the family's contract, and faults --------------------------------------------------------------------------------


def test_contract(executor):
    assert executor.slots == 2 and len(workers()) == 2
    done = run(executor, "prepare")
    assert done.error is None and done.value["item"] == "image" and done.duration_s > 0
    assert (executor._setup.folder / "golden.safetensors").exists()
    failed = run(executor, "publish", key="none", recipe=None, reference="none", protocol=None)
    assert isinstance(failed.error, EvaluationError) and "node " in str(failed.error)
    assert run(executor, "prepare").error is None  # a failed job leaves the executor usable
    for _ in range(2):  # at once, each on its own node
        executor.submit(Job(call="describe"))
    assert len({seat.place.node for seat in executor._seats if seat.job}) == 2
    assert [executor.next_done().error for _ in range(2)] == [None, None]


def test_a_device_that_does_not_answer_is_given_up_and_replaced(executor, monkeypatch):
    monkeypatch.setattr("autogreen.executors.ray.GRACE_S", 0.5)
    before = {process.pid for process in workers()}
    for _ in range(2):
        executor.submit(Job(call="prepare", limit_s=0.5))
    for process in psutil.process_iter():
        if process.name().startswith("ray::Relay"):
            process.suspend()
    errors = [executor.next_done().error for _ in range(2)]
    assert all(isinstance(error, LostError) and "does not answer" in str(error) for error in errors)
    assert executor.slots == 2 and run(executor, "describe").error is None
    assert not before & {process.pid for process in workers()}


# -- the same study ---------------------------------------------------------------------------------------------------


def test_the_study_is_that_of_any_other_executor(cluster, tmp_path):
    one = {"budget": {"trials": 3}, "finalists": 1}
    _, there = swept(tmp_path / "there" / "toy", executor=on(cluster, devices=1), **one)
    _, here = swept(tmp_path / "here" / "toy", executor="inline", **one)
    assert there.fingerprint == here.fingerprint
    for a, b in zip(there.trials, here.trials, strict=True):
        assert (a.params, a.policy, a.state, a.evaluation.key) == (b.params, b.policy, b.state, b.evaluation.key)
        assert (a.evaluation.quality, a.evaluation.loss) == (b.evaluation.quality, b.evaluation.loss)
        assert a.evaluation.host == b.evaluation.host != ""
    assert {name: control.quality for name, control in there.controls.items()} == {
        name: control.quality for name, control in here.controls.items()
    }
    kept = [parcels.files(tmp_path / place / "toy" / "artifacts") for place in ("there", "here")]
    both = {name for name in kept[0] if name in kept[1] and name.endswith("weights.safetensors")}
    assert len(both) >= 2  # the references at least; which policies stand is a matter of joules
    assert all(kept[0][name].read_bytes() == kept[1][name].read_bytes() for name in both)
    for key in there.published:
        assert (tmp_path / "there" / "toy" / "scores" / f"{key}-test.npz").exists()


def test_degrees_are_searched_and_a_relay_that_is_killed_takes_its_ranks_along(cluster, tmp_path):
    folder, lost = tmp_path / "toy", []
    space = {
        "parallelism": {"data": {"choice": [1, 2]}},
        "pruning": [{"target": "*", "ratio": {"choice": [0.0, 0.5]}}],
        "runtime": {"engine": "eager"},
    }
    for step in sweep(toys.experiment(executor=on(cluster), space=space), folder, tmp_path / ".cache"):
        if step.stage == "searching" and step.trials == 2:  # plain ones; the third has two ranks
            end = time.monotonic() + 60.0
            while not lost and time.monotonic() < end:
                time.sleep(0.05)
                lost = [rank for worker in workers() for rank in ranks(worker)]
            lost[0].parent().parent().kill()
            assert not psutil.wait_procs(lost, timeout=10.0)[1]
    results = Store.open(folder).results()
    failed = [trial.reason for trial in results.trials if trial.state == "failed"]
    assert len(failed) == 1 and "its process died" in failed[0] and "takes its place" in failed[0]
    found = [trial.evaluation for trial in results.trials if trial.state == "measured"]
    assert {(one.recipe.data, one.measurement.items_per_call) for one in found} == {(1, 64), (2, 128)}
    assert not workers()


# -- what is refused --------------------------------------------------------------------------------------------------


def test_settings_are_checked_where_they_are_written():
    for given, told in (
        ({"ray": {"adress": "auto"}}, r"toy\.executor\.ray: unknown key 'adress'\. Did you mean 'address'"),
        ({"ray": {"address": "ray://head:10001"}}, r"toy\.executor\.ray: address must be auto or HOST:PORT"),
        ({"ray": {"devices": 0}}, r"toy\.executor\.ray: devices must be 1 or more, not 0"),
        ({"local": {"devices": 2}}, r"toy\.executor\.local: unknown key 'devices'"),
        ({"rey": {}}, "unknown executor 'rey'. Did you mean 'ray'"),
        ({"ray": {}, "local": {}}, "must be a name or one"),
        (3, "must be a name or one"),
    ):
        with pytest.raises(ConfigError, match=told):
            toys.experiment(executor=given)
    whole = toys.experiment(executor={"ray": {"devices": 2}})
    assert whole.to_json()["executor"] == {"ray": {"devices": 2}}


def test_more_devices_than_there_are(cluster, tmp_path):
    with pytest.raises(RefusedError, match=r"devices is 9, and the Ray cluster at '.+' has 2 \(node .+: 1, node .+: 1"):
        opened(on(cluster, devices=9), setup(tmp_path))


def test_a_node_with_other_versions(cluster, tmp_path, monkeypatch):
    own = os.getpid()

    def versions():
        import os

        return {"torchao": "0.18.0" if os.getpid() == own else "0.17.0", "python": "3.11.7"}

    monkeypatch.setattr("autogreen.executors.ray.versions", lambda: versions)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(RefusedError, match=r"node .+ has torchao 0\.17\.0 \(here: 0\.18\.0\)\."):
        opened(on(cluster), setup(tmp_path))
    assert not workers()


def test_devices_of_another_model(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("autogreen.hardware._cpu_name", lambda: "MOS 6510")
    with pytest.raises(RefusedError, match=r"has machine .+ \(here: MOS 6510, \d+ cores, .+devices of one model"):
        opened(on(cluster), setup(tmp_path))
    assert not workers()


def test_an_address_where_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("autogreen.executors.ray.ANSWER_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RefusedError, match=f"no Ray cluster answers at '{address}' within 3 s"):
            opened({"ray": {"address": address}}, setup(tmp_path))


def test_ray_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RefusedError, match=r"pip install 'autogreen\[ray\]'"):
        opened("ray", setup(tmp_path))


# -- a node is lost ----------------------------------------------------------------------------------------------------


def test_a_node_that_is_killed_costs_its_trial_alone(cluster, tmp_path):
    """And the study goes on without it, in this session and the next."""
    lost = min(cluster.worker_nodes, key=lambda node: node.node_id)
    folder, killed = tmp_path / "toy", False
    given = {"executor": on(cluster), "budget": {"trials": 6}}
    for step in sweep(toys.experiment(**given), folder, tmp_path / ".cache"):
        if step.stage == "searching" and step.trials == 1 and not killed:
            cluster.remove_node(lost, allow_graceful=False)
            killed = True
    results = Store.open(folder).results()
    failed = [trial for trial in results.trials if trial.state == "failed"]
    assert killed and len(results.trials) == 6
    assert len(failed) == 1 and "its node died" in failed[0].reason and "goes on with 1" in failed[0].reason
    assert Front.of(results).members and results.published
    assert not workers()  # those of the dead node too
    _, after = swept(folder, **{**given, "budget": {"trials": 8}})
    assert after.trials[:6] == results.trials and [trial.state for trial in after.trials[6:]] == ["measured"] * 2


# -- without a cluster ------------------------------------------------------------------------------------------------


def node(name: str, alive: bool = True, **resources: float):
    address = {"NodeManagerHostname": name, "NodeManagerAddress": "10.0.0.1"}
    return {"NodeID": name * 3, "Alive": alive, "Resources": resources, **address}


def test_devices_are_gpus_or_whole_processors(tmp_path):
    there = [node("b", CPU=16.0, GPU=2.0), node("a", CPU=8.0), node("c", CPU=4.0, GPU=1.0, alive=False), node("d")]
    cpu = setup(tmp_path)
    on_gpu, trained = replace(cpu, device="cuda:0"), replace(cpu, training_device="cuda:0")

    def found(given):
        return [(place.name[5], place.number, place.cpus, place.gpus) for place in nodes.places(there, "bbb", given)]

    assert found(cpu) == [("b", 0, 16, 0), ("a", 0, 8, 0)]  # the coordinator's own first
    assert found(on_gpu) == [("b", 0, 8, 1), ("b", 1, 8, 1)]
    assert found(trained) == [("b", 0, 16, 1)]
    assert found(replace(cpu, ranks=4)) == found(cpu) and found(replace(trained, ranks=4)) == found(trained)
    with pytest.raises(ConfigError, match="device is 'cuda:1', and under the executor ray each worker sees GPUs of"):
        nodes.refuse_numbered(replace(cpu, device="cuda:1"))
    with pytest.raises(RefusedError, match="has no such device to give"):
        nodes.refuse_too_many(None, [], "auto")


@pytest.mark.parametrize(
    ("degree", "seats"), [(1, [1, 2, 4, 8]), (2, [0, 1, 2, 4]), (3, [0, 0, 1, 2]), (4, [0, 0, 1, 2])]
)
def test_a_policy_has_all_its_gpus_on_one_node(tmp_path, degree, seats):
    there = [node(str(gpus), CPU=32.0, GPU=gpus) for gpus in (1, 2, 4, 8)]
    found = nodes.places(there, "", replace(setup(tmp_path), device="cuda:0", ranks=degree))
    assert [sum(place.node == one["NodeID"] for place in found) for one in there] == seats
    assert {place.gpus for place in found} == {degree}
    assert {place.cpus for place in found if place.node == "888"} == {32 // seats[-1]}


def test_degrees_that_no_node_has_gpus_for(tmp_path):
    there = [node("a", CPU=8.0, GPU=2.0), node("b", CPU=8.0, GPU=8.0, alive=False)]
    wide = replace(setup(tmp_path), device="cuda:0", ranks=4)
    for known, most in ((there, 2), ([], 0)):
        told = rf"comes to 4 GPUs a policy .+, and no node .+ has more than {most}\. Lower the degrees, or start"
        with pytest.raises(RefusedError, match=told):
            nodes.refuse_too_large(known, wide, "auto")
    nodes.refuse_too_large(there, replace(wide, device="cpu"), "auto")
    there.append(node("c", CPU=8.0, GPU=4.0))
    nodes.refuse_too_large(there, wide, "auto")
    told = r"devices is 2, and the Ray cluster at 'auto' has 1 of 4 GPUs each \(node c .+: 1\)\. Write 1 or fewer"
    with pytest.raises(RefusedError, match=told):
        nodes.refuse_too_many(2, nodes.places(there, "", wide), "auto")


@pytest.fixture
def parcel(tmp_path, monkeypatch):
    """Parcels to a relay in this process, in pieces of 4 bytes, and the pieces that were written."""
    monkeypatch.setattr(parcels, "PIECE_BYTES", 4)
    monkeypatch.setattr(relay, "PIECE_BYTES", 4)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "run" / "artifacts").mkdir(parents=True)
    (tmp_path / "run" / "scores").mkdir()
    (tmp_path / "cache").mkdir()
    device, written = relay.Relay([], str(Path.cwd()), os.environ.get("OMP_NUM_THREADS")), []

    def call(method, *arguments):
        if method == "write":
            written.append(arguments[0])
        return getattr(device, method)(*arguments)

    there = Path(device.place()[0])
    yield parcels.Parcels(tmp_path / "run", tmp_path / "cache", there, call), tmp_path, there, written
    device.close()
    assert not there.exists()


def test_what_a_job_needs_goes_along_once(parcel):
    sent, here, there, written = parcel
    for key in ("ref", "other"):
        (here / "run" / "artifacts" / key / "model").mkdir(parents=True)
        (here / "run" / "artifacts" / key / "model" / "big").write_bytes(b"0123456789")
        (here / "run" / "scores" / f"{key}-validation.npz").write_bytes(b"")
    (here / "cache" / "base").write_bytes(b"base")
    (here / "weights.safetensors").write_bytes(b"trained")
    request = Request(effect=Effect.of({}), reference="ref", weights=here / "weights.safetensors")
    job = Job(call="evaluate", arguments={"request": request})
    assert sent.send(job).arguments["request"].weights.read_bytes() == b"trained"
    assert (there / "study/artifacts/ref/model/big").read_bytes() == b"0123456789"
    assert (there / "study/scores/ref-validation.npz").exists() and (there / "cache/base").read_bytes() == b"base"
    assert not (there / "study/artifacts/other").exists()
    written.clear()
    sent.send(job)
    assert written == []
    (here / "cache" / "base").write_bytes(b"basis")
    sent.send(Job(call="evaluate", arguments={"request": replace(request, reference="other", weights=None)}))
    assert set(written) == {"cache/base", "study/artifacts/other/model/big", "study/scores/other-validation.npz"}
    assert [path.name for path in (there / "study/artifacts").iterdir()] == ["other"]


def test_what_a_job_leaves_comes_back_whole(parcel):
    sent, here, there, written = parcel
    made = there / "study/artifacts/key"
    made.mkdir()
    (made / "model.pt2").write_bytes(b"0123456789")
    (made / "recipe.json").write_bytes(b"{}")
    (there / "study/artifacts/.half.123").mkdir()
    (there / "study/artifacts/.half.123/model.pt2").write_bytes(b"half")
    (there / "cache/costs.json").write_bytes(b"{}")
    (here / "run/artifacts/key").mkdir()
    (here / "run/artifacts/key/stale").write_bytes(b"stale")
    sent.fetch()
    assert {name: path.read_bytes() for name, path in parcels.files(here / "run").items()} == {
        "artifacts/key/model.pt2": b"0123456789",
        "artifacts/key/recipe.json": b"{}",
    }
    assert (here / "cache/costs.json").read_bytes() == b"{}"
    (made / "recipe.json").write_bytes(b"{ }")  # of an artifact all comes, or nothing
    sent.fetch()
    assert {path.name for path in (here / "run/artifacts/key").iterdir()} == {"model.pt2", "recipe.json"}
    sent.send(Job(call="publish", arguments={"reference": "key"}))
    assert written == [] and not (there / "study/artifacts/.half.123").exists()


def test_the_boards_of_a_relay_keep_their_order(tmp_path, monkeypatch):
    """Ray gives them in any, and a study goes on only where the first is the same."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for given, told in (("10,8,9", ("8", "9", "10")), ("GPU-b,GPU-a", ("GPU-a", "GPU-b")), ("", ())):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        device = relay.Relay([], str(Path.cwd()), os.environ.get("OMP_NUM_THREADS"))
        assert device.place()[1] == told and os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(told)
        device.close()


def test_the_folder_of_a_relay_that_was_killed_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = relay._own_folder()
    dead = tmp_path / f"autogreen-device-{os.getuid()}-dead"
    dead.mkdir()
    (dead / "lock").touch()
    assert relay._own_folder().exists() and held.exists() and not dead.exists()
