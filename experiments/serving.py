"""Serve a bundle for real and ask it: are the answers those of the evaluated model, and how fast do they come?

    python experiments/serving.py BUNDLE [--requests 1000]

Registers the bundle in a scratch registry, starts `mlflow models serve` on loopback with pickles switched off, and
sends requests of 1 to 8 golden examples each, from random places, one after the other. Prints a line of JSON. `apart`:
largest difference of an answer to the recorded outputs, over the largest magnitude of that tensor.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from autogreen.bundle import read
from autogreen.bundle.read import examples
from autogreen.bundle.service import Interface, array
from autogreen.tasks.trees import pack
from autogreen.tracking import models

MOST = 8  # examples a request
START_S = 180.0


@contextmanager
def serving(folder: Path, scratch: Path) -> Iterator[str]:
    """A server of the registered model; yields the address that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["models", "serve", "-m", str(folder), "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where uvicorn is
    environment = {**os.environ, "PATH": path, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment.pop("PYTHONPATH", None)
    with (
        (scratch / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=scratch,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            until = time.monotonic() + START_S
            while not up(f"http://127.0.0.1:{port}/ping"):
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit((scratch / "log").read_text()[-3000:])
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    asked = parser.parse_args()
    manifest = read(asked.bundle)
    interface = Interface.of(asked.bundle, manifest)
    _, expected = pack(examples(asked.bundle, manifest)[1], "output")
    wanted = {slot.name: array(expected[slot.tensor]) for slot in interface.outputs}
    whole, chance = interface.examples(manifest.golden.examples), np.random.default_rng(0)
    given = whole if isinstance(whole, dict) else {None: whole}
    apart, seconds = 0.0, []
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        uri = models.address(None, Path(scratch))
        found = models.register(asked.bundle, "served", uri=uri)
        with models.server(uri) as client:
            folder = Path(client.get_model_version("served", found.number).source.removeprefix("file://"))
        registered_s = time.monotonic() - began
        began = time.monotonic()
        with serving(folder, Path(scratch)) as url:
            started_s = time.monotonic() - began
            for _ in range(asked.requests):
                places = chance.integers(0, manifest.golden.examples, int(chance.integers(1, MOST + 1)))
                part = {name: value[places].tolist() for name, value in given.items()}
                body = json.dumps({"inputs": part.get(None, part)}).encode()
                began = time.monotonic()
                request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=60) as answer:
                    told = json.loads(answer.read())["predictions"]
                seconds.append(time.monotonic() - began)
                answers = told if isinstance(told, dict) else {None: told}
                for name, held in wanted.items():
                    off = np.abs(np.array(answers[name]) - held[places]).max() / np.abs(held).max()
                    apart = max(apart, float(off))
    line = {
        "bundle": manifest.key,
        "study": manifest.study,
        "engine": manifest.recipe.engine,
        "requests": len(seconds),
        "apart": apart,
        "allowed": manifest.golden.tolerance,
        "registered_s": round(registered_s, 1),
        "started_s": round(started_s, 1),
        "request_median_ms": round(1e3 * float(np.median(seconds)), 2),
        "request_p99_ms": round(1e3 * float(np.quantile(seconds, 0.99)), 2),
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
