"""What a request costs by batch and batch delay, at several rates, and how long it takes: the uncompressed model.

    python experiments/server.py experiments/digits-server.yaml --rates 50,400,1000 [--replicas 1,2] > FILE
    python experiments/server.py report FILE

The experiment's workload is a server's; batches and delays are those of its space, the engine is inductor, the limit is
its own at every rate. Each is measured beside the smallest batch, greedy, under the same requests. Of several replicas
behind one queue, each on a GPU of its own (on a CPU in a process of its own), every one adds so many requests a second.
One line of JSON each.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from autogreen.anatomy import Anatomy
from autogreen.controls import untouched
from autogreen.engines import Recipe
from autogreen.evaluate import Evaluator
from autogreen.evaluation import Request
from autogreen.experiment import Experiment, load, pick_device
from autogreen.hardware import synchronizer
from autogreen.measure import lease, measure_beside, rest_w
from autogreen.meters import Meter, choose
from autogreen.queueing import Load
from autogreen.ranks import open_program
from autogreen.tasks import cut, to_device
from autogreen.workbench import Setup


class Side(NamedTuple):
    """A program before which requests queue, the meter of the devices that it occupies, and what they take at rest."""

    call: Callable[[], object]
    meter: Meter
    idle_w: float | None


def measured(experiment: Experiment, rates: list[float], replicas: list[int], runs: Path) -> Iterator[dict[str, Any]]:
    """Each rate, number of replicas, batch and delay; beside the first number of replicas and the smallest batch."""
    device, limit_s = pick_device(experiment.device), experiment.workload.p95_s
    assert limit_s is not None, "a server has a limit"
    batches = sorted(experiment.space.options("parallelism", "batch"))
    delays = sorted(experiment.space.options("parallelism", "batch_delay_s")) or [0.0]
    synchronize = synchronizer(device)
    with tempfile.TemporaryDirectory() as study:
        sides = dict(_sides(experiment, batches, replicas, device, Path(study), runs))
        first = (replicas[0], batches[0])
        for rate, count, batch in product(rates, replicas, batches):
            for delay_s in delays if batch > 1 else (0.0,):
                bears = Load(rate_per_s=rate * count, p95_s=limit_s, batch=batch, batch_delay_s=delay_s)
                least = replace(bears, rate_per_s=rate * replicas[0], batch=batches[0], batch_delay_s=0.0)
                ours, theirs = sides[count, batch], sides[first]
                with lease():
                    found = measure_beside(
                        ours.call,
                        theirs.call,
                        items=1,
                        load=bears,
                        reference_load=least,
                        meter=ours.meter,
                        reference_meter=theirs.meter,
                        protocol=experiment.protocol,
                        synchronize=synchronize,
                        idle_w=ours.idle_w,
                        reference_idle_w=theirs.idle_w,
                    )
                own = found.candidate
                assert own.served is not None, "it was a server"
                yield {
                    "rate_per_s": rate * count,
                    "replicas": count,
                    "batch": batch,
                    "batch_delay_s": delay_s,
                    "limit_s": limit_s,
                    "request_j": asdict(own.energy_per_item_j),
                    "ratio": asdict(found.ratio),
                    "power_w": own.power_w,
                    "served": asdict(own.served),
                    "tier": own.tier,
                    "warnings": [*found.warnings, *own.warnings],
                }


def _sides(
    experiment: Experiment, batches: list[int], replicas: list[int], device: str, study: Path, runs: Path
) -> Iterator[tuple[tuple[int, int], Side]]:
    """The uncompressed model for each number of replicas and batch, saved and loaded again, on real inputs."""
    for name in ("artifacts", "scores"):
        (study / name).mkdir()
    evaluator = Evaluator(
        Setup(
            task=experiment.task,
            workload=experiment.workload,
            # it is the artifact that is wanted
            protocol=replace(experiment.protocol, warmup_s=0.0, preheat_s=0.0, min_windows=2, max_windows=2),
            device=device,
            folder=study,
            cache=(runs / ".cache").absolute(),
            meter=experiment.meter,
        )
    )
    anatomy = Anatomy.from_json(evaluator.prepare()["anatomy"])
    inputs = next(experiment.task.inputs(batch) for batch in experiment.task.batches("validation"))
    runtime = {"engine": "inductor", "cuda_graph": True in experiment.space.options("runtime", "cuda_graph")}
    settings = dict(experiment.meter)
    name = settings.pop("name", "auto")
    for batch in batches:
        effect = untouched(experiment.space, anatomy, runtime, batch=batch)
        folder = study / "artifacts" / evaluator.evaluate(Request(effect=effect)).key
        given = to_device(cut(inputs, batch)[0], device)
        for count in replicas:
            recipe = Recipe(**{**json.loads((folder / "recipe.json").read_text()), "data": count})
            call = open_program(folder, recipe).calling(given)
            call()
            meter = choose(",".join(recipe.devices), name, **settings)
            yield (count, batch), Side(call, meter, rest_w(meter, experiment.protocol, synchronizer(device)))


def report(path: Path) -> None:
    """The records as a table."""
    say = sys.stdout.write
    say("| rate | replicas | batch | delay | J per request | over the first | p50 | p95 | fill | utilization |\n")
    say("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
    for line in map(json.loads, path.read_text().splitlines()):
        served, joules, ratio = line["served"], line["request_j"], line["ratio"]
        late = "late" if served["p95_s"]["mean"] > line["limit_s"] else ""
        told = "unstable" if served["utilization"] >= 1 else late
        p50, p95 = (f"{1e3 * served[name]['mean']:.3g} ms" for name in ("p50_s", "p95_s"))
        setting = (f"{line['rate_per_s']:g}", str(line.get("replicas", 1)), str(line["batch"]))
        say(
            f"| {' | '.join(setting)} | {1e3 * line['batch_delay_s']:g} ms | "
            f"{1e3 * joules['mean']:.3g} mJ ({1e3 * joules['low']:.3g}–{1e3 * joules['high']:.3g}) | "
            f"{ratio['mean']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f}) | {p50} | {p95} {told} | "
            f"{served['fill']:.2f} | {served['utilization']:.2f} |\n"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="an experiment, or `report`")
    parser.add_argument("records", type=Path, nargs="?")
    parser.add_argument("--rates", default="50,400,1000")
    parser.add_argument("--replicas", default="1")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    if asked.experiment == "report":
        report(asked.records)
    else:
        rates, replicas = map(float, asked.rates.split(",")), map(int, asked.replicas.split(","))
        for line in measured(load(Path(asked.experiment)), list(rates), list(replicas), asked.runs):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
