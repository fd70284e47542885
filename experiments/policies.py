"""Random policies of the shipped experiments: each one is built, saved, loaded and run, or refused with a reason.

It goes the road of a search (a student is the task's own smaller network; what runs simulated is refused); a policy
that is refused before anything is built counts as one that was drawn.

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
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn

from autogreen.anatomy import Anatomy, survey
from autogreen.compress import compress, lower
from autogreen.engines import ENGINES, Program, Recipe, Runtime
from autogreen.errors import AutogreenError, RefusedError
from autogreen.experiment import Experiment, load, pick_device
from autogreen.policy import Effect, Policy
from autogreen.restriction import refusal_everywhere
from autogreen.space import SearchSpace
from autogreen.tasks import Inputs, Task, cut, plain, to_device
from autogreen.techniques import TECHNIQUES, Context
from autogreen.techniques.quantization.schemes import check_kernels
from autogreen.techniques.trace import layers as traced
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
        self.task, self.device, self.cache = Brief(experiment.task), pick_device(experiment.device), cache
        self.model = experiment.task.build(cache).to(self.device).eval()
        self.batch = experiment.workload.fixed_batch
        self.batches = experiment.space.options("parallelism", "batch") or (None,)
        self.anatomy: Anatomy = survey(self.model, self.example(1), tuple(TECHNIQUES))
        self.expanded = experiment.space.expand(self.anatomy)
        self.students: dict[float, nn.Module] = {}

    def example(self, batch: int) -> Inputs:
        inputs = self.task.inputs(self.task.batches("validation")[0])
        found: Inputs = to_device(cut(inputs, batch)[0], self.device)
        return found

    def spaces(self, engine: str) -> SearchSpace:
        """The space without what this engine cannot really run."""
        return self.expanded.restrict(
            lambda policy: refusal_everywhere(policy, (engine,), self.anatomy, self.device, self.batch)
        )[0]

    def start(self, student: float) -> nn.Module:
        """What is compressed: the model, or the task's own of that fraction of the width."""
        if student == 1:
            return self.model
        if student not in self.students:
            smaller = self.task.smaller(student, self.cache)
            if smaller is None:
                raise RefusedError("this task cannot tell what a smaller network is (Task.smaller returns None).")
            self.students[student] = smaller
        return self.students[student]

    def identity(self, policy: Policy) -> str:
        """What it does here; where it can do nothing, what it says."""
        try:
            return policy.effect(self.anatomy).text
        except RefusedError:
            return json.dumps(policy.to_json(), sort_keys=True)

    def attempt(self, policy: Policy, seed: int) -> dict[str, Any]:
        """Build and run one policy; return what came of it."""
        told: dict[str, Any] = {"policy": policy.to_json()}
        try:
            effect = policy.effect(self.anatomy)
            told["effect"] = effect.parts
            if reason := effect.refusal(self.anatomy, self.device, self.batch):
                raise RefusedError(reason)
            return {**told, "outcome": "ran", **self._run(effect, seed)}
        except RefusedError as error:
            return {**told, "outcome": "refused", "reason": str(error)}
        except AutogreenError as error:
            return {**told, "outcome": "failed", "reason": str(error)}
        except Exception as error:  # noqa: BLE001 - it is the finding
            return {**told, "outcome": "failed", "reason": f"{type(error).__name__}: {error}"}

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
        start = self.start(parts.get("distillation", {}).get("student", 1.0))
        trained = compress(parts, copy.deepcopy(start).to(self.device), context)
        with torch.no_grad():
            trained(*example[0], **example[1])  # what a model makes in its first call (caches)
        lowered, layers = parts.get("quantization", {}), traced(trained, example)
        with tempfile.TemporaryDirectory() as folder:
            ENGINES[recipe.engine].save(lower(parts, trained, context), example, Path(folder))
            program = Program(Path(folder), recipe)
        outputs = tensors(program.run(*example))
        check_kernels(lowered, layers, program.trace(example).products, self.device)
        with torch.no_grad():
            wanted = tensors(plain(self.model(*example[0], **example[1])))
        if [tuple(leaf.shape) for leaf in outputs] != [tuple(leaf.shape) for leaf in wanted]:
            raise RuntimeError(f"shapes {[tuple(leaf.shape) for leaf in outputs]}")
        if not all(torch.isfinite(leaf).all() for leaf in outputs if leaf.is_floating_point()):
            raise RuntimeError("outputs are not finite")
        return {"shapes": [list(leaf.shape) for leaf in outputs]}


def draw(space: SearchSpace, engine: str, seed: int) -> Iterator[Policy]:
    """Random policies that differ in what they say."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    seen = set()
    for _ in range(10_000):
        filled = space.fill(study.ask()).settings
        runtime = replace((filled.get("runtime") or (Runtime(),))[0], engine=engine)
        policy = Policy({**filled, "runtime": (runtime,)})
        if (text := json.dumps(policy.to_json(), sort_keys=True)) not in seen:
            seen.add(text)
            yield policy


def attempts(bench: Bench, count: int, compiled: float, seed: int) -> Iterator[dict[str, Any]]:
    """Every compiled policy, then the eager ones; of those with one effect the first."""
    first = -(-int(count * compiled * 100) // 100)
    for engine, number in (("inductor", first), ("eager", count - first)):
        seen: set[str] = set()
        for policy in draw(bench.spaces(engine), engine, seed):
            if len(seen) == number:
                break
            if (identity := bench.identity(policy)) not in seen:
                seen.add(identity)
                yield {"engine": engine, **bench.attempt(policy, seed)}


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
