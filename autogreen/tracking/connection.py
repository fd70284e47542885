"""How MLflow is reached: which server, bounded requests, no telemetry, no messages, and its failures in one line."""

import fcntl
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autogreen.errors import ConfigError, TrackingError

PORT = 5000  # where `mlflow server` and `autogreen ui` listen unless told otherwise


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the mirror is. uri: of an MLflow server; None: `mlflow.db` and `mlartifacts` in `runs`, no server needed to
    write them. port: where that one will be served on this machine.

    Raises:
        ConfigError: the URI is no web address, or holds a password.
    """

    uri: str | None
    runs: Path
    port: int = PORT

    def __post_init__(self) -> None:
        if self.uri is not None:
            check_address(self.uri)

    @property
    def address(self) -> str:
        """As MLflow's client wants it."""
        return self.uri or f"sqlite:///{self.runs.resolve() / 'mlflow.db'}"

    @property
    def page(self) -> str:
        """Where a browser finds it; the local one once `autogreen ui` serves it."""
        return f"http://127.0.0.1:{self.port}" if self.uri is None else self.uri.rstrip("/")

    @property
    def name(self) -> str:
        """For messages."""
        return self.uri or str(self.runs / "mlflow.db")

    @property
    def artifacts(self) -> Path | None:
        """Folder that `mlflow-artifacts:/` stands for, where no server is needed to write there.

        Runs name their artifacts by that scheme and not by a path, so that the folder can be moved and copied.
        """
        return self.runs.resolve() / "mlartifacts" if self.uri is None else None

    def client(self) -> Any:
        """MLflow's own client."""
        from mlflow import MlflowClient

        if self.uri is not None:
            return MlflowClient(tracking_uri=self.address)
        self.runs.mkdir(parents=True, exist_ok=True)
        with _lock_file(self.address).open("a") as lock:  # MLflow's migrations break where two begin them
            fcntl.flock(lock, fcntl.LOCK_EX)
            client = MlflowClient(tracking_uri=self.address)
            _hasten(client._tracking_client.store.engine)
        return client


def _hasten(engine: Any) -> None:
    """Let sqlite's commits wait for no disk: ten of them a run are most of a fill's time. With a write-ahead log a
    power cut loses the last commits, which a sync makes again, and never damages the file; and pages are read while
    it is written. See https://sqlite.org/wal.html and https://sqlite.org/pragma.html#pragma_synchronous."""
    from sqlalchemy import event

    if not event.contains(engine, "connect", _without_waiting):  # MLflow keeps one engine a database
        event.listen(engine, "connect", _without_waiting)
        engine.dispose()  # connections from before


def _without_waiting(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def check_address(uri: str) -> None:
    """Refuse what is no address of an MLflow server.

    Raises:
        ConfigError: the URI is no web address, or holds a password.
    """
    try:
        parts = urlsplit(uri)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        parts, known = None, False
    if parts is not None and "@" in parts.netloc:
        raise ConfigError(
            "tracking holds a user name or password, which would be kept with the study. Leave them out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )
    if not known:
        raise ConfigError(
            f"tracking must be the address of an MLflow server, http://HOST:PORT or https://HOST, not {hidden(uri)!r}. "
            "A database is served by `mlflow server --backend-store-uri` (see mlflow_configs/README.md)."
        )


def hidden(text: str) -> str:
    """Without the passwords of any address in it."""
    return re.sub(r"//[^/\s@]*@", "//", text)


@contextmanager
def patience(timeout_s: float) -> Iterator[None]:
    """Requests that end within `timeout_s`, none repeated, no telemetry, no messages.

    Raises:
        TrackingError: mlflow is not installed.
    """
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, math.ceil(timeout_s))),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    levels: dict[logging.Logger, int] = {}
    try:
        try:
            import mlflow  # noqa: F401 - it sets its own loggers up, so they are silenced afterwards
        except ModuleNotFoundError as error:
            raise TrackingError(
                f"{error.name} is not installed, so there is no mirror in MLflow. `pip install mlflow`, and run "
                "`autogreen sync NAME`."
            ) from error
        for name in ("mlflow", "alembic", "urllib3"):
            logger = logging.getLogger(name)
            levels[logger] = logger.level
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def failures(server: Server) -> Iterator[None]:
    """Turn whatever goes wrong between here and the server into one line.

    Raises:
        TrackingError: it cannot be reached, refuses, or breaks.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # MLflow lets those of requests, SQLAlchemy, alembic and the file system through
        raise TrackingError(_told(error, server)) from error


def _told(error: Exception, server: Server) -> str:
    status = getattr(error, "get_http_status_code", lambda: None)()
    text = hidden(" ".join(str(error).split()))
    local = server.uri is None
    if status in (401, 403) or "error code 401" in text or "not authenticated" in text:
        return (
            f"{server.name} refuses these credentials. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an "
            "account that may edit the experiment."
        )
    if "Connection refused" in text or "Max retries" in text or "failed with exception" in text:
        why = next((why for sign, why in _SIGNS if sign in text), "it does not answer")
        return (
            f"{server.name} cannot be reached: {why}. Start it, or name another with --tracking; the study is whole "
            "without it."
        )
    if "Invalid Host header" in text:
        return f"{server.name} does not answer to this host name. Start it with --allowed-hosts that name it."
    mend = "Mend or move that file, and run it again." if local else "What its log says may tell more; run it again."
    return f"{server.name} failed: {text[:300]}. {mend}"


_SIGNS = (
    ("Connection refused", "nothing listens there"),
    ("Name or service not known", "there is no such host"),
    ("Failed to resolve", "there is no such host"),
    ("timed out", "it does not answer in time"),
    ("Connection aborted", "it broke off"),
)


@contextmanager
def alone(study: str, server: Server, waiting: Callable[[str], object] | None = None) -> Iterator[bool]:
    """Be the one process on this machine that fills this mirror, also where the study lies in several copies.

    waiting: told of once when another process must be waited for; None: nothing is waited for. Yields whether the
    mirror is ours.
    """
    with _lock_file(f"{study} {server.address}").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                yield False
                return
            lock.seek(0)
            waiting(f"waiting for process {lock.read().strip() or 'unknown'}, which fills this mirror now")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield True


def _lock_file(what: str) -> Path:
    digest = sha256(what.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"autogreen-mirror-{os.getuid()}-{digest}.lock"


def experiment_for(client: Any, name: str, artifacts: str | None) -> str:
    """The id of an experiment, made or restored where needed. artifacts: where a new one keeps them; None: where the
    server does."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)
