"""A search under a server's load, end to end: the limit, the baseline that keeps to it, tables, bundle, comparison."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toys import QUICK, experiment

from autogreen import controls, references
from autogreen.anatomy import Anatomy
from autogreen.bundle.check import read
from autogreen.bundle.worker import check
from autogreen.bundle.write import export
from autogreen.compare_worker import contest
from autogreen.comparison import compare
from autogreen.entrant import Entrant, find
from autogreen.errors import RefusedError, StudyError
from autogreen.evaluation import Evaluation
from autogreen.front import Front
from autogreen.measurement import Protocol
from autogreen.page import hover
from autogreen.policy import Effect
from autogreen.space import SearchSpace
from autogreen.store import Store
from autogreen.sweep import sweep
from autogreen.tracking.mirror import children
from autogreen.wording import latency, words

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]

# In 20 ms 5 requests come, so a batch of 16 is next to never filled: its oldest waits for 20 ms, and is late.
LIMIT_S = 0.0205
SERVER = {"kind": "server", "rate_per_s": 200.0, "p95_s": LIMIT_S}
SPACE = {
    "pruning": [{"each": "*", "ratio": {"choice": [0.0, 0.5]}}],
    "parallelism": {"batch": 16, "batch_delay_s": {"choice": [0.0, 0.02]}},
    "runtime": {"engine": "eager"},
}


def eager_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled for the baseline."""
    inner = controls.runtimes

    def runtimes(space: SearchSpace, anatomy: Anatomy, device: str) -> Iterator[Effect]:
        return (effect for effect in inner(space, anatomy, device) if effect.engine == "eager")

    monkeypatch.setattr(references, "runtimes", runtimes)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, list[str]]]:
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        eager_alone(patch)
        asked = experiment("served", space=SPACE, workload=SERVER, budget={"trials": 4}, finalists=0)
        notes = [step.note for step in sweep(asked, folder / "served", folder / ".cache")]
    yield Store.open(folder / "served"), notes


def limits(store: Store) -> dict[Any, list[bool]]:
    """Whether trials were feasible, by how long their batches waited."""
    found: dict[Any, list[bool]] = {}
    for trial in store.results().trials:
        found.setdefault(trial.params["parallelism.batch_delay_s"], []).append(trial.feasible)
    return found


# --- the search -------------------------------------------------------------------------------------------------------


def test_whoever_misses_the_limit_is_infeasible_by_how_much(swept: tuple[Store, list[str]]) -> None:
    store, _ = swept
    found = limits(store)
    assert set(found) == {0.0, 0.02} and not any(found[0.02])  # of the others a busy machine may be late with some
    for trial in store.trials():
        missed = trial.user_attrs["constraints"]["p95_s"]
        evaluation = Evaluation.from_json(trial.user_attrs["evaluation"])
        assert evaluation.measurement is not None and evaluation.measurement.served is not None
        assert missed == pytest.approx(evaluation.measurement.served.p95_s.mean - LIMIT_S)
        assert trial.user_attrs["feasible"] == (missed <= 0)
        assert trial.constraints["p95_s"] == missed  # what the sampler is taught


def test_the_baseline_keeps_to_the_limit_and_who_does_not_is_named(swept: tuple[Store, list[str]]) -> None:
    store, notes = swept
    baseline = store.results().baseline
    assert "batch_delay_s" not in baseline.effect.parts["parallelism"]
    (note,) = [note for note in notes if "it is no baseline" in note]
    assert "batch_delay_s 0.02" in note and f"misses workload.p95_s ({LIMIT_S} s): 0.0" in note


def test_the_policy_says_how_long_its_batches_wait_and_the_least_is_not_written(
    swept: tuple[Store, list[str]],
) -> None:
    parts = [trial.evaluation.effect.parts["parallelism"] for trial in swept[0].results().measured if trial.evaluation]
    assert {"threads": 1, "batch": 16} in parts and {"threads": 1, "batch": 16, "batch_delay_s": 0.02} in parts
    assert words({"parallelism": parts[0] | {"batch_delay_s": 0.02}}).endswith("batch 16, filled for 20.0 ms at most")
    alike = SearchSpace.from_json({"parallelism": {"batch": 1, "batch_delay_s": 0.02}}).policy()
    assert "batch_delay_s" not in alike.effect(Anatomy(model="", parameters=0, units={})).parts["parallelism"]


def test_every_view_tells_p50_and_p95(swept: tuple[Store, list[str]]) -> None:
    results = swept[0].results()
    front = Front.of(results)
    knee = front.pick("knee")
    assert knee.measurement.served is not None
    told = latency(knee.measurement)
    assert told.startswith("p50 ") and ", p95 " in told
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(front.table())
    assert told in console.export_text()
    assert any(line.startswith(f"{told} per request") for line in hover(front, knee))
    member = next(one for one in front.to_json()["front"] if one["id"] == knee.id)
    assert member["p95_s"]["mean"] == pytest.approx(knee.measurement.served.p95_s.mean)
    metrics = {run.name: run.metrics for run in children(front)}
    baseline = results.baseline.measurement
    assert baseline is not None and baseline.served is not None
    assert metrics["baseline"]["p95_s_high"] == pytest.approx(baseline.served.p95_s.high)


def test_a_member_that_is_late_when_it_is_measured_again_is_told(swept: tuple[Store, list[str]]) -> None:
    results = swept[0].results()
    assert not [said for said in Front.of(results).verdicts() if "misses the limit" in said]
    strict = Front.of(replace(results, workload={**results.workload, "p95_s": 1e-6}))
    said = [said for said in strict.verdicts() if "misses the limit of 1.00 µs" in said]
    assert any("The reference 'baseline'" in one for one in said) and any("The member" in one for one in said)


def test_no_runtime_that_keeps_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager_alone(monkeypatch)
    space = {"parallelism": {"batch": {"choice": [1, 8]}}, "runtime": {"engine": "eager"}}
    asked = experiment("late", space=space, workload={"kind": "server", "rate_per_s": 500.0, "p95_s": 1e-5})
    with pytest.raises(StudyError, match="none of 2 runtimes at 500 requests a second") as caught:
        list(sweep(asked, tmp_path / "late", tmp_path / ".cache"))
    assert "engine eager, batch" in str(caught.value) and "no rate is low enough" in str(caught.value)
    assert "Raise workload.p95_s" in str(caught.value)


# --- what ships -------------------------------------------------------------------------------------------------------


def test_a_bundle_states_the_load_and_is_verified_under_it(swept: tuple[Store, list[str]], tmp_path: Path) -> None:
    store, _ = swept
    results = store.results()
    knee = Front.of(results).pick("knee")
    folder = export(
        knee.evaluation,
        results=results,
        artifacts=store.folder / "artifacts",
        golden=store.golden(),
        to=tmp_path / "bundle",
    )
    manifest = read(folder)
    assert manifest.workload == SERVER and manifest.recipe.batch == 16 and manifest.energy is not None
    assert manifest.energy.served == knee.measurement.served and manifest.energy.items_per_call == 1
    assert "milliseconds within which 95 of 100 were" in (folder / "MODEL_CARD.md").read_text()
    found = check(folder, Protocol(**QUICK), None)
    assert found.ratio is not None and found.notes == ()

    entrant = find(str(folder), store.folder.parent)
    assert Entrant.from_json(json.loads(json.dumps(entrant.to_json()))) == entrant
    beside = contest(entrant, find("served:baseline", store.folder.parent), Protocol(**QUICK))["beside"]
    assert beside["candidate"]["served"]["rate_per_s"] == 200 and beside["reference"]["served"]["fill"] >= 1


def test_comparing_what_was_searched_under_different_loads(swept: tuple[Store, list[str]], tmp_path: Path) -> None:
    runs = swept[0].folder.parent
    with pytest.raises(RefusedError, match="a recording holds windows and no latencies"):
        compare("served:baseline", "served:plain", runs=runs, record=tmp_path / "record.json")
    facts = swept[0].get("facts")
    swept[0].put("facts", {**facts, "workload": {**SERVER, "rate_per_s": 100.0}})
    other = find("served:plain", runs)
    swept[0].put("facts", facts)
    from autogreen.comparison import _check_comparable

    with pytest.raises(RefusedError, match="both need the same rate and limit"):
        _check_comparable(find("served:baseline", runs), other)
