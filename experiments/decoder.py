"""What compression saves a decoder on an NVIDIA GPU: each policy in decode at batch 1, decode at batch 32 and prefill.

    python experiments/decoder.py OUT.jsonl [--task '{sources: [stdlib]}'] [--phases decode:1,decode:32,prefill:16]
                                            [--policies fp8,w4a16,...] [--train]
                                            [--runtimes inductor,inductor:max-autotune] [--cache FOLDER]
                                            [--budget SECONDS]

Every policy is trained once (pruned and distilled; kept under the cache) and then served in each phase: lowered, saved,
loaded with a CUDA graph in the compiler mode that is best for the uncompressed model (in `default` where that mode
hides its kernels), profiled for its kernels, scored on validation and test, and measured beside the uncompressed model
in that model's best runtime. One line of JSON a policy and phase; what a policy's kernels cannot run is a line with its
reason. Needs no MLflow and no study: one process, one GPU. `--train` trains and measures nothing: on a second GPU,
beforehand.

`--task` takes dimensions and `weights: random` too, for what a model of 7 B parameters costs (energy only: nothing is
trained or scored; TMPDIR should then be a folder in memory).
"""

import argparse
import copy
import hashlib
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from autogreen import hardware, quality
from autogreen.anatomy import Anatomy, survey
from autogreen.compress import compress, lower
from autogreen.engines import ENGINES, Program, Recipe
from autogreen.errors import AutogreenError, RefusedError
from autogreen.files import whole
from autogreen.measure import Protocol, lease, measure, measure_beside
from autogreen.meters import choose
from autogreen.policy import Effect
from autogreen.schema import build
from autogreen.space import SearchSpace
from autogreen.tasks import Inputs, cut, to_device
from autogreen.tasks.causal_lm import CausalLM
from autogreen.techniques import TECHNIQUES, Context
from autogreen.techniques.quantization.schemes import check_kernels
from autogreen.techniques.trace import layers as traced

DEVICE = "cuda:0"
PROTOCOL = Protocol(warmup_s=0.5, preheat_s=2.0, window_s=0.3, min_windows=12, max_windows=24, target_relative=0.02)
TUNING = {"epochs": 12, "alpha": 0.0, "learning_rate": 5e-4, "precision": "bf16"}
TEACHING = {**TUNING, "alpha": 0.5, "temperature": 2.0}
LONG = {**TEACHING, "epochs": 36, "learning_rate": 1e-3}  # some three passes over the text


def everywhere(scheme: str, **settings: Any) -> dict[str, Any]:
    """One scheme on all layers."""
    return {"quantization": [{"target": "*", "scheme": scheme, **settings}]}


def but_head(scheme: str) -> dict[str, Any]:
    return {"quantization": [{"target": "*lm_head", "scheme": "none"}, {"target": "*", "scheme": scheme}]}


def pruned(*rules: tuple[str, float], teaching: Mapping[str, Any] = TEACHING, **sections: Any) -> dict[str, Any]:
    """Rules of (structure, ratio), then distilled."""
    found = [{"target": "*", "structure": s, "ratio": r, "importance": "activation"} for s, r in rules]
    return {"pruning": found, "distillation": teaching, **sections}


ONE_LESS, TWO_LESS, NARROW = ("depth", 0.17), ("depth", 0.34), ("neuron", 0.25)  # of six layers
SCHEMES = ("fp8", "w8a8", "w8a8_static", "w4a16", "w8a16")
HEAD = [{"target": "*lm_head", "scheme": "fp8"}]
POLICIES: dict[str, dict[str, Any]] = {
    "tuned": {"distillation": TUNING},
    "tuned long": {"distillation": {**TUNING, "epochs": 36}},
    **{scheme: everywhere(scheme) for scheme in SCHEMES},
    "fp8 but head": but_head("fp8"),
    "w4a16 but head": but_head("w4a16"),
    "fp8 feed-forward": {"quantization": [{"target": "*mlp*", "scheme": "fp8"}]},
    "fp8 head": {"quantization": HEAD},
    "w4a16 learned": {"distillation": TEACHING, **everywhere("w4a16", qat=True)},
    "narrow": pruned(NARROW),
    "one less": pruned(ONE_LESS),
    "one less+fp8 head": pruned(ONE_LESS, quantization=HEAD),
    "one less+w4a16 learned": pruned(ONE_LESS, **everywhere("w4a16", qat=True)),
    "one less+narrow": pruned(ONE_LESS, NARROW),
    "one less+narrow+fp8": pruned(ONE_LESS, NARROW, **everywhere("fp8")),
    "two less": pruned(TWO_LESS, teaching=LONG),
    "two less+fp8": pruned(TWO_LESS, teaching=LONG, **everywhere("fp8")),
    "two less+fp8 head": pruned(TWO_LESS, teaching=LONG, quantization=HEAD),
    "two less+w4a16 but head": pruned(TWO_LESS, teaching=LONG, **but_head("w4a16")),
}


class Bench:
    """The uncompressed model, and what was trained from it."""

    def __init__(self, task: CausalLM, cache: Path) -> None:
        self.task, self.cache = task, cache
        began = time.monotonic()
        self.model = task.build(cache).to(DEVICE).eval()
        self.built_s = time.monotonic() - began
        self.meter = choose(DEVICE, "auto")
        self.trained: dict[str, Any] = {}
        self.kept: dict[str, Any] = {}

    def example(self, task: CausalLM, batch: int) -> Inputs:
        found: Inputs = to_device(cut(task.inputs(task.batches("validation")[0]), batch)[0], DEVICE)
        return found

    def context(self, task: CausalLM, batch: int) -> Context:
        return Context(
            task=task,
            example=self.example(task, batch),
            seed=0,
            device=DEVICE,
            teacher=self.model,
            check=lambda: None,
            cache=self.kept,
        )

    def train(self, parts: Mapping[str, Any]) -> Any:
        """The Hugging Face model after pruning and distillation."""
        learned = any("qat" in word for word in parts.get("quantization", {}).values())
        sections = ("pruning", "distillation", *(("quantization",) if learned else ()))
        changes = {section: parts[section] for section in sections if section in parts}
        if not changes:
            return copy.deepcopy(self.model.lm)
        told = json.dumps(changes, sort_keys=True)
        if told not in self.trained:
            path = self.cache / f"decoder-{hashlib.sha256(f'{self.task!r} {told}'.encode()).hexdigest()[:16]}.pt"
            if not path.exists():
                lm = compress(changes, copy.deepcopy(self.model), self.context(self.task, 1)).lm
                with whole(path) as partial:  # as it is: removed layers keep their places until it is compacted
                    torch.save(lm, partial)
            self.trained[told] = torch.load(path, map_location=DEVICE, weights_only=False)
        return copy.deepcopy(self.trained[told])

    def effect(self, settings: Mapping[str, Any], phase: CausalLM, batch: int) -> tuple[Effect, Anatomy]:
        """What a policy means to this model; of random weights, what is left of it without training."""
        if self.task.weights == "random":
            settings = {section: part for section, part in settings.items() if section != "distillation"}
        served = phase._served(copy.deepcopy(self.model.lm)).to(DEVICE)
        anatomy = survey(served, self.example(phase, batch), tuple(TECHNIQUES))
        return SearchSpace.from_json(dict(settings)).policy().effect(anatomy), anatomy


class Phase:
    """One way of calling the model, and the uncompressed model in its best runtime there."""

    def __init__(self, bench: Bench, phase: str, batch: int) -> None:
        self.bench, self.batch = bench, batch
        self.task = replace(bench.task, phase=phase)
        self.name = f"{phase}, batch {batch}"
        self.scores: dict[str, Any] = {}

    def serve(self, lm: Any, effect: Effect, folder: Path, runtime: Mapping[str, Any]) -> Program:
        """Lower, save, load, run."""
        served, context = self.task._served(lm).to(DEVICE), self.bench.context(self.task, self.batch)
        with torch.no_grad():
            served(*context.example[0])  # makes the caches
        model = lower({k: v for k, v in effect.parts.items() if k != "runtime"}, served, context)
        ENGINES[runtime["engine"]].save(model, context.example, folder)
        program = Program(folder, Recipe(batch=self.batch, threads=1, device=DEVICE, **runtime))
        shutil.rmtree(folder)  # what is loaded is in memory
        program.run(*context.example)
        return program

    def reference(self, runtimes: Sequence[tuple[str, str]], folder: Path) -> Iterator[dict[str, Any]]:
        """Measure the uncompressed model in each (engine, mode) with a CUDA graph; keep the best."""
        best, effect = None, Effect.of({"runtime": {}})
        for engine, mode in runtimes:
            runtime = {"engine": engine, "mode": mode, "cuda_graph": True}
            program = self.serve(copy.deepcopy(self.bench.model.lm), effect, folder / f"{engine}-{mode}", runtime)
            found = self.alone(program)
            yield {"policy": "uncompressed", "runtime": runtime, **found}
            if best is None or found["energy_per_item_j"]["mean"] < best:
                best, self.program, self.mode = found["energy_per_item_j"]["mean"], program, mode
            torch._dynamo.reset()
        for split in ("validation", "test") if self.bench.task.weights == "trained" else ():
            self.scores[split] = self.task.score(self.program, split)
            yield {"policy": "uncompressed", "split": split, "score": asdict(quality.mean(self.scores[split]))}

    def alone(self, program: Program) -> dict[str, Any]:
        example = self.bench.example(self.task, self.batch)
        with lease():
            found = measure(
                lambda: program.run(*example),
                items=self.task.items(example),
                meter=self.bench.meter,
                protocol=PROTOCOL,
                synchronize=hardware.synchronizer(DEVICE),
            )
        return {
            "energy_per_item_j": asdict(found.energy_per_item_j),
            "latency_s": asdict(found.latency_s),
            "tier": found.tier,
        }

    def candidate(self, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Everything about one policy in this phase."""
        example = self.bench.example(self.task, self.batch)
        effect, anatomy = self.bench.effect(settings, self.task, self.batch)
        if reason := effect.refusal(anatomy, DEVICE, self.batch):
            raise RefusedError(reason)
        lm = self.bench.train(effect.parts)
        with torch.no_grad():
            served = self.task._served(copy.deepcopy(lm)).to(DEVICE)
            served(*example[0])  # makes the caches
        layers, parameters = traced(served, example), sum(leaf.numel() for leaf in lm.parameters())
        del served
        for mode in dict.fromkeys((self.mode, "default")):
            runtime = {"engine": "inductor", "mode": mode, "cuda_graph": True}
            program = self.serve(lm, effect, folder / mode, runtime)
            ran = program.trace(example)
            try:
                by_layer = check_kernels(effect.parts.get("quantization", {}), layers, ran.products, DEVICE)
                break
            except RefusedError:
                if mode == "default":
                    raise
                torch._dynamo.reset()
        losses = {}
        for split, theirs in self.scores.items():
            losses[split] = asdict(quality.loss(theirs, self.task.score(program, split)))
        items = self.task.items(example)
        with lease():
            beside = measure_beside(
                lambda: program.run(*example),
                lambda: self.program.run(*example),
                items=items,
                reference_items=items,
                meter=self.bench.meter,
                protocol=PROTOCOL,
                synchronize=hardware.synchronizer(DEVICE),
            )
        return {
            "effect": effect.parts,
            "runtime": runtime,
            "ratio": asdict(beside.ratio),
            "loss": losses,
            "energy_per_item_j": asdict(beside.candidate.energy_per_item_j),
            "latency_s": asdict(beside.candidate.latency_s),
            "warnings": list(beside.candidate.warnings),
            "kernels": [asdict(kernel) for kernel in ran.kernels],
            "layers": by_layer,
            "parameters": parameters,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", default="{}", help="settings of causal_lm, YAML")
    parser.add_argument("--phases", default="decode:32,prefill:16,decode:1")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--runtimes", default="inductor,inductor:max-autotune,eager", help="of the uncompressed model")
    parser.add_argument("--train", action="store_true", help="train the policies, and measure none")
    parser.add_argument("--cache", type=Path, default=Path("runs/.cache"))
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds after which no new policy begins")
    given = parser.parse_args()
    names = [name for name in given.policies.split(",") if name]
    runtimes = [
        (engine, mode or "default") for engine, _, mode in (r.partition(":") for r in given.runtimes.split(","))
    ]
    began = time.monotonic()
    task = build(CausalLM, {"dtype": "bfloat16", **yaml.safe_load(given.task)}, "--task")
    bench = Bench(task, given.cache)
    config = bench.model.lm.config.to_dict()
    if given.train:
        for name in names:
            bench.train(bench.effect(POLICIES[name], bench.task, 1)[0].parts)
        return 0
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    with given.out.open("a") as out:

        def tell(line: Mapping[str, Any]) -> None:
            out.write(json.dumps({"seconds": round(time.monotonic() - began, 1), **line}) + "\n")
            out.flush()

        tell(
            {
                "task": repr(bench.task),
                "hardware": hardware.describe(DEVICE),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "config": {key: config.get(key) for key in (*sizes, "vocab_size")},
                "parameters": sum(parameter.numel() for parameter in bench.model.parameters()),
                "built_s": round(bench.built_s, 1),
                "protocol": asdict(PROTOCOL),
                "tier": bench.meter.tier,
                "boundary": bench.meter.boundary,
            }
        )
        for text in given.phases.split(","):
            phase = Phase(bench, *(lambda name, batch: (name, int(batch)))(*text.split(":")))
            with tempfile.TemporaryDirectory() as folder:
                for line in phase.reference(runtimes, Path(folder)):
                    tell({"phase": phase.name, **line})
                for number, name in enumerate(names):
                    if time.monotonic() - began > given.budget:
                        break
                    try:
                        found = phase.candidate(POLICIES[name], Path(folder, str(number)))
                        tell({"phase": phase.name, "policy": name, **found})
                    except AutogreenError as error:
                        tell({"phase": phase.name, "policy": name, "refused": str(error)})
                    except Exception as error:  # noqa: BLE001 - the others are still wanted
                        tell({"phase": phase.name, "policy": name, "failed": f"{type(error).__name__}: {error}"})
                        traceback.print_exc()
                    torch._dynamo.reset()
    return 0


if __name__ == "__main__":
    sys.exit(main())
