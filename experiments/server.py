"""What a request costs by batch and batch delay, at several rates, and how long it takes: the uncompressed model.

    python experiments/server.py experiments/digits-server.yaml --rates 50,400,1000 [--runs runs] > FILE.jsonl
    python experiments/server.py report FILE.jsonl

The experiment's workload is a server's; batches and delays are those of its space, the engine is inductor, the limit is
its own at every rate. Each is measured beside the smallest batch, greedy, under the same requests and in one process.
One line of JSON each.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.controls import untouched
from autogreen.engines import Program, Recipe
from autogreen.evaluate import Evaluator
from autogreen.evaluation import Request
from autogreen.experiment import Experiment, load, pick_device
from autogreen.hardware import synchronizer
from autogreen.measure import lease, measure_beside, rest_w
from autogreen.meters import choose
from autogreen.queueing import Load
from autogreen.tasks import cut, to_device
from autogreen.workbench import Setup


def measured(experiment: Experiment, rates: list[float], runs: Path) -> Iterator[dict[str, Any]]:
    """Each rate, batch and delay."""
    device, limit_s = pick_device(experiment.device), experiment.workload.p95_s
    assert limit_s is not None, "a server has a limit"
    batches = sorted(experiment.space.options("parallelism", "batch"))
    delays = sorted(experiment.space.options("parallelism", "batch_delay_s")) or [0.0]
    settings = dict(experiment.meter)
    meter = choose(device, settings.pop("name", "auto"), **settings)
    synchronize = synchronizer(device)
    with tempfile.TemporaryDirectory() as study:
        calls = dict(_programs(experiment, batches, device, Path(study), runs))
        idle_w = rest_w(meter, experiment.protocol, synchronize)
        for rate in rates:
            for batch in batches:
                for delay_s in delays if batch > 1 else (0.0,):
                    bears = Load(rate_per_s=rate, p95_s=limit_s, batch=batch, batch_delay_s=delay_s)
                    with lease():
                        found = measure_beside(
                            calls[batch],
                            calls[batches[0]],
                            items=1,
                            load=bears,
                            reference_load=replace(bears, batch=batches[0], batch_delay_s=0.0),
                            meter=meter,
                            protocol=experiment.protocol,
                            synchronize=synchronize,
                            idle_w=idle_w,
                        )
                    own = found.candidate
                    assert own.served is not None, "it was a server"
                    yield {
                        "rate_per_s": rate,
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


def _programs(
    experiment: Experiment, batches: list[int], device: str, study: Path, runs: Path
) -> Iterator[tuple[int, Callable[[], object]]]:
    """The uncompressed model for each batch, saved and loaded again, as one call on real inputs."""
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
    for batch in batches:
        effect = untouched(experiment.space, anatomy, {"engine": "inductor"}, batch=batch)
        key = evaluator.evaluate(Request(effect=effect)).key
        folder = study / "artifacts" / key
        program = Program(folder, Recipe(**json.loads((folder / "recipe.json").read_text())))
        given = to_device(cut(inputs, batch)[0], device)
        program.run(*given)
        yield batch, lambda program=program, given=given: program.run(*given)


def report(path: Path) -> None:
    """The records as a table."""
    say = sys.stdout.write
    say("| rate | batch | delay | J per request | over batches of one | p50 | p95 | fill | utilization |\n")
    say("|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
    for line in map(json.loads, path.read_text().splitlines()):
        served, joules, ratio = line["served"], line["request_j"], line["ratio"]
        late = "late" if served["p95_s"]["mean"] > line["limit_s"] else ""
        told = "unstable" if served["utilization"] >= 1 else late
        p50, p95 = (f"{1e3 * served[name]['mean']:.3g} ms" for name in ("p50_s", "p95_s"))
        say(
            f"| {line['rate_per_s']:g} | {line['batch']} | {1e3 * line['batch_delay_s']:g} ms | "
            f"{1e3 * joules['mean']:.3g} mJ ({1e3 * joules['low']:.3g}–{1e3 * joules['high']:.3g}) | "
            f"{ratio['mean']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f}) | {p50} | {p95} {told} | "
            f"{served['fill']:.2f} | {served['utilization']:.2f} |\n"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="an experiment, or `report`")
    parser.add_argument("records", type=Path, nargs="?")
    parser.add_argument("--rates", default="50,400,1000")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    if asked.experiment == "report":
        report(asked.records)
    else:
        for line in measured(load(Path(asked.experiment)), [float(one) for one in asked.rates.split(",")], asked.runs):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
