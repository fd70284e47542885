"""What a study looks like in MLflow: runs as plain values, within MLflow's limits. Knows no server.

experiment   task · workload · hardware; the saved view of each sweep (`view`)
└── run      the sweep: dataset, hypervolume and joules over trials, the front as page, picture and table
    ├── run  baseline, plain use, each control
    └── run  each finished trial: knobs, figures with intervals; policy.json, evaluation.json (readings and kernels)

Every run carries `autogreen.id` (the study), `autogreen.key` (its place in it) and `autogreen.digest` (of all that it
should hold, written last). What is measured also carries its colour in the page's own pictures, and its place in the
order in which MLflow draws.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autogreen import hardware
from autogreen.carbon import J_PER_WH, Carbon
from autogreen.evaluation import Evaluation
from autogreen.front import Front, progress
from autogreen.page import html
from autogreen.picture import Picture, heights, series
from autogreen.point import Point

PARAM_CHARACTERS, TAG_CHARACTERS, KEY_CHARACTERS = 6000, 8000, 250  # MLflow cuts what is longer without a word
UNCUT = "uncut.json"  # what these limits changed, as it was
# MLflow draws the first runs only, so the front comes first; by the mark in the page's own pictures
ORDER = {"circle": "1 proven", "circle-open": "2 front", "diamond": "3 baseline", "square": "4 plain use"}
ORDER |= {"triangle-up": "5 control", "x-thin-open": "6 trial"}


def identity(front: Front) -> str:
    """Hexadecimal; the same for every copy and every resumption of one study, another for a study begun afresh."""
    first = json.dumps([front.results.study, front.results.plain.to_json()], sort_keys=True, default=str)
    return hashlib.sha256(first.encode()).hexdigest()[:12]


def experiment_name(front: Front) -> str:
    """Task, workload and hardware: what must agree before sweeps may be compared."""
    results = front.results
    return experiment_title(results.task, results.workload, results.hardware)


def experiment_title(task: str, workload: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """The same from its parts, which a bundle's manifest states too."""
    told = " ".join(str(value) for value in workload.values() if value is not None)
    where = hardware.name(dict(machine)) if machine else "unknown hardware"
    return cut(f"{task} · {told} · {where}", 400)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run should hold. key: unique within the sweep. files: artifact by name."""

    key: str
    name: str
    status: str = "FINISHED"
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        held = [self.status, self.params, self.metrics, self.tags]
        found = hashlib.sha256(json.dumps(held, sort_keys=True, default=str).encode())
        for name, text in self.files.items():
            found.update(f"\0{name}\0{text}".encode())
        return found.hexdigest()[:16]

    def within_limits(self) -> "Run":
        """The same with keys and values that MLflow takes whole; what had to change is kept in an artifact."""
        names = names_of(self.params)
        params = {names[key]: cut(value, PARAM_CHARACTERS) for key, value in self.params.items()}
        tags = {key: cut(value, TAG_CHARACTERS) for key, value in self.tags.items()}
        changed = {
            key: value
            for key, value in self.params.items()
            if names[key] != spelt(key) or params[names[key]] != str(value)
        }
        changed |= {key: value for key, value in self.tags.items() if tags[key] != str(value)}
        files = {**self.files, UNCUT: _json(changed)} if changed else self.files
        return replace(self, params=params, tags=tags, files=files)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the sweep searched on, as MLflow's dataset input; nothing of it is uploaded. digest: of what identifies
    model, data and code."""

    name: str
    digest: str


def data(front: Front) -> Data | None:
    """None for studies from before the digest was kept."""
    results = front.results
    return Data(name=cut(results.task, 500), digest=results.data) if results.data else None


def children(front: Front) -> Iterator[Run]:
    """Every child run within MLflow's limits: references, controls, finished trials."""
    drawn = {
        f"trial {point.trial.number}" if point.trial else point.name: kind
        for kind in series(front)
        for point in kind.points
    }
    for run in _children(front):
        if (kind := drawn.get(run.name)) is not None:
            seen = {"autogreen.order": ORDER[kind.symbol], "mlflow.runColor": kind.colour}
            run = replace(run, tags={**run.tags, **seen})
        yield run.within_limits()


def _children(front: Front) -> Iterator[Run]:
    results = front.results
    placed = {point.evaluation.key: point for point in (*front.members, *front.others, *front.references)}
    on_front = {point.trial.number for point in front.members if point.trial}
    others = {"baseline": results.baseline, "plain use": results.plain, **results.controls}
    for name, evaluation in others.items():
        role = "reference" if name in ("baseline", "plain use") else "control"
        told = {"state": evaluation.status, "role": role, "on_front": "false"}
        told |= {"tier": results.tier, "boundary": results.boundary}
        yield Run(
            key=f"{role} {name}",
            name=name,
            metrics=_metrics(evaluation, placed.get(evaluation.key), results.carbon),
            tags=told | {"policy_id": evaluation.effect.id},
            files=_files(evaluation, evaluation.effect.parts),
        )
    for trial in results.trials:
        if trial.state == "waiting":
            continue
        found = trial.evaluation
        point = placed.get(found.key) if found else None
        tags: dict[str, Any] = {
            "state": trial.state,
            "role": "trial",
            "feasible": str(trial.feasible).lower(),
            "on_front": str(trial.number in on_front).lower(),
            "tier": results.tier,
            "boundary": results.boundary,
            "autogreen.trial": trial.number,
        }
        yield Run(
            key=f"trial {trial.number}",
            name=f"trial {trial.number}",
            status="FAILED" if trial.state == "failed" else "FINISHED",
            params=trial.params,
            metrics=_metrics(found, point, results.carbon) if found else {},
            tags=tags
            | ({"policy_id": found.effect.id, "does": point.words if point else ""} if found else {})
            | ({"reason": trial.reason} if trial.reason else {}),
            files=_files(found, trial.policy),
        )


def parent(front: Front) -> Run:
    """The sweep's own run within MLflow's limits, without its curves."""
    results, carbon = front.results, front.results.carbon
    told = front.to_json()
    run = Run(
        key="sweep",
        name=results.study,
        metrics=_finite(
            {
                "trials": len(results.trials),
                "measured": len(results.measured),
                "stopped": len(results.stopped),
                "saved_j": results.saved_j,
                "front": len(front.members),
                "steps": len(front.steps),
                "search_energy_j": results.bill.energy_j,
                "search_energy_wh": results.bill.energy_j / J_PER_WH,
                "search_emission_g": None if carbon is None else carbon.emission_g(results.bill.energy_j),
                "search_seconds": told["search"]["seconds"],
                "break_even_items": front.break_even_items,
            }
        ),
        tags={
            "role": "sweep",
            "tier": results.tier,
            "boundary": results.boundary,
            "item": results.item,
            **({} if carbon is None else {"carbon": carbon.words}),
            "mlflow.note.content": " ".join(front.verdicts()),
            "mlflow.loggedArtifacts": json.dumps([{"path": "front_table.json", "type": "table"}]),
        },
        files={
            "front.html": html(front),
            **{f"{name}.svg": Picture.of(front, height).svg() for name, height in heights(front).items()},
            "front.json": json.dumps(told, indent=1),
            "front_table.json": json.dumps(_table(front)),
            "experiment.json": _json(results.experiment),
        },
    )
    return run.within_limits()


def curves(front: Front) -> dict[str, dict[int, float]]:
    """Hypervolume and joules spent, by trial number, up to the first that is still evaluated; joules add up."""
    spent_j, found = 0.0, {"hypervolume": dict[int, float](), "energy_spent_j": dict[int, float]()}
    evaluations = {trial.number: trial.evaluation for trial in front.results.trials}
    first = min((trial.number for trial in front.results.trials if trial.state == "waiting"), default=math.inf)
    for number, area in progress(front.results):
        if number > first:  # what it will add would change the steps after it
            break
        evaluation = evaluations[number]
        spent_j += evaluation.spent_j if evaluation and math.isfinite(evaluation.spent_j) else 0.0
        found["hypervolume"][number], found["energy_spent_j"][number] = area, spent_j
    return found


# --- what MLflow accepts ----------------------------------------------------------------------------------------------


def _metrics(evaluation: Evaluation, point: Point | None, carbon: Carbon | None) -> dict[str, float]:
    found: dict[str, Any] = {
        **_ends("quality", evaluation.quality),
        **_ends("quality_loss", point.loss if point else evaluation.loss),
        "size_bytes": evaluation.size_bytes,
        "memory_bytes": evaluation.memory_bytes,
        "communication": evaluation.communication,
        "spent_j": evaluation.spent_j,
    }
    if point:
        found |= _ends("energy_per_item_j", point.energy_per_item_j) | _ends("energy_ratio", point.ratio)
        found |= _ends("net_energy_per_item_j", point.net_energy_per_item_j) | point.figures(carbon)
        found |= _ends("latency_s", point.measurement.latency_s)
        if (served := point.measurement.served) is not None:
            found |= _ends("p50_s", served.p50_s) | _ends("p95_s", served.p95_s)
        if point.published:
            found |= _ends("test_quality", point.published.test) | _ends("test_loss", point.published.test_loss)
    return _finite(found)


def _ends(name: str, interval: Any) -> dict[str, float]:
    if interval is None:
        return {}
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _finite(found: Mapping[str, Any]) -> dict[str, float]:
    """MLflow would store infinity as 1.8e308."""
    return {key: float(value) for key, value in found.items() if value is not None and math.isfinite(value)}


def _files(evaluation: Evaluation | None, policy: Mapping[str, Any]) -> dict[str, str]:
    files = {"policy.json": _json(policy)}
    return files if evaluation is None else {**files, "evaluation.json": _json(evaluation.to_json())}


def _table(front: Front) -> dict[str, Any]:
    """In the form of MLflow's `log_table`, which would append to an earlier table instead of replacing it."""
    columns = ["id", "role", "quality", "quality_loss", "loss_low", "loss_high", "energy_per_item_j", "energy_low_j"]
    columns += ["energy_high_j", "tier", "boundary", "energy_ratio", "times_above_floor", "latency_s", "size_bytes"]
    served = ("p50_s", "p95_s") if front.baseline.measurement.served else ()
    columns += [*served, "proven_distinct", "does"]
    steps = {point.id for point in front.steps}
    roles = [*((p, "front") for p in front.members), *((p, "reference or control") for p in front.references)]
    rows = []
    for point, role in roles:
        loss, energy = point.loss, point.energy_per_item_j
        size, distinct = point.evaluation.size_bytes, role == "front" and point.id in steps
        figures = (point.quality.mean, loss.mean, loss.low, loss.high, energy.mean, energy.low, energy.high)
        own = point.measurement
        measured = (own.tier, own.boundary, point.ratio.mean, point.times_above_floor, own.latency_s.mean, size)
        late = (getattr(own.served, name).mean for name in served)
        rows.append([point.name, role, *figures, *measured, *late, distinct, point.words])
    return {"columns": columns, "data": rows}


def names_of(keys: Iterable[str]) -> dict[str, str]:
    """Each key's legal and distinct name: letters, digits and ``_-./: ``; what had to be changed carries a digest."""
    names, taken = dict[str, str](), set[str]()
    for key in dict.fromkeys(keys):
        legal = re.sub(r"[^\w\-./: ]", "_", spelt(key), flags=re.ASCII)
        if os.path.normpath(legal) != legal or legal.startswith(("/", "..")):  # MLflow takes a name for a path
            legal = legal.replace("/", "_").replace("..", "_")
        if legal != spelt(key) or len(legal) > KEY_CHARACTERS or legal in taken:
            legal = f"{legal[: KEY_CHARACTERS - 10]}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        names[key] = legal
        taken.add(legal)
    return names


def spelt(key: str) -> str:
    """A knob without the brackets that MLflow refuses: ``pruning[conv1].ratio`` is ``pruning.ratio:conv1``, which still
    tells section and layer where a page shows the first and last letters alone."""
    return re.sub(r"^(\w+)\[(.+)\]\.(\w+)$", r"\1.\3:\2", key)


def cut(value: Any, most: int) -> str:
    """Shorten, and say so; an artifact holds it whole."""
    text = str(value)
    said = f"… ({len(text)} characters, cut)"
    return text if len(text) <= most else text[: most - len(said)] + said


def _json(value: Any) -> str:
    return json.dumps(value, default=str)  # MLflow indents it when it is shown
