"""One policy in every engine that carries it, each measured in its own runtime beside the same reference.

    python experiments/engines.py EXPERIMENT.yaml POLICY.yaml [--runs runs] [--seed 0]

The reference is the uncompressed model in the inductor engine. POLICY.yaml is a policy without a hole; its `runtime` is
replaced. Every engine gets the policy trained afresh from one seed, so what differs is the lowering and the runtime.
One line of JSON an engine: ratio of energy per item with its 95 % interval, seconds a call, quality, size, kernels; or
why it does not carry the policy.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autogreen.anatomy import Anatomy
from autogreen.engines import ENGINES
from autogreen.errors import AutogreenError
from autogreen.evaluate import Evaluator
from autogreen.evaluation import Request
from autogreen.experiment import load, pick_device
from autogreen.policy import Policy
from autogreen.schema import read_yaml
from autogreen.space import SearchSpace
from autogreen.workbench import Setup


def measured(experiment_path: Path, policy_path: Path, runs: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Each engine's answer."""
    experiment, settings = load(experiment_path), read_yaml(policy_path)
    device = pick_device(experiment.device)
    with tempfile.TemporaryDirectory() as study:
        for name in ("artifacts", "scores"):
            (Path(study) / name).mkdir()
        evaluator = Evaluator(
            Setup(
                task=experiment.task,
                workload=experiment.workload,
                protocol=experiment.protocol,
                device=device,
                folder=Path(study),
                cache=runs / ".cache",
                meter=experiment.meter,
            )
        )
        anatomy = Anatomy.from_json(evaluator.prepare()["anatomy"])
        parallelism = settings.get("parallelism", {"threads": 1})

        def effect(engine: str, sections: dict[str, Any]) -> Any:
            policy: Policy = SearchSpace.from_json(
                {**sections, "parallelism": parallelism, "runtime": {"engine": engine}}
            ).policy()
            return policy.effect(anatomy)

        reference = evaluator.evaluate(Request(effect=effect("inductor", {}), seed=seed))
        for compressed in (False, True):
            for engine in ENGINES:
                told = {"engine": engine, "policy": policy_path.stem if compressed else "uncompressed"}
                try:
                    asked = effect(engine, settings if compressed else {})
                    if reason := asked.refusal(anatomy, device, experiment.workload.fixed_batch):
                        yield {**told, "refused": reason}
                        continue
                    found = evaluator.evaluate(Request(effect=asked, seed=seed, reference=reference.key))
                except AutogreenError as error:
                    yield {**told, "refused": str(error)}
                    continue
                assert found.ratio is not None and found.measurement is not None, "it was measured"
                yield {
                    **told,
                    "ratio": asdict(found.ratio),
                    "tier": found.measurement.tier,
                    "latency_s": found.measurement.latency_s.mean,
                    "quality": found.quality.mean,
                    "size_bytes": found.size_bytes,
                    "compile_s": found.seconds.get("compiling"),
                    "kernels": [f"{kernel.calls} x {kernel.name} ({kernel.precision})" for kernel in found.kernels],
                }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for line in measured(asked.experiment, asked.policy, asked.runs, asked.seed):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
