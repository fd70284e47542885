"""How fast a study reaches MLflow, and how fast its view and page open: many trials of many knobs, none really run.

    python experiments/mirror.py OUT.jsonl [--trials 5000] [--knobs 200] [--into sqlite|rest] [--browser]

`sqlite` fills a database as a sweep does by default; `rest` fills a real `mlflow server` on this machine, which has a
sqlite database of its own. `--browser` opens the link in headless Chromium and waits until both charts are drawn. A
line of OUT says what was measured, on what and with which versions; nothing is cut: every run is read back and counted.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autogreen import hardware
from autogreen.engines import Kernel
from autogreen.front import Front
from autogreen.page import html
from autogreen.policy import Effect
from autogreen.results import Results
from autogreen.testing import scripted_results
from autogreen.tracking import Server, serving, sync

SCHEMES = ("none", "bf16", "w8a8_static")


def study(trials: int, knobs: int) -> Results:
    """A scripted study as large as asked: a front of about a hundredth, the rest dominated; one in ten gated."""
    chance = random.Random(0)
    found = scripted_results([_place(chance, number, trials) for number in range(trials)], study="large")
    return replace(found, trials=tuple(_dressed(trial, chance, knobs) for trial in found.trials))


def _place(chance: random.Random, number: int, trials: int) -> tuple[float, float]:
    share = chance.random()
    best = 0.002 + 0.08 * share**3, 1.0 - 0.8 * share  # loss rises as energy falls
    if number % 100 == 0:
        return best
    return best[0] + chance.expovariate(30), best[1] * (1.1 + chance.expovariate(2))


def _dressed(trial: Any, chance: random.Random, knobs: int) -> Any:
    layers = {f"encoder.layer.{n // 6}.part{n % 6}.linear": chance.choice(SCHEMES) for n in range(knobs)}
    policy = {"quantization": [{"target": name, "scheme": scheme} for name, scheme in layers.items()]}
    effect = Effect.of({"quantization": layers, "runtime": {"engine": "inductor"}})
    told = trial.evaluation
    used = told.measurement.windows * 8
    evaluation = replace(
        told,
        key=f"{effect.id}-baseline-s0",
        effect=effect,
        measurement=replace(told.measurement, windows=used),
        layers=dict.fromkeys(layers, "onednn::qlinear_pointwise"),
        kernels=tuple(Kernel(name=f"kernel{n}", precision="int8", calls=n) for n in range(4)),
    )
    if trial.number % 10 == 9:
        evaluation = replace(evaluation, status="gated", ratio=None, measurement=None)
    params = {f"quantization/{name}/scheme": scheme for name, scheme in layers.items()}
    return replace(
        trial, params=params, policy=policy, evaluation=evaluation, state=evaluation.status,
        feasible=evaluation.status == "measured",
    )  # fmt: skip


@contextlib.contextmanager
def place(into: str, port: int) -> Iterator[Server]:
    """A database without a server, or a server."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        if into == "sqlite":
            yield Server(uri=None, runs=runs, port=port)
            return
        (runs / "server").mkdir()
        with serving(runs / "server", port):
            yield Server(uri=f"http://127.0.0.1:{port}", runs=runs)


def opened(link: str) -> dict[str, float]:
    """Seconds until the view's two charts are drawn in Chromium, and the runs in the first."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1300,1400"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    marks = "return [...document.querySelectorAll('.js-plotly-plot')].map(p => p.data[0].x?.length ?? 0)"
    axes = "return [...document.querySelectorAll('svg text')].filter(t => t.textContent.startsWith('quanti')).length"
    try:
        began = time.monotonic()
        browser.get(link)
        while not ((drawn := browser.execute_script(marks)) and browser.execute_script(axes)):
            if time.monotonic() - began > 120:
                raise SystemExit("the view was not drawn within two minutes")
            time.sleep(0.1)
        return {"view_s": round(time.monotonic() - began, 2), "marks": drawn[0]}
    finally:
        browser.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--knobs", type=int, default=200)
    parser.add_argument("--into", choices=("sqlite", "rest"), default="sqlite")
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--port", type=int, default=5371)
    asked = parser.parse_args()
    front = Front.of(study(asked.trials, asked.knobs))
    with place(asked.into, asked.port) as server:
        warm = Front.of(scripted_results([(0.0, 0.5)], study="warm"))
        sync(warm, server)  # MLflow's migrations are not what is measured
        began, used = time.monotonic(), time.process_time()
        filled = sync(front, server)
        took_s, cpu_s = time.monotonic() - began, time.process_time() - used
        began = time.monotonic()
        again = sync(front, server)
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": subprocess.check_output(["git", "describe", "--always", "--dirty"], text=True).strip(),
            "hardware": hardware.name(hardware.describe("cpu")),
            "versions": {name: version(name) for name in ("mlflow", "plotly", "sqlalchemy")},
            "into": asked.into,
            "trials": asked.trials,
            "knobs": asked.knobs,
            "front": len(front.members),
            "written": filled.written,
            "held": filled.held,
            "sync_s": round(took_s, 1),
            "trials_per_s": round(asked.trials / took_s, 2),
            "own_cpu_s": round(cpu_s, 1),
            "again_s": round(time.monotonic() - began, 1),
            "again_written": again.written,
            "page_bytes": len(html(front).encode()),
            "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        if asked.browser:
            with serving(server.runs, asked.port) if server.uri is None else contextlib.nullcontext():
                line |= opened(filled.link)
        sys.stdout.write(json.dumps(line, indent=1) + "\n")
        with asked.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    main()
