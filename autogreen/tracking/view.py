"""The saved Pareto view: what MLflow's own page shows behind the link that a sweep ends with. Knows no server.

MLflow keeps a shared view as a tag of the experiment, `mlflow.sharedViewState.KEY`; its form is undocumented and read
from MLflow 3.17's own page, so the browser tests hold it against the installed version.

Runs are ordered by the tag `autogreen.order`, because the page draws the first 100 only: the front comes first.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from autogreen.front import Front
from autogreen.tracking.connection import Server

DRAWN = 100  # runs that MLflow's page loads at first, and draws
KNOBS = 6  # axes that a reader can follow
ENERGY, QUALITY = "energy_per_item_j", "quality"
LATENCY, SERVED = "latency_s", "p95_s"


def key(study: str) -> str:
    """Of a study's view, by its identity."""
    return f"autogreen-{study}"


def tag(study: str) -> str:
    """Of the experiment, which holds the view."""
    return f"mlflow.sharedViewState.{key(study)}"


def link(server: Server, experiment_id: str, study: str) -> str:
    """The page that shows the view; without its last part MLflow opens an empty overview for language models."""
    shown = f"viewStateShareKey={key(study)}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"{server.page}/#/experiments/{experiment_id}/runs?{shown}"


def state(front: Front, study: str, created_ms: int, names: Mapping[str, str]) -> str:
    """The tag's value. names: of each knob, as it is called in MLflow."""
    told = f"Pareto front: {front.results.study}"
    if (count := len(front.members)) > DRAWN:
        told += f" (the first {DRAWN} of {count} members)"
    shown = [names[knob] for knob in telling(front)]
    energy = {"key": ENERGY, "type": "METRIC"}
    metrics = [QUALITY, ENERGY]
    charts = [_chart("SCATTER", "front", xaxis=energy, yaxis={"key": QUALITY, "type": "METRIC"})]
    if front.results.by_latency:
        metrics.append(SERVED if front.results.workload.get("kind") == "server" else LATENCY)
        charts.append(_chart("SCATTER", "latency", xaxis=energy, yaxis={"key": metrics[-1], "type": "METRIC"}))
    charts.append(_chart("PARALLEL", "knobs", selectedParams=shown, selectedMetrics=metrics, showAllRuns=True))
    section = {"uuid": "pareto", "name": told, "display": True, "columns": 1, "cardHeight": 330}
    page = {
        "searchFilter": f"tags.`autogreen.id` = '{study}' AND metrics.{ENERGY} > 0",
        "orderByKey": "tags.`autogreen.order`",
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [{**section, "isReordered": True, "deleted": False, "isGenerated": False}],
        "compareRunCharts": charts,
        "isAccordionReordered": True,
    }
    return json.dumps({"name": told, "createdAt": created_ms, "state": json.dumps(page)})


def _chart(kind: str, uuid: str, **settings: Any) -> dict[str, Any]:
    common = {"metricSectionId": "pareto", "runsCountToCompare": DRAWN, "deleted": False, "isGenerated": False}
    return {"type": kind, "uuid": uuid, **common, **settings}


def telling(front: Front) -> list[str]:
    """The knobs that vary among what was measured; where they are many, those that energy depends on most."""
    measured = [trial for trial in front.results.measured if trial.evaluation and trial.evaluation.ratio]
    energies = [trial.evaluation.ratio.mean for trial in measured if trial.evaluation and trial.evaluation.ratio]
    columns: dict[str, list[tuple[Any, float]]] = defaultdict(list)
    for trial, energy in zip(measured, energies, strict=True):
        for knob, value in trial.params.items():
            columns[knob].append((value, energy))
    varying = [knob for knob, column in columns.items() if len({str(value) for value, _ in column}) > 1]
    if len(varying) <= KNOBS:
        return varying
    return sorted(varying, key=lambda knob: -_explained(columns[knob]))[:KNOBS]


def _explained(column: Sequence[tuple[Any, float]]) -> float:
    """Share of the energy's variance between groups of equal answers, corrected for the number of groups (Kelley's
    epsilon squared): a knob with many values would explain anything. Numbers are grouped into quarters."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for group, (_, energy) in zip(_groups([value for value, _ in column]), column, strict=True):
        groups[group].append(energy)
    free = len(column) - len(groups)
    if free <= 0:
        return 0.0
    mean = fmean(energy for _, energy in column)
    total = sum((energy - mean) ** 2 for _, energy in column)
    within = sum(_spread(group) for group in groups.values())
    return 1.0 - within / free * (len(column) - 1) / total if total > 0 else 0.0


def _groups(values: Sequence[Any]) -> Iterable[Any]:
    if len(set(map(str, values))) <= 8 or not all(isinstance(value, int | float) for value in values):
        return [str(value) for value in values]
    ordered = sorted(values)
    quarters = [ordered[len(ordered) * part // 4] for part in (1, 2, 3)]
    return [sum(value >= edge for edge in quarters) for value in values]


def _spread(values: Sequence[float]) -> float:
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)
