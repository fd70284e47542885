"""Every policy of a small space, really trained and measured: the table that strategies are replayed against.

    python experiments/factorial.py EXPERIMENT.yaml OUT.jsonl [--shard I/N] [--seconds S]

The space has only choices, and no two policies may do the same. Each is evaluated as in a sweep, beside the
uncompressed model in the experiment's runtime, without a gate; shards may run side by side, each on cores of its own
and into a file of its own. The first line of OUT says what was measured and on what, and what probes foresee of each
choice; every other one is a policy: the ordinals of its answers; loss, energy ratio and quality (mean, low, high);
seconds and joules it took; or why it failed. What is there is not run again.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from autogreen.anatomy import Anatomy
from autogreen.controls import untouched
from autogreen.errors import AutogreenError
from autogreen.evaluate import Evaluator
from autogreen.evaluation import Request
from autogreen.experiment import Experiment, load, pick_device
from autogreen.policy import Effect
from autogreen.probe import Probed
from autogreen.probing import Asked, asked, forecast, paired
from autogreen.space import SearchSpace
from autogreen.workbench import Setup


def rows(space: SearchSpace, anatomy: Anatomy) -> Iterator[tuple[tuple[int, ...], Effect]]:
    """Ordinals of every policy's answers, and what it does, in an order of no meaning: a part of the table is a random
    sample of it."""
    holes = {name: hole.options or () for name, hole in space.holes().items()}
    if () in holes.values():
        raise SystemExit("a factorial takes choices only: a range has no end")
    every = list(itertools.product(*(range(len(options)) for options in holes.values())))
    met: set[str] = set()
    for place in np.random.default_rng(0).permutation(len(every)):
        answers = {name: options[at] for (name, options), at in zip(holes.items(), every[place], strict=True)}
        effect = space.filled(answers).effect(anatomy)
        if effect.id in met:
            raise SystemExit(f"two policies do the same, {answers} one of them: widths are rounded (round_to)")
        met.add(effect.id)
        yield every[place], effect


def rounded(values: Any) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def foreseen(evaluator: Evaluator, space: SearchSpace, anatomy: Anatomy, batch: int) -> list[dict[str, Any]]:
    """What a guided search knows before its first trial."""
    questions, left_out = asked(space, anatomy)
    assert not left_out, left_out

    def answered(questions: Sequence[Asked]) -> dict[Asked, Probed]:
        return {
            one: Probed(**answer)
            for one in questions
            for answer in evaluator.probe(one.section, [one.effect])["probed"]
        }

    alone = answered(questions)
    found, left_out = forecast({**alone, **answered(paired(alone))}, anatomy, None, batch)
    assert not left_out, left_out
    return [asdict(choice) for choice in found.choices]


def head(
    experiment: Experiment, space: SearchSpace, found: dict[str, Any], choices: list[dict[str, Any]]
) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "experiment": experiment.to_json(),
        "holes": {name: list(hole.options or ()) for name, hole in space.holes().items()},
        "choices": choices,
        "max_loss": experiment.constraints.max_loss,
        **{key: found[key] for key in ("hardware", "meter", "item")},
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shard", default="0/1", help="I/N: every N-th policy, from the I-th on")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no policy after this time")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    given = parser.parse_args()
    began = time.monotonic()
    first, step = map(int, given.shard.split("/"))
    experiment = load(given.experiment)
    given.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(
            task=experiment.task,
            workload=experiment.workload,
            protocol=experiment.protocol,
            device=pick_device(experiment.device),
            folder=Path(folder),
            cache=given.cache.absolute(),
            meter=experiment.meter,
        )
        evaluator = Evaluator(setup)
        found = evaluator.prepare(tuple(experiment.space.sections))
        anatomy = Anatomy.from_json(found["anatomy"])
        space = experiment.space.expand(anatomy)
        effects = list(rows(space, anatomy))
        lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
        done = {tuple(line["row"]) for line in lines[1:]}
        with given.out.open("a", buffering=1) as out:
            if not lines:
                choices = foreseen(evaluator, space, anatomy, experiment.workload.fixed_batch or 1)
                out.write(json.dumps(head(experiment, space, found, choices)) + "\n")
            reference = evaluator.evaluate(Request(effect=untouched(space, anatomy, {"engine": "inductor"})))
            for row, effect in itertools.islice(effects, first, None, step):
                if row in done or time.monotonic() - began > given.seconds:
                    continue
                line: dict[str, Any] = {"row": row}
                try:
                    got = evaluator.evaluate(Request(effect=effect, reference=reference.key))
                    assert got.loss and got.ratio and got.measurement
                    for name, interval in (("loss", got.loss), ("ratio", got.ratio), ("quality", got.quality)):
                        line[name] = rounded([interval.mean, interval.low, interval.high])
                    line["seconds"] = {name: round(value, 2) for name, value in got.seconds.items()}
                    line["spent_j"] = round(got.spent_j, 1)
                except AutogreenError as error:
                    line["failed"] = f"{type(error).__name__}: {error}"
                out.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
