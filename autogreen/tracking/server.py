"""MLflow's server on the studies' own database, for as long as somebody looks."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from autogreen.errors import ConfigError, TrackingError

START_S = 120.0  # a first start migrates the database


@contextmanager
def serving(runs: Path, port: int) -> "Iterator[subprocess.Popen[str]]":
    """Serve `runs/mlflow.db` and `runs/mlartifacts` on this machine alone; yield the server once it answers.

    Raises:
        ConfigError: the port is taken.
        TrackingError: the server ended, or did not answer within two minutes.
    """
    refuse_taken(port)
    place = runs.resolve()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{place / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(place / "mlartifacts"), "--uvicorn-opts", "--log-level warning"]
    # what needs accounts, language models or a network is not what these pages are for
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.TemporaryFile("w+") as log:
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": log, "text": True}
        # a group of its own, for it starts processes that would outlive it
        server = subprocess.Popen(command, env={**os.environ, **quiet}, start_new_session=True, **pipes)
        try:
            _wait(server, f"http://127.0.0.1:{port}", log)
            yield server
        finally:
            for ask in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(server.pid, ask)
                    server.wait(10)


def refuse_taken(port: int) -> None:
    """
    Raises:
        ConfigError: something listens on the port.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be used: {error.strerror}. If an earlier `autogreen ui` or MLflow runs there, use "
                "its window or stop it; else choose another with --port."
            ) from error


def _wait(server: "subprocess.Popen[str]", address: str, log: TextIO) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            log.seek(0)
            told = log.read().strip().splitlines()
            why = told[-1] if told else f"it ended with code {server.returncode}"
            raise TrackingError(f"MLflow's server did not start: {why}. Mend that and run it again.")
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return
        time.sleep(0.1)
    raise TrackingError(f"MLflow's server did not answer at {address} within {START_S:.0f} s. Run it again.")
