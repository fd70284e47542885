"""Random policies of the shipped experiments: each one is built, saved, loaded and run, or refused with a reason.

    python experiments/policies.py [--count 200] [--compiled 0.25] [--seed 0] EXPERIMENT.yaml ...

Nothing is measured: what is told is whether the outputs have the uncompressed model's shapes and are finite. Training
is cut to two batches an epoch. One line of JSON a policy; the exit code is 1 when any of them failed.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import optuna
import torch

from autogreen.anatomy import Anatomy, survey
from autogreen.compress import compress, lower
from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import AutogreenError, RefusedError
from autogreen.experiment import Experiment, load, pick_device
from autogreen.policy import Effect, Policy
from autogreen.space import SearchSpace
from autogreen.tasks import Inputs, Task, cut, plain, to_device
from autogreen.techniques import TECHNIQUES, Context
from autogreen.techniques.trace import tensors

BATCHES = 2  # of an epoch and of the calibration split


class Brief:
    """A task whose splits have two batches."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def batches(self, split: Any, epoch: int = 0) -> list[Any]:
        return [batch for batch, _ in zip(self._task.batches(split, epoch), range(BATCHES), strict=False)]


class Bench:
    """One experiment's model, anatomy and space."""

    def __init__(self, experiment: Experiment, cache: Path) -> None:
        self.task, self.device = Brief(experiment.task), pick_device(experiment.device)
        self.model = experiment.task.build(cache).to(self.device).eval()
        self.batch = experiment.workload.fixed_batch
        self.batches = experiment.space.options("parallelism", "batch") or (None,)
        self.anatomy: Anatomy = survey(self.model, self.example(1), tuple(TECHNIQUES))
        self.expanded = experiment.space.expand(self.anatomy)
        self.shapes: dict[int, Any] = {}

    def example(self, batch: int) -> Inputs:
        inputs = self.task.inputs(self.task.batches("validation")[0])
        found: Inputs = to_device(cut(inputs, batch)[0], self.device)
        return found

    def spaces(self, engine: str) -> SearchSpace:
        """The space without what this engine cannot really run."""

        def refusal(policy: Policy) -> str | None:
            parts = {**policy.effect(self.anatomy).parts, "runtime": {"engine": engine}}
            return Effect.of(parts).refusal(self.anatomy, self.device, self.batch)

        return self.expanded.restrict(refusal)[0]

    def attempt(self, effect: Effect, seed: int) -> dict[str, Any]:
        """Build and run one policy; return what came of it."""
        try:
            if reason := effect.refusal(self.anatomy, self.device, self.batch):
                raise RefusedError(reason)
            return {"outcome": "ran", **self._run(effect, seed)}
        except RefusedError as error:
            return {"outcome": "refused", "reason": str(error)}
        except AutogreenError as error:
            return {"outcome": "failed", "reason": str(error)}
        except Exception as error:  # noqa: BLE001 - it is the finding
            return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}

    def _run(self, effect: Effect, seed: int) -> dict[str, Any]:
        parts = effect.parts
        batch = self.batch or parts.get("parallelism", {}).get("batch") or 1
        example = self.example(batch)
        context = Context(
            task=self.task,  # type: ignore[arg-type]
            example=example,
            seed=seed,
            device=self.device,
            teacher=self.model,
            check=lambda: None,
            cache={},
        )
        recipe = Recipe(
            batch=batch, threads=parts.get("parallelism", {}).get("threads", 1), device=self.device, **parts["runtime"]
        )
        trained = compress(parts, copy.deepcopy(self.model), context)
        with tempfile.TemporaryDirectory() as folder:
            ENGINES[recipe.engine].save(lower(parts, trained, context), example, Path(folder))
            outputs = tensors(Program(Path(folder), recipe).run(*example))
        with torch.no_grad():
            wanted = tensors(plain(self.model(*example[0], **example[1])))
        if [tuple(leaf.shape) for leaf in outputs] != [tuple(leaf.shape) for leaf in wanted]:
            raise RuntimeError(f"shapes {[tuple(leaf.shape) for leaf in outputs]}")
        if not all(torch.isfinite(leaf).all() for leaf in outputs if leaf.is_floating_point()):
            raise RuntimeError("outputs are not finite")
        return {"shapes": [list(leaf.shape) for leaf in outputs]}


def draw(space: SearchSpace, anatomy: Anatomy, engine: str, seed: int) -> Iterator[Effect]:
    """Random policies that differ in what they do."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    seen = set()
    for _ in range(10_000):
        parts = space.fill(study.ask()).effect(anatomy).parts
        effect = Effect.of({**parts, "runtime": {**parts["runtime"], "engine": engine}})
        if effect.id not in seen:
            seen.add(effect.id)
            yield effect


def attempts(bench: Bench, count: int, compiled: float, seed: int) -> Iterator[dict[str, Any]]:
    """Every compiled policy, then the eager ones."""
    first = -(-int(count * compiled * 100) // 100)
    for engine, number in (("inductor", first), ("eager", count - first)):
        drawn = draw(bench.spaces(engine), bench.anatomy, engine, seed)
        for effect, _ in zip(drawn, range(number), strict=False):
            yield {"engine": engine, "effect": effect.parts, **bench.attempt(effect, seed)}


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=200, help="policies over all experiments")
    parser.add_argument("--compiled", type=float, default=0.25, help="share that is compiled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--cache", type=Path, default=Path("runs/.cache"))
    given = parser.parse_args(None if arguments is None else list(arguments))
    outcomes: Counter[str] = Counter()
    share = -(-given.count // len(given.experiments))
    for path in given.experiments:
        bench = Bench(load(path, tuple(given.overrides)), given.cache)
        for found in attempts(bench, share, given.compiled, given.seed):
            outcomes[found["outcome"]] += 1
            sys.stdout.write(json.dumps({"experiment": path.stem, **found}) + "\n")
            sys.stdout.flush()
    sys.stderr.write(f"{dict(outcomes)}\n")
    return 1 if outcomes["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
