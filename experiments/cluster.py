"""Throughput of a Ray cluster of one and of two workers, on this machine alone: `python experiments/cluster.py`.

Every node is a process of this machine with one processor to give, so two workers share its cores and its one lease to
measure. The digits task at width 8, eager, with fine-tuning: training overlaps, measuring does not. Each size gets a
study of its own in runs/, begun anew, with the same first proposals; the references are not counted. One line of JSON a
size.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

from autogreen.experiment import from_json
from autogreen.store import Store
from autogreen.sweep import sweep

SPACE = {
    "pruning": [{"each": "*", "ratio": {"choice": [0.0, 0.25, 0.5]}}],
    "distillation": {"epochs": 2, "alpha": {"choice": [0.0, 0.5]}},
    "parallelism": {"threads": 1},
    "runtime": {"engine": "eager"},
}


def throughput(workers: int, trials: int, address: str, runs: Path) -> dict[str, object]:
    """Trials per hour with so many workers, from the first proposal to the last answer."""
    data = {
        "task": {"digits": {"width": 8, "epochs": 6}},
        "workload": {"kind": "offline", "batch": 64},
        "space": SPACE,
        "constraints": {"max_loss": 0.2},
        "budget": {"trials": trials},
        "strategy": "direct",
        "sampler": "random",
        "device": "cpu",
        "executor": {"ray": {"address": address, "devices": workers}},
        "finalists": 0,
    }
    folder, began, ended = runs / f"cluster-{workers}", 0.0, 0.0
    Store.discard(folder)
    for step in sweep(from_json(data, name=folder.name, folder=Path.cwd()), folder, runs / ".cache"):
        if step.stage == "searching":
            began, ended = began or time.monotonic(), time.monotonic()
    results = Store.open(folder).results()
    seconds: dict[str, float] = {}
    for trial in results.trials:
        for phase, spent in (trial.evaluation.seconds if trial.evaluation else {}).items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
    return {
        "workers": workers,
        "trials": len(results.trials),
        "measured": len(results.measured),
        "seconds": round(ended - began, 1),
        "trials_per_hour": round(3600 * len(results.trials) / (ended - began), 1),
        "seconds_by_phase": {phase: round(spent, 1) for phase, spent in seconds.items()},
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "host": platform.node(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = ".*"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        for workers in (1, 2):
            print(json.dumps(throughput(workers, given.trials, cluster.address, given.runs)), flush=True)  # noqa: T201
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
