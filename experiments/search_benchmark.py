"""How fast strategies find a front that is known.

    python experiments/search_benchmark.py [experiments/search_benchmark.yaml] [--out OUT.jsonl] [--only NAME,...]
                                           [--problems NAME,...] [--seeds N]
    python experiments/search_benchmark.py --report OUT.jsonl

One line of JSON a problem, strategy and seed: the true hypervolume of all policies tried so far over that of the true
front, at each mark, and seconds per proposal. `warm` is `direct` whose first trials are 20 points of the predicted
front: it has the same probes as `guided`. What is there is not run again. The report is medians and quartiles.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml

from autogreen.explore import explore
from autogreen.strategies import Strategy
from autogreen.strategies.direct import Direct
from autogreen.strategies.guided import Guided, gains
from autogreen.strategies.knapsack import solve
from autogreen.testing import Simulator

WARM = 20


def made(kind: str, simulator: Simulator, seed: int) -> Strategy:
    if kind == "guided":
        return Guided(simulator.space, simulator.forecast, seed=seed, max_loss=simulator.max_loss)
    direct = Direct(simulator.space)
    if kind == "warm":
        direct.given = [*predicted(simulator, WARM), *direct.given]
    return direct


def predicted(simulator: Simulator, count: int) -> list[dict[str, Any]]:
    """Parameters of the points that cover most of the predicted front's hypervolume, one after the other."""
    chain, corner = simulator.forecast.chain, (simulator.max_loss, 0.0)
    picks = solve(chain)
    places = np.stack([chain.loss(picks), np.log(1.0 + chain.cost(picks))], axis=1)
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(gains(places, places[chosen], corner).argmax()))
    names = [choice.name for choice in simulator.forecast.choices]
    return [dict(zip(names, row, strict=True)) for row in picks[chosen].tolist()]  # ordinals, as the holes are ordered


def run(settings: Mapping[str, Any], strategy: Mapping[str, str], marks: list[int], seed: int) -> dict[str, Any]:
    simulator = Simulator(seed=seed, **settings)
    began = time.perf_counter()
    tried, reached = [], {}
    found = explore(
        simulator.evaluate,
        made(strategy["strategy"], simulator, seed),
        trials=max(marks),
        max_loss=simulator.max_loss,
        sampler=strategy["sampler"],
        seed=seed,
    )
    for trial in found:
        tried.append(trial.policy)
        if len(tried) in marks:
            reached[len(tried)] = round(simulator.share(tried), 5)
    return {"reached": reached, "seconds_per_trial": (time.perf_counter() - began) / max(marks)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Medians (quartiles) by problem and strategy, as Markdown."""
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        marks = sorted({int(mark) for row in mine for mark in row["reached"]})
        yield f"\n| {problem} | seeds | {' | '.join(f'{mark} trials' for mark in marks)} | s a trial |"
        yield f"|---|--:|{'--:|' * (len(marks) + 1)}"
        for strategy in dict.fromkeys(row["strategy"] for row in mine):
            found = [row for row in mine if row["strategy"] == strategy]
            cells = []
            for mark in marks:
                low, middle, high = np.quantile([row["reached"][str(mark)] for row in found], [0.25, 0.5, 0.75])
                cells.append(f"{middle:.3f} ({low:.3f}–{high:.3f})")
            seconds = np.median([row["seconds_per_trial"] for row in found])
            yield f"| {strategy} | {len(found)} | {' | '.join(cells)} | {seconds:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, nargs="?", default=Path("experiments/search_benchmark.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/search_benchmark.jsonl"))
    parser.add_argument("--only", help="strategies")
    parser.add_argument("--problems")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--report", type=Path, help="print the table of a finished run")
    given = parser.parse_args()
    if given.report:
        sys.stdout.write("\n".join(report(lines(given.report))) + "\n")
        return 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    plan = yaml.safe_load(given.plan.read_text())
    strategies = given.only.split(",") if given.only else list(plan["strategies"])
    problems = given.problems.split(";") if given.problems else list(plan["problems"])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["problem"], row["strategy"], row["seed"]) for row in lines(given.out)}
    for seed in range(given.seeds or plan["seeds"]):
        for problem in problems:
            for strategy in strategies:
                if (problem, strategy, seed) in done:
                    continue
                told = plan["problems"][problem]
                found = run(told["simulator"], plan["strategies"][strategy], told["marks"], seed)
                with given.out.open("a") as out:
                    out.write(json.dumps({"problem": problem, "strategy": strategy, "seed": seed, **found}) + "\n")
    sys.stdout.write("\n".join(report(lines(given.out))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
