"""The team's server of mlflow_configs/README.md, by its own commands: PostgreSQL, accounts, allowed hosts."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow_pages import free_port, until

from autogreen.errors import TrackingError
from autogreen.front import Front
from autogreen.testing import scripted_results
from autogreen.tracking import Server, sync

ROOT = Path(__file__).parent.parent
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path())
SECRETS = {
    "PGUSER": "autogreen",
    "PGPASSWORD": "pg-secret",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "admin-secret-12345",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "key-secret",
}
pytestmark = pytest.mark.skipif(
    not (PROGRAMS / "initdb").exists() or (os.geteuid() == 0 and shutil.which("runuser") is None),
    reason="needs PostgreSQL's programs (Debian's postgresql), and runuser where tests run as root",
)


def owned(*command: object) -> None:
    """Run as whoever owns the cluster: PostgreSQL refuses root."""
    texts = list(map(str, command))
    subprocess.run(["runuser", "-u", "postgres", "--", *texts] if os.geteuid() == 0 else texts, check=True, timeout=60)


@pytest.fixture(scope="module")
def database() -> Iterator[dict[str, str]]:
    """A PostgreSQL of its own; what finds it, for the environment."""
    folder, port = Path(tempfile.mkdtemp(prefix="autogreen-postgres-")), free_port()
    (folder / "password").write_text(SECRETS["PGPASSWORD"])
    folder.chmod(0o755)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")
    cluster = folder / "data"
    secret = f"--pwfile={folder / 'password'}"
    owned(PROGRAMS / "initdb", "-D", cluster, "-U", "autogreen", "--auth=scram-sha-256", secret, "--no-sync")
    settings = f"-p {port} -k {folder} -h 127.0.0.1 -c fsync=off"
    owned(PROGRAMS / "pg_ctl", "-D", cluster, "-l", folder / "log", "-w", "-o", settings, "start")
    try:
        yield {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    finally:
        owned(PROGRAMS / "pg_ctl", "-D", cluster, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(database: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Started by the README's own commands; its address."""
    place, port = tmp_path_factory.mktemp("team"), free_port()
    create, start = re.findall(r"```sh\n(.*?)```", (ROOT / "mlflow_configs" / "README.md").read_text(), re.DOTALL)
    environment = {
        **os.environ,
        **SECRETS,
        **database,
        "PATH": f"{Path(sys.executable).parent}:{database['PATH']}",
        "MLFLOW_ARTIFACTS_DESTINATION": str(place / "artifacts"),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
    }
    subprocess.run(["sh", "-e", "-c", create], env=environment, cwd=ROOT, check=True, timeout=60)
    with (place / "log").open("w") as log:
        pipes = {"stdout": log, "stderr": log, "start_new_session": True}
        process = subprocess.Popen(["sh", "-e", "-c", start], env=environment, cwd=ROOT, **pipes)  # type: ignore[call-overload]
    try:

        def answers() -> bool:
            assert process.poll() is None, (place / "log").read_text()[-2000:]
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return True
            return False

        until(answers, 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_study_is_there_once_and_outsiders_are_told(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    front = Front.of(scripted_results([(0.001 * n, 0.9**n) for n in range(8)]))
    remote = Server(uri=server, runs=tmp_path)
    for user, password in (("", ""), ("admin", "wrong-secret")):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        with pytest.raises(TrackingError, match="MLFLOW_TRACKING_PASSWORD") as told:
            sync(front, remote)
        assert "wrong-secret" not in str(told.value)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS["MLFLOW_AUTH_ADMIN_PASSWORD"])
    assert sync(front, remote).written == 8 + 4
    assert sync(front, remote).written == 0
    client = MlflowClient(server)
    (experiment,) = (found for found in client.search_experiments() if found.name != "Default")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 12 and len({run.data.tags["autogreen.key"] for run in runs}) == 12
    (sweep,) = (run for run in runs if run.data.tags["autogreen.key"] == "sweep")
    assert len(client.list_artifacts(sweep.info.run_id)) == 5


def test_another_host_name_is_refused(server: str) -> None:
    request = urllib.request.Request(f"{server}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    with refused.value as answer:
        assert answer.code == 403


@pytest.mark.parametrize("path", sorted((ROOT / "mlflow_configs").iterdir()), ids=lambda path: path.name)
def test_no_secret_stands_in_a_file(path: Path) -> None:
    for line in path.read_text().splitlines():
        assert not re.search(r"(?i)(password|secret|key)\w*\s*=\s*[^.\s]", line), line
        assert not re.search(r"//[^/\s]*:[^/\s]*@", line), line
