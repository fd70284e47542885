"""The registry on a real MLflow: what a version holds, who may become champion, and what was changed in the store."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_bundle import inputs, network, original, put, seal, study
from test_check import FOUND, tested

from autogreen import cli, succession
from autogreen.bundle import manifest, read
from autogreen.bundle.check import Check, Finding, Limits
from autogreen.bundle.read import sha256
from autogreen.comparison import Comparison
from autogreen.errors import BundleError, ConfigError, NotConclusiveError, RefusedError, TrackingError
from autogreen.measurement import Beside, Interval, Measurement, Window
from autogreen.meters import Reading
from autogreen.outcome import EXIT_CODES, Outcome
from autogreen.succession import Terms
from autogreen.tracking import models

__all__ = ["original", "study", "tested"]  # fixtures
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database after MLflow's own migrations, which take seconds."""
    folder = tmp_path_factory.mktemp("migrated")
    with models.server(models.address(None, folder)) as client:
        client.search_registered_models()
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def uri(tmp_path: Path, migrated: bytes) -> str:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(migrated)
    return models.address(None, tmp_path / "runs")


@pytest.fixture
def other(tested: Path, tmp_path: Path) -> Path:
    """The same program as another bundle: of another sweep."""
    shutil.copytree(tested, tmp_path / "other")
    return seal(tmp_path / "other", put(("study",), "another"))


def versions(uri: str) -> dict[str, Any]:
    with models.server(uri) as client:
        return {str(one.version): one for one in client.search_model_versions("name = 'toy'")}


def aliases(uri: str) -> dict[str, str]:
    with models.server(uri) as client:
        return models._aliases(client, "toy")


def store(uri: str, number: str) -> Path:
    """Where a version's files lie."""
    return Path(versions(uri)[number].source.removeprefix("file://"))


def dies(*args: Any, **settings: Any) -> None:
    raise ConnectionError("the server died")


# --- registering ------------------------------------------------------------------------------------------------------


def test_a_version_says_what_it_is_and_holds_all_that_serves(tested: Path, uri: str) -> None:
    before = dict(os.environ)
    found = models.register(tested, "toy", uri=uri)
    assert (found.number, found.created, found.aliases, found.uri) == ("1", True, ("challenger",), "models:/toy/1")
    assert dict(os.environ) == before
    tags, stated = versions(uri)["1"].tags, read(tested)
    assert stated.energy.ratio is not None
    expected = {"task": "toy", "tier": "estimated", "engine": "eager", "batch": "32", "autogreen.study": "scripted"}
    assert expected.items() <= tags.items() and tags["policy_id"] == stated.key.partition("-")[0]
    assert tags["energy_ratio"].startswith(f"{stated.energy.ratio.mean:.4g} (")
    assert tags["quality_test"] == "0.97 (0.96 to 0.98)" and "hardware" in tags and "energy_per_sample_j" in tags
    assert tags[models.MANIFEST] == sha256(tested / manifest.NAME)
    folder = store(uri, "1")
    assert tags[models.FILES] == models.contents_sha256(folder)
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pyc")]
    assert read(folder / "artifacts" / "bundle") == stated
    requirements = (folder / "requirements.txt").read_text()
    assert f"torch=={torch.__version__.partition('+')[0]}\n" in requirements and "autogreen" not in requirements
    assert "float32" in (folder / "MLmodel").read_text()


def test_the_same_bundle_is_the_same_version(tested: Path, other: Path, uri: str) -> None:
    assert [models.register(folder, "toy", uri=uri).number for folder in (tested, other, tested)] == ["1", "2", "1"]
    assert aliases(uri) == {"challenger": "1"} and set(versions(uri)) == {"1", "2"}
    with models.server(uri) as client:
        client.set_registered_model_alias("toy", "champion", "1")
        client.delete_registered_model_alias("toy", "challenger")
    again = models.register(tested, "toy", uri=uri)  # who serves already challenges nobody
    assert (again.created, again.aliases, aliases(uri)) == (False, ("champion",), {"champion": "1"})


@pytest.mark.parametrize("dies_in", ["log_model_artifacts", "finalize_logged_model", "create_model_version"])
def test_nothing_is_half_registered(tested: Path, uri: str, dies_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, dies_in, dies)
        with pytest.raises(TrackingError, match=r"cannot be reached, or refuses: the server died"):
            models.register(tested, "toy", uri=uri)
    assert versions(uri) == {} and aliases(uri) == {}
    with models.server(uri) as client:
        ids = [one.experiment_id for one in client.search_experiments()]
        assert list(client.search_logged_models(ids)) == []
    assert models.register(tested, "toy", uri=uri).aliases == ("challenger",)


def test_a_version_that_got_no_alias_gets_it_by_the_same_command(
    tested: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    with monkeypatch.context() as patched:
        patched.setattr(
            MlflowClient, "set_registered_model_alias", lambda *args: (_ for _ in ()).throw(OSError("gone"))
        )
        with pytest.raises(TrackingError, match="gone"):
            models.register(tested, "toy", uri=uri)
    assert aliases(uri) == {} and models.FILES in versions(uri)["1"].tags
    assert models.register(tested, "toy", uri=uri).number == "1" and aliases(uri) == {"challenger": "1"}


def test_a_server_that_is_not_there(tested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TrackingError, match=rf"^MLflow at http://127.0.0.1:{port} cannot be reached.*--tracking"):
        models.register(tested, "toy", uri=f"http://me:secret@127.0.0.1:{port}")
    with pytest.raises(TrackingError, match="cannot be reached, or refuses"):
        models.register(tested, "toy", uri="sqlite:////proc/no/such/place.db")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackingError, match="pip install mlflow"):
        models.register(tested, "toy", uri="http://127.0.0.1:1")


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "x' or name = 'y", "é", " a", "x" * 300])
def test_names_that_are_none(tested: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a model"):
        models.register(tested, name, uri="sqlite:///nowhere.db")


# --- who may follow ---------------------------------------------------------------------------------------------------


def judged(outcome: Outcome) -> Any:
    """A promise with this outcome; measuring it is tested with `check`."""

    def judge(folder: Path, **settings: Any) -> Check:
        finding = Finding(asked="promised energy", outcome=outcome, reason="as the test says")
        known = {"limits": Limits(), "manifest": read(folder), "verified": FOUND}
        return Check(folder=folder, findings=(finding,), **known)

    return judge


def beside(ratio: float, half: float = 0.01) -> Any:
    """The challenger's energy over the champion's, as a comparison tells it."""

    def measured(a: str, b: str, **settings: Any) -> Comparison:
        reading = Reading(energy_j=1.0, low_j=1.0, high_j=1.0, duration_s=1.0)
        side = Measurement(
            energy_per_item_j=Interval(mean=1.0, low=1.0, high=1.0),
            latency_s=Interval(mean=1.0, low=1.0, high=1.0),
            items_per_call=1,
            tier="estimated",
            boundary="scripted",
            windows=(Window(reading=reading, calls=1, duration_s=1.0, used=True),),
        )
        interval = Interval(mean=ratio, low=ratio * (1 - half), high=ratio * (1 + half))
        found = Beside(candidate=side, reference=side, ratio=interval)
        return Comparison(a=a, b=b, item="image", hardware="Scripted CPU", beside=found)

    return measured


def of_quality(folder: Path, mean: float, half: float = 0.01) -> Path:
    return seal(folder, put(("test", "quality"), {"mean": mean, "low": mean - half, "high": mean + half}))


@pytest.mark.parametrize(
    ("promise", "ratio", "quality", "terms", "outcome"),
    [
        ("kept", 0.8, 0.97, {}, "kept"),
        ("kept", 1.005, 0.97, {}, "kept"),  # not proven to be more
        ("kept", 1.05, 0.97, {}, "inconclusive"),  # proven, but a layout in memory can make as much
        ("kept", 1.2, 0.97, {}, "broken"),
        ("kept", 1.2, 0.97, {"max_ratio": 1.2}, "kept"),
        ("kept", 0.8, 0.96, {}, "kept"),  # lost 0.01 ± 0.014
        ("kept", 0.8, 0.95, {}, "broken"),  # lost 0.02 ± 0.014
        ("kept", 0.8, 0.95, {"max_loss": 0.01}, "kept"),
        ("broken", 0.8, 0.97, {}, "broken"),
        ("inconclusive", 0.8, 0.97, {}, "inconclusive"),
        ("unmeasured", 0.8, 0.97, {}, "unmeasured"),
    ],
)
def test_it_may_follow_when_the_promise_is_kept_and_nothing_is_proven_worse(
    tested: Path,
    other: Path,
    promise: Outcome,
    ratio: float,
    quality: float,
    terms: dict[str, float],
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(succession, "check", judged(promise))
    monkeypatch.setattr(succession, "compare", beside(ratio))
    found = succession.succeed(of_quality(other, quality), tested, Terms(**terms))
    assert found.outcome == outcome and (found.comparison is None) == (promise != "kept")
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["outcome"] == outcome


@pytest.mark.parametrize("ratio", [0.8, 1.2])
def test_the_alias_moves_or_it_says_what_failed(
    tested: Path, other: Path, uri: str, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "check", judged("kept"))
    monkeypatch.setattr(succession, "compare", beside(ratio))
    models.register(tested, "toy", uri=uri)
    assert models.promote("toy", uri=uri).outcome == "kept"  # there was none
    assert aliases(uri) == {"champion": "1"}
    models.register(other, "toy", uri=uri)
    found, outcome = models.promote("toy", uri=uri), "kept" if ratio < 1 else "broken"
    assert (found.outcome, found.challenger, found.champion) == (outcome, "2", "1")
    moved = {"champion": "2"} if outcome == "kept" else {"champion": "1", "challenger": "2"}
    assert aliases(uri) == moved
    tags = versions(uri)["2"].tags
    assert tags["promotion"] == outcome and tags["promotion_energy_ratio"] == "0.4 (0.39 to 0.41)"
    assert tags["promotion_beside_champion"].startswith(f"{ratio:.4g} (")
    assert (tags["promotion_reason"] == "all kept") == (outcome == "kept")
    assert "energy at most 1 of the champion's" in found.summary() and f"version 2: {outcome}" in found.summary()
    assert found.to_json()["promoted"] == (outcome == "kept")


def test_over_a_servers_own_roads(tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REST, with artifacts through the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{tmp_path}/m.db", "--artifacts-destination", str(tmp_path / "art")),
    ]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    uri = f"http://127.0.0.1:{port}"
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            until = time.monotonic() + 120
            while not up(f"{uri}/health"):
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.2)
            assert [models.register(tested, "toy", uri=uri).number for _ in range(2)] == ["1", "1"]
            monkeypatch.setattr(succession, "check", judged("kept"))
            assert models.promote("toy", uri=uri).outcome == "kept" and aliases(uri) == {"champion": "1"}
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put(("task",), "digits"), r"task is 'toy', the champion's 'digits'"),
        (put(("workload", "batch"), 1), "workload is"),
        (put(("item",), "token"), "item is 'sample'"),
    ],
)
def test_other_work_is_refused(tested: Path, other: Path, change: Any, told: str) -> None:
    with pytest.raises(RefusedError, match=rf"{told}.*a model of its own"):
        succession.succeed(tested, seal(other, change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put(("hardware", "cpu"), "Another CPU"), "hardware is Another CPU"),
        (put(("energy", "tier"), "measured"), "tier of energy is measured"),
        (put(("energy", "boundary"), "the whole rack"), "boundary of energy is the whole rack"),
    ],
)
def test_a_champion_of_elsewhere_cannot_be_measured_here(
    tested: Path, other: Path, change: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "check", judged("kept"))
    found = succession.succeed(tested, seal(other, change))
    assert found.outcome == "unmeasured" and told in found.findings[-1].reason and found.comparison is None


def test_what_was_never_judged_on_test_proves_nothing(
    original: Path, tested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "check", judged("kept"))
    monkeypatch.setattr(succession, "compare", beside(0.5))
    for pair, which in (((original, tested), "challenger"), ((tested, original), "champion")):
        found = succession.succeed(*pair)
        assert found.outcome == "inconclusive" and any(f"the {which} was never" in one.reason for one in found.findings)


def test_really_measured_and_promoted(
    tested: Path,
    tmp_path: Path,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the shell, twice: into an empty throne, and beside the champion in a fresh process."""
    generous = {"mean": 1.0, "low": 0.001, "high": 1000.0}  # a microsecond's work on a machine that tests share
    for number in (1, 2):
        folder = tmp_path / f"bundle{number}"
        shutil.copytree(tested, folder)
        seal(folder, lambda data: data["energy"].update(ratio_prediction=generous))
        seal(folder, put(("study",), f"sweep{number}"))
        models.register(folder, "toy", uri=uri)
        quick = [f"--protocol={key}={value}" for key, value in QUICK.items()]
        arguments = ["promote", "toy", "--runs", str(tmp_path / "runs"), "--max-ratio=100", "--json", *quick]
        monkeypatch.setattr(sys, "argv", ["autogreen", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        found = json.loads(capsys.readouterr().out)
        assert (stopped.value.code, found["promoted"], found["challenger"]) == (0, True, str(number))
    assert aliases(uri) == {"champion": "2"}
    beside = found["comparison"]
    assert beside["a"]["name"] == "challenger, version 2" and beside["b"]["name"] == "champion, version 1"
    assert math.isfinite(beside["ratio"]["mean"]) and found["champion"] == "1"
    assert versions(uri)["2"].tags["promotion_beside_champion"].startswith(f"{beside['ratio']['mean']:.4g} (")


QUICK = {"warmup_s": 0.0, "preheat_s": 0.0, "window_s": 0.02, "min_windows": 4, "max_windows": 4, "foreign_limit": 99.0}


@pytest.mark.parametrize(("outcome", "code"), [("kept", 0), ("broken", 1), ("inconclusive", 3), ("unmeasured", 4)])
def test_exit_codes_are_those_of_the_one_table(
    tested: Path,
    tmp_path: Path,
    uri: str,
    outcome: Outcome,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models.register(tested, "toy", uri=uri)
    monkeypatch.setattr(succession, "check", judged(outcome))
    monkeypatch.setattr(sys, "argv", ["autogreen", "promote", "toy", "--tracking", uri])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code == EXIT_CODES[outcome]
    assert f"version 1: {outcome}" in capsys.readouterr().out


def test_what_was_only_converted_may_be_served_and_never_follows(tested: Path, tmp_path: Path, uri: str) -> None:
    from autogreen.bundle import convert

    convert(tested, engine="inductor", to=tmp_path / "converted")
    models.register(tmp_path / "converted", "toy", uri=uri)
    assert versions(uri)["1"].tags["energy"] == "not measured: converted from eager"
    found = models.promote("toy", uri=uri)
    assert found.outcome == "unmeasured" and aliases(uri) == {"challenger": "1"}
    assert "search with its engine" in found.summary()
    stays = succession.succeed(tested, tmp_path / "converted", Terms())
    assert stays.outcome != "kept" and stays.comparison is None


def test_an_alias_that_moved_meanwhile_is_not_overwritten(
    tested: Path, other: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.register(tested, "toy", uri=uri)

    def meanwhile(folder: Path, **settings: Any) -> Check:
        models.register(other, "toy", uri=uri)
        found: Check = judged("kept")(folder)
        return found

    monkeypatch.setattr(succession, "check", meanwhile)
    with pytest.raises(NotConclusiveError, match="aliases of toy were moved"):
        models.promote("toy", uri=uri)
    assert aliases(uri) == {"challenger": "2"}


def test_what_cannot_be_promoted(tested: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match="There are: none"):
        models.promote("toy", uri=uri)
    models.register(tested, "toy", uri=uri)
    with pytest.raises(ConfigError, match="There are: toy"):
        models.promote("yot", uri=uri)
    with models.server(uri) as client:
        client.delete_registered_model_alias("toy", "challenger")
    with pytest.raises(ConfigError, match="toy has no challenger"):
        models.promote("toy", uri=uri)
    for wrong in ({"max_ratio": 0.0}, {"max_ratio": math.nan}, {"max_loss": -0.1}):
        with pytest.raises(ConfigError, match="allowed: a number"):
            Terms(**wrong)


# --- what was changed in the store ------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def reseal(folder: Path) -> None:
    """One who knows the format: another program, and every hash in the bundle fits again."""
    from autogreen.engines import ENGINES

    ENGINES["eager"].save(network(256, seed=1), inputs(32), folder / "new")
    shutil.move(folder / "new" / "model.pt2", folder / "model.pt2")
    (folder / "new").rmdir()
    seal(folder)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda folder: flip(folder / "artifacts" / "bundle" / "model.pt2"),
        lambda folder: reseal(folder / "artifacts" / "bundle"),
        lambda folder: flip(folder / "code" / "autogreen" / "bundle" / "read.py"),
        lambda folder: flip(folder / "MLmodel"),
        lambda folder: (folder / "code" / "evil.py").write_text("import os"),
        lambda folder: (folder / "input_example.json").unlink(),
    ],
)
def test_a_changed_file_in_the_store_is_noticed_before_anything_is_opened(
    tested: Path, other: Path, uri: str, tamper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.register(tested, "toy", uri=uri)
    with models.server(uri) as client:
        client.set_registered_model_alias("toy", "champion", "1")
    models.register(other, "toy", uri=uri)
    before = aliases(uri)
    tamper(store(uri, "1"))
    monkeypatch.setattr(succession, "check", lambda folder, **settings: pytest.fail("something was opened"))
    with pytest.raises(BundleError, match="models:/toy/1 were changed in the artifact store"):
        models.promote("toy", uri=uri)
    assert aliases(uri) == before


def test_what_mlflow_and_python_add_by_themselves_is_no_change(tested: Path, uri: str) -> None:
    models.register(tested, "toy", uri=uri)
    folder = store(uri, "1")
    before = models.contents_sha256(folder)
    (folder / "registered_model_meta").write_text("model_name: toy")
    (folder / "code" / "autogreen" / "__pycache__").mkdir()
    (folder / "code" / "autogreen" / "__pycache__" / "x.pyc").write_bytes(b"0")
    assert models.contents_sha256(folder) == before == versions(uri)["1"].tags[models.FILES]


def test_a_version_that_autogreen_did_not_register(uri: str, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    with models.server(uri) as client:
        client.create_registered_model("toy")
        client.create_model_version("toy", source=str(tmp_path / "foreign"))
        client.set_registered_model_alias("toy", "challenger", "1")
    with pytest.raises(BundleError, match="was not registered by autogreen"):
        models.promote("toy", uri=uri)


def test_a_tag_that_names_another_bundle(tested: Path, uri: str) -> None:
    models.register(tested, "toy", uri=uri)
    with models.server(uri) as client:
        client.set_model_version_tag("toy", "1", models.MANIFEST, "0" * 64)
    with pytest.raises(BundleError, match="is not the one that its tag"):
        models.promote("toy", uri=uri)


# --- loaded as MLflow loads it ----------------------------------------------------------------------------------------


def test_the_registered_model_gives_the_golden_outputs(tested: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    models.register(tested, "toy", uri=uri)
    loaded = mlflow.pyfunc.load_model(str(store(uri, "1")))
    given = inputs(7)[0][0]
    wanted = network(256)(given).detach().numpy()
    assert np.allclose(loaded.predict(given.numpy()), wanted, atol=1e-5)
    assert loaded.input_example.shape == (models.EXAMPLES, 64) if hasattr(loaded, "input_example") else True
    for wrong in (given.numpy().astype("int64"), np.zeros((3, 65), "float32"), np.zeros((0, 64), "float32")):
        with pytest.raises(Exception, match=r"schema|shape|at least 1"):
            loaded.predict(wrong)
    flip(store(uri, "1") / "artifacts" / "bundle" / "weights.safetensors")
    with pytest.raises(BundleError, match="changed after the export"):
        mlflow.pyfunc.load_model(str(store(uri, "1")))
