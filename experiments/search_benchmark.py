"""How fast strategies find a front that is known.

    python experiments/search_benchmark.py [experiments/search_benchmark.yaml] [--out OUT.jsonl] [--only NAME,...]
                                           [--problems NAME,...] [--seeds N]
    python experiments/search_benchmark.py --report OUT.jsonl

A problem is a `Simulator`, or a table that was measured (`recorded.py`).

One line of JSON a problem, strategy and seed: the true hypervolume of all policies tried so far over that of the true
front, at each mark, and seconds per proposal. `warm` is `direct` whose first trials are 20 points of the predicted
front: it has the same probes as `guided`. What is there is not run again. The report is medians and quartiles.

Published: after three quarters of the trials, the last quarter is spent on measuring again whose place is least certain
(`measured_again`); of the members that are then published, the share that some trial truly beats by more than the noise
of one measurement on both axes, and their true hypervolume over that of what an exact judge would publish.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from recorded import Recorded

from autogreen.evaluation import Evaluation
from autogreen.explore import explore
from autogreen.front import MEMBER
from autogreen.measurement import Interval
from autogreen.membership import probabilities
from autogreen.policy import Policy
from autogreen.strategies import Strategy
from autogreen.strategies.direct import Direct
from autogreen.strategies.guided import Guided, gains
from autogreen.strategies.knapsack import solve
from autogreen.testing import Simulator

WARM = 20
NEARLY = 0.99  # of a table's hypervolume; in how many trials is told as `nearly`


def made(kind: str, simulator: Simulator | Recorded, seed: int) -> Strategy:
    if kind == "guided":
        return Guided(simulator.space, simulator.forecast, seed=seed, max_loss=simulator.max_loss)
    direct = Direct(simulator.space)
    if kind == "warm":
        direct.given = [*predicted(simulator, WARM), *direct.given]
    return direct


def predicted(simulator: Simulator | Recorded, count: int) -> list[dict[str, Any]]:
    """Parameters of the points that cover most of the predicted front's hypervolume, one after the other."""
    chain, corner = simulator.forecast.chain, (simulator.max_loss, 0.0)
    picks = solve(chain)
    places = np.stack([chain.loss(picks), np.log(np.maximum(1.0 + chain.cost(picks), 1e-3))], axis=1)
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(gains(places, places[chosen], corner).argmax()))
    names = [choice.name for choice in simulator.forecast.choices]
    return [dict(zip(names, row, strict=True)) for row in picks[chosen].tolist()]  # ordinals, as the holes are ordered


def run(simulator: Simulator | Recorded, strategy: Mapping[str, str], marks: list[int], seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    tried, reached, placed, nearly = [], {}, [], None
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
        placed.append(trial.evaluation)
        share = simulator.share(tried) if len(tried) in marks or isinstance(simulator, Recorded) else 0.0
        if len(tried) in marks:
            reached[len(tried)] = round(share, 5)
        if share >= NEARLY:
            nearly = min(nearly or len(tried), len(tried))
    seconds = (time.perf_counter() - began) / len(tried)
    if unreached := [mark for mark in marks if mark > len(tried)]:  # proposals repeated themselves: the search is over
        reached |= dict.fromkeys(unreached, round(simulator.share(tried), 5))
    if isinstance(simulator, Recorded):
        return {"reached": reached, "seconds_per_trial": seconds, "nearly": nearly}
    whole = max(marks) * 3 // 4
    return {
        "reached": reached,
        "seconds_per_trial": seconds,
        "published": judged(
            simulator, tried[:whole], measured_again(simulator, tried[:whole], placed[:whole], whole // 3)
        ),
    }


@dataclass(frozen=True, kw_only=True)
class Place:
    """Of a policy, from so many measurements."""

    id: str
    loss: Interval
    ratio: Interval
    times: int

    @property
    def axes(self) -> tuple[Interval, ...]:
        return self.loss, self.ratio

    def with_one_more(self, found: Evaluation) -> "Place":
        assert found.loss is not None and found.ratio is not None
        mean, more = self.times / (self.times + 1), 1 / (self.times + 1)
        return Place(
            id=self.id,
            loss=pooled(self.loss, found.loss, mean, more),
            ratio=pooled(self.ratio, found.ratio, mean, more),
            times=self.times + 1,
        )


def pooled(one: Interval, other: Interval, weight: float, more: float) -> Interval:
    mean = weight * one.mean + more * other.mean
    half = (one.high - one.low) / 2 * weight**0.5
    return Interval(mean=mean, low=mean - half, high=mean + half)


def measured_again(simulator: Simulator, tried: list[Policy], placed: list[Evaluation], count: int) -> list[int]:
    """Numbers of the trials that are published after so many measurements more."""
    places = []
    for number, found in enumerate(placed):
        assert found.loss is not None and found.ratio is not None
        places.append(Place(id=str(number), loss=found.loss, ratio=found.ratio, times=1))
    feasible = [number for number, place in enumerate(places) if place.loss.low <= simulator.max_loss]
    for _ in range(count):
        likely = dict(zip(feasible, probabilities([places[number] for number in feasible]), strict=True))
        doubt = max(feasible, key=lambda number: likely[number] * (1 - likely[number]) / places[number].times)
        places[doubt] = places[doubt].with_one_more(simulator.evaluate(tried[doubt], repeat=places[doubt].times))
    likely = dict(zip(feasible, probabilities([places[number] for number in feasible]), strict=True))
    return [n for n in feasible if likely[n] >= MEMBER and places[n].loss.low <= simulator.max_loss]


def judged(simulator: Simulator, tried: list[Policy], members: list[int]) -> dict[str, float]:
    truth = simulator.places(tried)
    beaten = [bool((truth < truth[number] - np.array(simulator.noise)).all(1).any()) for number in members]
    share = simulator.share([tried[number] for number in members]) / simulator.share(tried)
    return {"members": len(members), "beaten": round(float(np.mean(beaten)), 4), "hypervolume": round(share, 5)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Medians (quartiles) by problem and strategy, as Markdown."""
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        marks = sorted({int(mark) for row in mine for mark in row["reached"]})
        table = "nearly" in mine[0]
        last = [f"to {NEARLY:.0%}"] if table else ["beaten", "published"]
        heads = ["seeds", *(f"{mark} trials" for mark in marks), *last, "s a trial"]
        yield f"\n| {problem} | {' | '.join(heads)} |"
        yield f"|---|{'--:|' * len(heads)}"
        for strategy in dict.fromkeys(row["strategy"] for row in mine):
            found = [row for row in mine if row["strategy"] == strategy]
            cells = [quartiles([row["reached"][str(mark)] for row in found], ".3f") for mark in marks]
            if table:
                cells.append(quartiles([row["nearly"] or np.inf for row in found], ".0f"))
            else:
                cells += [
                    quartiles([row["published"][key] for row in found], ".3f") for key in ("beaten", "hypervolume")
                ]
            seconds = np.median([row["seconds_per_trial"] for row in found])
            yield f"| {strategy} | {len(found)} | {' | '.join(cells)} | {seconds:.2f} |"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Medians and quartiles over trials, one panel a problem."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "autogreen", "font.size": 9}
    from matplotlib import pyplot

    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure, panels = pyplot.subplots(1, len(problems), figsize=(3.4 * len(problems), 3.2), squeeze=False, sharey=True)
    for panel, problem in zip(panels[0], problems, strict=True):
        mine = [row for row in rows if row["problem"] == problem]
        for strategy in dict.fromkeys(row["strategy"] for row in rows):
            found = [row for row in mine if row["strategy"] == strategy]
            marks = sorted({int(mark) for row in found for mark in row["reached"]})
            if not found:
                continue
            reached = [spread([row["reached"][str(mark)] for row in found]) for mark in marks]
            low, middle, high = np.array(reached).T
            panel.errorbar(marks, middle, [middle - low, high - middle], marker="o", ms=3, capsize=2, label=strategy)
        panel.set(title=problem, xlabel="trials", xscale="log")
        panel.set_xticks(marks, [str(mark) for mark in marks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("share of the true front's hypervolume")
    panels[0][-1].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def spread(values: list[float]) -> Any:
    """The lower quartile, median and upper one, each a value that occurred."""
    return np.quantile(values, [0.25, 0.5, 0.75], method="nearest")


def quartiles(values: list[float], form: str) -> str:
    low, middle, high = spread(values)
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, nargs="?", default=Path("experiments/search_benchmark.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/search_benchmark.jsonl"))
    parser.add_argument("--only", help="strategies")
    parser.add_argument("--problems")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--report", type=Path, help="print the table of a finished run")
    parser.add_argument("--figure", type=Path, help="with --report: draw it too, as SVG")
    given = parser.parse_args()
    if given.report:
        sys.stdout.write("\n".join(report(lines(given.report))) + "\n")
        if given.figure:
            draw(lines(given.report), given.figure)
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
                table = given.plan.parent / told["table"] if "table" in told else None
                searched = Simulator(seed=seed, **told["simulator"]) if table is None else Recorded(table)
                found = run(searched, plan["strategies"][strategy], told["marks"], seed)
                with given.out.open("a") as out:
                    out.write(json.dumps({"problem": problem, "strategy": strategy, "seed": seed, **found}) + "\n")
    sys.stdout.write("\n".join(report(lines(given.out))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
