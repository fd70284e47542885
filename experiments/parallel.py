"""What a policy costs, and how soon it answers, by the devices that it occupies: every policy of a small space.

    python experiments/parallel.py experiments/parallel-decode.yaml [--set KEY=VALUE ...] [--runs runs] > FILE
    python experiments/parallel.py report FILE

Each is built, checked and measured as a sweep does it, beside the first one, which fills its holes with their first
options: write one device and the plain model first. Nothing is searched, and no other references are measured, so that
a model of billions of parameters takes minutes. One line of JSON a policy, after one about the machine.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.engines import DEGREES
from autogreen.errors import AutogreenError
from autogreen.evaluate import Evaluator
from autogreen.evaluation import Request
from autogreen.experiment import Experiment, load, pick_device
from autogreen.restriction import surveyed
from autogreen.wording import quantity, words
from autogreen.workbench import Setup

SERVING = ("parallelism", "runtime")  # sections that do nothing to the model


def measured(experiment: Experiment, runs: Path) -> Iterator[dict[str, Any]]:
    """Each policy, in the order of the options."""
    device, batch = pick_device(experiment.device), experiment.workload.fixed_batch
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs) as folder:
        study = Path(folder).absolute()
        for name in ("artifacts", "scores"):
            (study / name).mkdir()
        evaluator = Evaluator(
            Setup(
                task=experiment.task,
                workload=experiment.workload,
                protocol=experiment.protocol,
                device=device,
                ranks=experiment.ranks,
                folder=study,
                cache=(runs / ".cache").absolute(),
                meter=experiment.meter,
            )
        )
        about = evaluator.prepare(surveyed(experiment.space))
        anatomy = Anatomy.from_json(about["anatomy"])
        date = datetime.now(UTC).isoformat(timespec="seconds")
        yield {"task": experiment.task_text, "date": date, **{key: about[key] for key in ("hardware", "meter", "item")}}
        space, reference, seen = experiment.space.expand(anatomy), None, set[str]()
        holes = space.holes()
        for answers in product(*(hole.options for hole in holes.values())):
            effect = space.filled(dict(zip(holes, answers, strict=True))).effect(anatomy)
            if effect.id in seen:
                continue
            seen.add(effect.id)
            told: dict[str, Any] = {"id": effect.id, "parts": effect.parts}
            try:
                if reason := effect.refusal(anatomy, device, batch, about["room"]):
                    yield {**told, "refused": reason}
                    continue
                found = evaluator.evaluate(Request(effect=effect, reference=reference))
            except AutogreenError as error:
                yield {**told, "refused": str(error)}
                continue
            finally:
                for path in (study / "artifacts").iterdir():
                    if reference is not None and path.name != reference:
                        shutil.rmtree(path)
            reference = reference or found.key
            own, recipe = found.measurement, found.recipe
            assert own is not None and recipe is not None, "nothing gates it"
            yield {
                **told,
                "recipe": asdict(recipe),
                "ranks": recipe.ranks,
                "energy_per_item_j": asdict(own.energy_per_item_j),
                "latency_s": asdict(own.judged_latency_s),
                "ratio": asdict(found.ratio) if found.ratio else None,
                "loss": asdict(found.loss) if found.loss else None,
                "communication": found.communication,
                "boundary": own.boundary,
                "tier": own.tier,
                "seconds": dict(found.seconds),
                "warnings": list(own.warnings),
            }


def report(path: Path) -> Iterator[str]:
    """The records as a table. Over one: the cheapest policy of one rank with the same batch that does the same to the
    model."""
    about, *records = map(json.loads, path.read_text().splitlines())
    known = [record for record in records if "refused" not in record]
    joules = f"J per {about['item']}"
    heads = ("batch", *DEGREES, "policy", joules, "over one", "latency", "over one", "between ranks", "loss")
    yield f"| {' | '.join(heads)} |"
    yield f"|{'--:|' * len(heads)}"
    for record in known:
        recipe, shared, loss = record["recipe"], record["communication"], record["loss"]
        energy, latency_s = record["energy_per_item_j"], record["latency_s"]["mean"]
        alone = min(
            (other for other in known if _kind(other) == _kind(record) and other["ranks"] == 1),
            key=lambda other: other["energy_per_item_j"]["mean"],
            default=None,
        )
        half = (energy["high"] - energy["low"]) / 2 / energy["mean"]
        cells = (
            str(recipe["batch"]),
            *(str(recipe[name]) for name in DEGREES),
            f"{words(_changes(record))}, {recipe['engine']}{', graph' if recipe['cuda_graph'] else ''}",
            f"{quantity(energy['mean'], 'J')} ± {half:.1%}",
            "" if alone is None else f"{energy['mean'] / alone['energy_per_item_j']['mean']:.3f}",
            quantity(latency_s, "s"),
            "" if alone is None else f"{latency_s / alone['latency_s']['mean']:.3f}",
            "" if shared is None else f"{shared:.0%}",
            "" if loss is None else f"{loss['mean']:.4f}",
        )
        yield f"| {' | '.join(cells)} |"
    yield from ("", *(f"- {words(record['parts'])}: {record['refused']}" for record in records if "refused" in record))


def _changes(record: dict[str, Any]) -> dict[str, Any]:
    return {section: part for section, part in record["parts"].items() if section not in SERVING}


def _kind(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["recipe"]["batch"], _changes(record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="an experiment, or `report`")
    parser.add_argument("records", type=Path, nargs="?")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, as of `autogreen sweep`")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    if asked.experiment == "report":
        sys.stdout.writelines(f"{line}\n" for line in report(asked.records))
    else:
        for line in measured(load(Path(asked.experiment), tuple(asked.set)), asked.runs):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
