"""Carbon: grams from joules by hand; strict settings; told everywhere once configured, nowhere otherwise."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autogreen.carbon import Carbon
from autogreen.errors import ConfigError
from autogreen.experiment import from_json
from autogreen.front import Front
from autogreen.page import hover, html
from autogreen.results import Results
from autogreen.testing import scripted_results
from autogreen.tracking.mirror import children, parent

STATED = {"g_per_kwh": 360, "source": "a grid operator's yearly mean, 2025"}


def results(**experiment: Any) -> Results:
    """Baseline 1 mJ per item; one member at half of it; batches of 64 in 10 ms; at rest 50 mW. Bill: 900 J."""
    found = scripted_results([(0.0, 0.5)])
    (trial,) = found.trials
    assert trial.evaluation is not None and trial.evaluation.measurement is not None
    measurement = replace(trial.evaluation.measurement, idle_w=0.05)
    evaluation = replace(trial.evaluation, measurement=measurement, times_above_floor=12.0)
    return replace(
        found,
        trials=(replace(trial, evaluation=evaluation),),
        experiment={**found.experiment, **experiment},
    )


def test_grams_by_hand() -> None:
    carbon = Carbon(g_per_kwh=360.0, source="x")
    assert carbon.emission_g(3.6e6) == 360
    assert carbon.emission_g(0.5e-3) == pytest.approx(0.5e-7)


@pytest.mark.parametrize(
    ("carbon", "told"),
    [
        ({"g_per_kwh": 380}, "source"),
        ({"source": "x"}, "g_per_kwh"),
        ({"g_per_kwh": 0, "source": "x"}, "above 0 and at most 2000"),
        ({"g_per_kwh": -1, "source": "x"}, "above 0 and at most 2000"),
        ({"g_per_kwh": 2000.1, "source": "x"}, "above 0 and at most 2000"),
        ({"g_per_kwh": float("nan"), "source": "x"}, "g_per_kwh"),
        ({"g_per_kwh": True, "source": "x"}, "g_per_kwh"),
        ({"g_per_kwh": "380", "source": "x"}, "g_per_kwh"),
        ({"g_per_kwh": 380, "source": "  "}, "source must say"),
        ({"g_per_kwh": 380, "source": "a\nb"}, "in one line"),
        ({"g_per_kwh": 380, "source": 2025}, "source"),
        ({"g_per_kwh": 380, "source": "x", "country": "DE"}, "unknown key 'country'"),
        (380, "must be a mapping"),
    ],
)
def test_what_is_not_an_intensity_with_a_source_is_refused(carbon: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        from_json({"task": "digits", "space": {"runtime": {}}, "carbon": carbon}, name="x", folder=Path())
    assert "x.carbon" in str(caught.value)


def test_an_experiment_carries_it_and_has_none_of_its_own() -> None:
    data: dict[str, Any] = {"task": "digits", "space": {"runtime": {}}}
    assert from_json(data, name="x", folder=Path()).to_json()["carbon"] is None
    found = from_json({**data, "carbon": STATED}, name="x", folder=Path())
    assert found.carbon == Carbon(g_per_kwh=360, source=STATED["source"])  # type: ignore[arg-type]
    assert Carbon.of(json.loads(json.dumps(found.to_json()))) == found.carbon


def everything(front: Front) -> str:
    """All that people and programs are told."""
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(front.table())
    runs = [asdict(run) for run in (parent(front), *children(front))]
    for run in runs:
        run["files"].pop("front.html", None)
    page = html(front).partition("<body>")[2]
    own = page[page.rindex("Plotly.newPlot") :]
    return console.export_text() + json.dumps(front.to_json()) + json.dumps(runs) + own


def test_without_an_intensity_no_gram_is_told() -> None:
    said = everything(Front.of(results()))
    assert "emission" not in said and "CO2" not in said and "energy_delay_js" in said


def test_with_one_it_stands_with_its_source_on_every_report() -> None:
    front = Front.of(results(carbon=STATED))
    told = front.to_json()
    assert told["carbon"] == STATED
    assert told["front"][0]["emission_per_item_g"] == pytest.approx(0.5e-3 / 3.6e6 * 360)
    assert told["search"]["emission_g"] == pytest.approx(0.09) and told["search"]["energy_wh"] == pytest.approx(0.25)
    said = everything(front)
    assert "90.0 mgCO2e at 360 gCO2e/kWh (a grid operator's yearly mean, 2025)" in said
    assert "= 50.0 ngCO2e per sample" in "\n".join(hover(front, front.members[0]))
    (trial,) = (run for run in children(front) if run.key == "trial 0")
    assert trial.metrics["emission_per_item_g"] == pytest.approx(5e-8)
    assert parent(front).metrics["search_emission_g"] == pytest.approx(0.09)
    assert parent(front).tags["carbon"] == "360 gCO2e/kWh (a grid operator's yearly mean, 2025)"


def test_other_forms_of_the_same_energy_by_hand() -> None:
    """0.5 mJ an item, 64 items in 10 ms: 32 mJ a call. At rest 50 mW x 10 ms / 64 = 7.8125 uJ an item."""
    front = Front.of(results())
    (told,) = front.to_json()["front"]
    net = told["net_energy_per_item_j"]
    assert (net["mean"], net["low"], net["high"]) == pytest.approx((492.1875e-6, 482.1875e-6, 502.1875e-6))
    assert told["energy_delay_js"] == pytest.approx(0.032 * 0.01) and told["idle_w"] == 0.05
    assert told["energy_per_item_wh"] == pytest.approx(0.5e-3 / 3600) and told["times_above_floor"] == 12
    assert (told["tier"], told["boundary"], net["tier"]) == ("estimated", "scripted", "estimated")
    (trial,) = (run for run in children(front) if run.key == "trial 0")
    for name in ("energy_per_item_wh", "energy_delay_js", "idle_w", "times_above_floor"):
        assert trial.metrics[name] == pytest.approx(told[name])
    assert trial.metrics["net_energy_per_item_j_low"] == pytest.approx(net["low"])
    assert trial.tags["boundary"] == "scripted"
    lines = "\n".join(hover(front, front.members[0]))
    assert "139 nWh per sample; 492 µJ (482–502) of it above the device at rest" in lines
    assert "energy-delay product 320 µJ·s per call" in lines and "12× the least energy" in lines
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(front.table())
    assert "12×" in console.export_text()


def test_a_source_cannot_inject() -> None:
    front = Front.of(results(carbon={**STATED, "source": "<img src=x onerror=alert(1)>"}))
    assert "<img" not in html(front).partition("<body>")[2].rpartition("Plotly.newPlot")[2]
