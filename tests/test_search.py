"""The search on a toy task: resuming, faults, constraints, samplers, what is told to Optuna."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cloudpickle
import optuna
import pytest
import toys
from optuna.trial import TrialState

from autogreen import hardware
from autogreen.errors import AutogreenError, ConfigError, MeterError, RefusedError, StudyError
from autogreen.experiment import SAMPLERS
from autogreen.front import Front
from autogreen.plan import plan
from autogreen.samplers import make_sampler
from autogreen.store import Store
from autogreen.sweep import sweep
from autogreen.testing import scripted_evaluation

cloudpickle.register_pickle_by_value(toys)
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch", "ignore::UserWarning:torch_pruning"
)


def run(folder: Path, **changes):
    return list(sweep(toys.experiment(**changes), folder, folder.parent / ".cache"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "toy"
    steps = run(folder)
    return folder, steps


def test_a_sweep_measures_references_controls_trials_and_finalists(swept):
    folder, steps = swept
    results = Store.open(folder).results()
    assert [step.stage for step in steps][-1] == "done"
    assert len(results.trials) == 4 and {trial.state for trial in results.trials} == {"measured"}
    assert results.baseline.ratio is None and results.plain.measurement is not None
    assert "fine-tuned, uncompressed" in results.controls
    assert results.published and results.bill.energy_j > 0
    spent = results.bill.seconds
    assert spent["total"] >= spent["training"] + spent["measuring"]


def test_one_effect_is_evaluated_once(swept):
    folder, _ = swept
    results = Store.open(folder).results()
    ids = [trial.evaluation.effect.id for trial in results.trials]
    assert len(ids) == len(set(ids))


def test_the_front_is_strict_json(swept):
    folder, _ = swept
    told = Front.of(Store.open(folder).results()).to_json()
    assert json.loads(json.dumps(told, allow_nan=False))["front"]
    assert told["baseline"]["energy_per_item_j"]["tier"] == "estimated"


def test_a_finished_study_goes_on_without_doing_anything_again(swept):
    folder, _ = swept
    before = Store.open(folder).results()
    run(folder)
    after = Store.open(folder).results()
    assert after.trials == before.trials and after.published == before.published


def test_another_boundary_is_another_study(swept, monkeypatch):
    """The same tier and settings, but other devices inside the number."""
    folder, _ = swept
    from autogreen import workbench

    class Elsewhere(type(workbench.choose("cpu"))):
        boundary = "another set of devices"

    monkeypatch.setattr(workbench, "choose", lambda device, name, **settings: Elsewhere())
    with pytest.raises(StudyError, match=r"boundary of the energy was 'CPU.*, is 'another set of devices'.*--fresh"):
        run(folder)


def test_every_measurement_states_its_place_above_the_floor(swept):
    folder, _ = swept
    results = Store.open(folder).results()
    measured = [results.baseline, results.plain, *(trial.evaluation for trial in results.trials)]
    for found in measured:
        assert found.times_above_floor > 1 and found.work.flops.keys() == {"float32"} and found.work.io_bytes > 0
    assert all(found.times_above_floor > 1 for found in results.published.values())
    linear, first, second = 2 * 64 * 576 * 4, 2 * 64 * 36 * 9 * 16 / 4, 2 * 64 * 36 * 9 * 16 * 16 / 4
    assert results.baseline.work.flops["float32"] == linear + first + second


def test_a_measurement_below_the_floor_is_refused(tmp_path, monkeypatch):
    """Unit costs a million times too high: what is measured lies below them."""
    made = toys.known_floor
    monkeypatch.setattr(toys, "known_floor", lambda cache: made(cache, pj=1e9))
    with pytest.raises(MeterError, match=r"measured .* J a call, but its .* cost at least .* J here.*--floor"):
        run(tmp_path / "toy")


def test_a_machine_too_busy_for_unit_costs_searches_without_a_floor(tmp_path, monkeypatch):
    def busy(device, meter):
        raise MeterError("unit costs cannot be measured beside other programs")

    monkeypatch.setattr(toys, "known_floor", lambda cache: None)
    monkeypatch.setattr("autogreen.floor.measure_costs", busy)
    steps = run(tmp_path / "toy", budget={"trials": 1}, finalists=0)
    assert sum("held against no floor: unit costs cannot be measured beside" in step.note for step in steps) == 2
    results = Store.open(tmp_path / "toy").results()
    assert results.baseline.times_above_floor is None and results.baseline.work is not None


def test_unit_costs_are_measured_once_and_billed(tmp_path, monkeypatch):
    from autogreen import floor

    calls = []

    def measured(device, meter):
        calls.append(meter)
        meter.start()
        time.sleep(0.2)
        meter.stop()
        toys_floor(tmp_path / "elsewhere")
        return floor.kept(hardware.describe(device), meter, tmp_path / "elsewhere")

    toys_floor = toys.known_floor
    monkeypatch.setattr(toys, "known_floor", lambda cache: None)
    monkeypatch.setattr(floor, "measure_costs", measured)
    for name in ("one", "two"):
        run(tmp_path / name, name=name, budget={"trials": 1}, finalists=0)
    assert len(calls) == 1
    bills = [Store.open(tmp_path / name).results().bill for name in ("one", "two")]
    assert bills[0].seconds["measuring"] > 0.2 and bills[0].energy_j > 0
    assert Store.open(tmp_path / "two").results().baseline.times_above_floor > 1


@pytest.mark.parametrize(
    ("tier", "foreign_cores", "idle_w"), [("measured", 0.0, 20.0), ("measured", 200.0, None), ("estimated", 0.0, None)]
)
def test_power_at_rest_is_read_once_where_it_can_be_seen(tmp_path, monkeypatch, tier, foreign_cores, idle_w):
    from autogreen import workbench
    from autogreen.testing import ScriptedMeter

    rests = []

    def rest(meter, *, seconds, synchronize):
        meter.start()
        time.sleep(0.01)
        rests.append(meter.stop())
        return rests[-1]

    monkeypatch.setattr("autogreen.measure.rest", rest)
    monkeypatch.setattr(
        workbench,
        "choose",
        lambda *args, **settings: ScriptedMeter(watts=20.0, tier=tier, foreign_cores=foreign_cores),
    )
    run(tmp_path / "toy", budget={"trials": 1}, finalists=0)
    found = Store.open(tmp_path / "toy").results().baseline.measurement
    assert found.idle_w == (None if idle_w is None else pytest.approx(idle_w))
    if idle_w is not None:  # 20 W at work as at rest: nothing is left
        assert len(rests) == 1 and found.net_energy_per_item_j.mean == pytest.approx(0, abs=1e-3 * found.power_w)


def test_the_meter_is_built_once(tmp_path, monkeypatch):
    from autogreen import workbench

    built, choose = [], workbench.choose
    monkeypatch.setattr(workbench, "choose", lambda *args, **settings: built.append(args) or choose(*args, **settings))
    run(tmp_path / "toy", budget={"trials": 2})
    assert len(built) == 1


def test_a_study_goes_on_with_the_intensity_that_its_experiment_states_now(swept):
    folder, _ = swept
    before = Store.open(folder).results()
    assert before.carbon is None
    run(folder, carbon={"g_per_kwh": 380, "source": "x, 2025"})
    after = Store.open(folder).results()
    assert after.carbon.g_per_kwh == 380 and after.trials == before.trials
    run(folder)
    assert Store.open(folder).results().carbon is None


@pytest.mark.parametrize("strategy", ["direct", "guided"])
def test_the_front_of_an_earlier_study_is_tried_first_and_its_numbers_are_not_read(swept, strategy):
    swept, _ = swept
    earlier = Store.open(swept).results()
    wanted = [dict(point.trial.params) for point in Front.of(earlier).finalists(12)]
    folder = swept.parent / f"warm-{strategy}"
    experiment = toys.experiment(warm_start=swept.name, strategy=strategy, seed=5, budget={"trials": len(wanted)})
    notes = [step.note for step in sweep(experiment, folder, swept.parent / ".cache")]
    assert any("are tried first" in note for note in notes)
    found = Store.open(folder).results()
    assert [dict(trial.params) for trial in found.trials] == wanted
    assert not {trial.evaluation.spent_j for trial in found.trials} & {t.evaluation.spent_j for t in earlier.measured}


def test_finalists_are_trained_from_other_seeds_and_only_once(tmp_path):
    run(tmp_path / "toy", seeds=3, finalists=1)
    store = Store.open(tmp_path / "toy")
    trained = {key: found for key, found in store.get("seeds").items() if found}
    assert trained.keys() <= store.results().published.keys()  # one that fell behind may have made room for another
    for found in trained.values():
        assert set(found) == {"1", "2"}
        assert {data["key"].rpartition("-")[2] for data in found.values()} == {"s1", "s2"}
    members = {point.evaluation.key: point for point in Front.of(store.results()).members}
    assert trained
    for key in trained.keys() & members.keys():
        assert len(members[key].seeds) == 2 and members[key].test_loss_over_seeds is not None
    spent = store.bill.energy_j
    assert not any("from seed" in step.note for step in run(tmp_path / "toy", seeds=3, finalists=1))
    assert any("from seed 3" in step.note for step in run(tmp_path / "toy", seeds=4, finalists=1))
    assert store.bill.energy_j > spent


@pytest.mark.parametrize(("name", "told"), [("nowhere", "no study 'nowhere'"), ("self", "this very study")])
def test_a_warm_start_from_nothing_is_refused_before_anything_is_trained(tmp_path, name, told):
    with pytest.raises(AutogreenError, match=told):
        next(sweep(toys.experiment(warm_start=name), tmp_path / "self", tmp_path / ".cache"))
    assert not (tmp_path / ".cache").exists()


def test_more_budget_goes_on(tmp_path):
    run(tmp_path / "toy", budget={"trials": 1})
    run(tmp_path / "toy", budget={"trials": 3})
    assert len(Store.open(tmp_path / "toy").results().trials) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"workload": {"kind": "single"}}, "workload"),
        ({"space": {"runtime": {"engine": "eager"}}}, "space"),
        ({"meter": {"name": "estimate", "watts_per_core": 5.0}}, "meter"),
    ],
)
def test_a_changed_study_is_refused_by_name(swept, change, told):
    folder, _ = swept
    with pytest.raises(StudyError, match=rf"{told} was.*--fresh"):
        run(folder, **change)


def test_a_runtime_that_fails_is_told_and_another_is_the_best(tmp_path, monkeypatch):
    def fails(folder, recipe):
        raise RuntimeError("no graph holds this model")

    monkeypatch.setattr("autogreen.engines.inductor.Inductor.load", staticmethod(fails))
    steps = run(tmp_path / "toy", budget={"trials": 1})
    told = [step.note for step in steps if "does not run the model" in step.note]
    assert told and all("inductor" in note and "no graph holds this model" in note for note in told)
    store = Store.open(tmp_path / "toy")
    assert store.results().baseline.effect.engine == "eager"
    (where,) = (where for reason, where in store.get("facts")["refused"].items() if "no graph holds" in reason)
    assert len(where) == len(told) and all("engine inductor" in runtime for runtime in where)


def test_a_study_whose_policies_meant_something_else_is_refused(swept, tmp_path):
    shutil.copytree(swept[0], tmp_path / "toy")
    store = Store.open(tmp_path / "toy")
    fingerprint = store.get("fingerprint")
    assert fingerprint.pop("effects") == "format 2"
    store.study.set_user_attr("fingerprint", fingerprint)
    with pytest.raises(StudyError, match=r"'toy' are told in format 1; this autogreen reads 2.*--fresh"):
        Store.open(tmp_path / "toy").results()
    with pytest.raises(StudyError, match=r"format 1.*--fresh"):
        run(tmp_path / "toy")


def test_a_killed_sweep_resumes_with_nothing_lost_or_twice(tmp_path):
    """kill -9 on the coordinator in mid-sweep, and the same command again."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(toys.__file__).parent)!r})
import cloudpickle, toys; cloudpickle.register_pickle_by_value(toys)
from pathlib import Path
from autogreen.sweep import sweep
for step in sweep(toys.experiment(executor="local"), Path({str(tmp_path / "toy")!r}), Path({str(tmp_path)!r})):
    print(step.stage, step.trials, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("searching 2"):
            time.sleep(0.3)  # in the middle of the third trial
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    store = Store.open(tmp_path / "toy")
    before = [trial for trial in store.results().trials if trial.state == "measured"]
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "done 4" in again.stdout
    after = Store.open(tmp_path / "toy").results().trials
    assert [trial.evaluation for trial in after[: len(before)]] == [trial.evaluation for trial in before]
    assert len(after) == 4 and len({trial.evaluation.key for trial in after}) == 4


def test_a_resumed_sweep_proposes_what_an_uninterrupted_one_would(tmp_path):
    """Same seed, same recorded evaluations: the same proposals, whatever happened in between."""

    def proposals(sessions):
        study = optuna.create_study(directions=["maximize", "minimize"])
        for trials in sessions:
            for _ in range(trials):
                number = len(study.get_trials(deepcopy=False))
                study.sampler = make_sampler("tpe", 7, number, 30)
                trial = study.ask()
                x = trial.suggest_float("x", 0, 1)
                study.tell(trial, [x, (x - 0.3) ** 2])
        return [trial.params["x"] for trial in study.trials]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert proposals([20]) == proposals([5, 8, 7])
    assert len(set(proposals([20]))) == 20


@pytest.mark.parametrize("name", SAMPLERS)
def test_gated_and_failed_trials_teach_every_sampler(name):
    """All proposals stay possible after trials of every kind, and the same seed gives the same ones."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def first_after():
        study = optuna.create_study(directions=["maximize", "minimize"])
        for number in range(14):
            study.sampler = make_sampler(name, 0, number, 40)
            trial = study.ask()
            x = trial.suggest_int("x", 0, 9)
            if number % 5 == 4:
                study.tell(trial, state=TrialState.FAIL)
                continue
            trial.set_constraint("max_loss", 0.1 if x < 5 else -0.1)
            study.tell(trial, [x / 10, 1.0 if x < 5 else 1 - x / 20])
        return [trial.params["x"] for trial in study.trials]

    assert first_after() == first_after()


@pytest.mark.parametrize(("strategy", "sampler"), [("direct", "nsgaii"), ("guided", "tpe")])
def test_latency_is_an_objective_where_it_is_asked_for(tmp_path, strategy, sampler):
    settings = {"strategy": strategy, "sampler": sampler, "objectives": ["quality", "energy", "latency"]}
    folder, cache = tmp_path / "toy", tmp_path / ".cache"
    list(sweep(toys.experiment(**settings), folder, cache))
    store = Store.open(folder)
    assert len(store.study.directions) == 3
    results = store.results()
    for trial in results.measured:
        told = store.study.trials[trial.number].values
        assert told[2] == trial.evaluation.measurement.judged_latency_s.mean > 0
    found = Front.of(results)
    assert found.hypervolume >= 0 and all(len(point.axes) == 3 for point in (*found.members, *found.references))
    list(sweep(toys.experiment(**settings, finalists=0), folder, cache))
    with pytest.raises(StudyError, match="objectives was 'quality, energy, latency', is 'quality, energy'"):
        list(sweep(toys.experiment(**{**settings, "objectives": ["quality", "energy"]}), folder, cache))


def test_an_objective_may_be_added_until_something_was_told(tmp_path, monkeypatch):
    from autogreen.jobs import Jobs

    def cut_off(self, call, arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Jobs, "call", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "toy")
    list(sweep(toys.experiment(objectives=["quality", "energy", "latency"]), tmp_path / "toy", tmp_path / ".cache"))
    trials = Store.open(tmp_path / "toy").study.trials
    assert trials and all(len(trial.values or (0, 0, 0)) == 3 for trial in trials)
    assert all(trial.state.name == "COMPLETE" for trial in trials)


def test_a_study_in_a_folder_of_another_name_is_told(tmp_path):
    Store.create(tmp_path / "toy")
    (tmp_path / "toy").rename(tmp_path / "other")
    for opened in (Store.open, Store.create):
        with pytest.raises(StudyError, match="is called 'toy': give the folder that name again"):
            opened(tmp_path / "other")


def test_hopeless_trials_are_gated_and_named_when_all_are(tmp_path):
    space = {
        "pruning": [{"target": "*", "ratio": {"choice": [0.9, 0.95]}, "round_to": 1}],
        "runtime": {"engine": "eager"},
    }
    with pytest.raises(
        StudyError, match=r"none of 2 trials meets the constraints; loosen max_loss \(the nearest missed"
    ):
        run(tmp_path / "toy", space=space, constraints={"max_loss": 0.0}, budget={"trials": 2})
    results = Store.open(tmp_path / "toy").results()
    assert {trial.state for trial in results.trials} == {"gated"}
    assert all(trial.evaluation.measurement is None for trial in results.trials)


@pytest.mark.parametrize(("fault", "told"), [("nan", "NaN or infinite"), ("raise", "the score function is broken")])
def test_a_fault_in_one_policy_costs_one_trial(tmp_path, fault, told):
    run(tmp_path / "toy", fault=fault)
    trials = Store.open(tmp_path / "toy").results().trials
    failed = [trial for trial in trials if trial.state == "failed"]
    assert failed and all(told in trial.reason for trial in failed)
    assert any(trial.state == "measured" for trial in trials)


@pytest.mark.parametrize(("fault", "told"), [("kill", "SIGKILL"), ("memory", "can't allocate memory")])
def test_a_dying_worker_costs_one_trial(tmp_path, fault, told):
    run(tmp_path / "toy", fault=fault, executor="local", finalists=0)
    trials = Store.open(tmp_path / "toy").results().trials
    failed = [trial for trial in trials if trial.state == "failed"]
    assert failed and all(told in trial.reason for trial in failed)
    assert any(trial.state == "measured" for trial in trials)


def test_a_full_disk_stops_the_study_and_loses_nothing(tmp_path):
    with pytest.raises(StudyError, match="the disk is full"):
        run(tmp_path / "toy", fault="disk")
    assert not [t for t in Store.open(tmp_path / "toy").study.trials if t.state == TrialState.RUNNING]
    with pytest.raises(StudyError, match="task was"):
        run(tmp_path / "toy")  # a task without the fault is another task


def test_a_disk_that_really_fills_up_and_is_cleared(tmp_path, tiny_disk):
    """Filled under a running worker; once there is room the same command goes on, with nothing lost."""
    disk = tiny_disk("4m")
    steps = sweep(toys.experiment(executor="local"), disk / "toy", tmp_path / ".cache")
    with pytest.raises(StudyError, match=r"disk is full|cannot be written.*full"):
        for step in steps:
            if step.stage == "searching" and step.trials == 2:
                with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                    while filler.write(b"x" * 4096):
                        pass
    (disk / "filler").unlink()
    before = [trial.evaluation for trial in Store.open(disk / "toy").results().trials if trial.evaluation]
    assert len(before) >= 2
    run(disk / "toy", executor="local")
    after = [trial.evaluation for trial in Store.open(disk / "toy").results().trials]
    assert len(after) == 4 and after[: len(before)] == before


def test_a_space_whose_every_policy_is_refused(tmp_path):
    space = {"quantization": [{"each": "*", "scheme": {"choice": ["w8a8_static"]}}], "runtime": {"engine": "eager"}}
    with pytest.raises(RefusedError, match=r"every option.*refused|cannot be done"):
        run(tmp_path / "toy", space=space)


def test_sections_that_never_go_together_end_a_search_with_the_reason(tmp_path):
    space = {"pruning": [{"target": "0", "ratio": 0.5}], "distillation": {"epochs": 1, "rounds": 3}}
    with pytest.raises(StudyError, match=r"all 1 proposals were refused. Why: distillation: 3 rounds of pruning"):
        run(tmp_path / "toy", space=space)


def test_what_no_other_section_can_give_is_refused_before_anything_is_trained(tmp_path):
    space = {"quantization": [{"target": "6", "scheme": "w8a16", "qat": True}], "runtime": {"engine": "eager"}}
    with pytest.raises(RefusedError, match=r"qat for 6, but nothing trains in this policy"):
        run(tmp_path / "toy", space=space)
    assert Store.open(tmp_path / "toy").get("references") is None


def test_a_target_that_matches_nothing_names_what_there_is(tmp_path):
    space = {"pruning": [{"target": "encoder.*", "ratio": 0.5}], "runtime": {"engine": "eager"}}
    with pytest.raises(RefusedError, match=r"'encoder\.\*' matches nothing.*Treatable: 0, 3"):
        run(tmp_path / "toy", space=space)


def test_two_coordinators_on_one_study(tmp_path):
    store = Store.create(tmp_path / "toy")
    with store.lock(), pytest.raises(StudyError, match=rf"another process \(pid {os.getpid()}\)"):
        run(tmp_path / "toy")


@pytest.mark.parametrize("damage", [b"not a database at all", b"SQLite format 3\x00" + b"\xff" * 4000])
def test_a_corrupted_study_is_named(tmp_path, damage):
    Store.create(tmp_path / "toy")
    (tmp_path / "toy" / "study.db").write_bytes(damage)
    with pytest.raises(StudyError, match="is damaged"):
        Store.open(tmp_path / "toy")


def test_an_unknown_study_names_those_there_are(tmp_path):
    Store.create(tmp_path / "digits")
    with pytest.raises(StudyError, match=r"no study 'digit'.*There are: digits"):
        Store.open(tmp_path / "digit")


def test_budgets_end_a_search(tmp_path):
    with pytest.raises(StudyError, match=r"the budget was spent before the first trial: \d+ s"):
        run(tmp_path / "seconds", name="seconds", budget={"seconds": 0.5, "trials": None}, finalists=0)
    assert Store.open(tmp_path / "seconds").results().trials == ()
    with pytest.raises(StudyError, match="before the first trial"):
        run(tmp_path / "joules", name="joules", budget={"energy_j": 0.001, "trials": None}, finalists=0)
    assert Store.open(tmp_path / "joules").results().trials == ()


def test_artifacts_of_dominated_policies_are_evicted(swept):
    folder, _ = swept
    store = Store.open(folder)
    front = Front.of(store.results())
    kept = {path.name for path in (folder / "artifacts").iterdir()}
    assert {point.evaluation.key for point in front.members} <= kept
    assert front.baseline.evaluation.key in kept


def test_the_cap_on_artifacts_never_takes_what_policies_are_compared_with(tmp_path, monkeypatch):
    """And it grows with them: the artifacts of a large model are large."""
    store = Store.create(tmp_path / "toy")
    for name, size in {"baseline": 400, "plain": 400, "large": 1500, "middle": 900, "small": 600, "beaten": 1}.items():
        (store.folder / "artifacts" / name).mkdir()
        (store.folder / "artifacts" / name / "model.pt2").write_bytes(b"x" * size)
    monkeypatch.setattr("autogreen.store.KEEP_BYTES", 1000)
    store.keep_only({"baseline", "plain"}, {"large", "middle", "small"})
    assert {path.name for path in (store.folder / "artifacts").iterdir()} == {"baseline", "plain", "middle", "small"}


@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_search_for_the_best_runtime_goes_on_where_it_was_killed(tmp_path, monkeypatch, before):
    """Nothing is measured twice, and the artifact of the best is there at the end, whenever it was measured."""
    from autogreen.jobs import Jobs
    from autogreen.measurement import Interval

    evaluate, asked = Jobs.evaluate, []
    ratios = [1.0, 0.5, 0.8, 0.7]

    def measure(self, request, most=99):
        if len(asked) == most:
            raise KeyboardInterrupt
        asked.append(request.key)
        found = evaluate(self, request)
        ratio = dict(zip(asked, ratios, strict=False)).get(request.key, 1.0)
        same = Interval(mean=ratio, low=ratio, high=ratio)
        return replace(found, ratio=same) if found.ratio else found

    space = {"parallelism": {"threads": {"choice": [1, 2]}}, "runtime": {"engine": "eager"}}
    monkeypatch.setattr("autogreen.experiment.Experiment.refuse_untellable", lambda self, tier: None)
    monkeypatch.setattr(Jobs, "evaluate", lambda self, request: measure(self, request, before))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "toy", space=space)
    monkeypatch.setattr(Jobs, "evaluate", measure)
    run(tmp_path / "toy", space=space, budget={"trials": 1})
    assert len(asked) == len(set(asked)) >= 4
    best = Store.open(tmp_path / "toy").results().baseline.key
    assert best == asked[1] and (tmp_path / "toy" / "artifacts" / best / "recipe.json").exists()


def test_a_runtime_that_is_far_from_the_best_at_one_batch_is_not_tried_at_others():
    from autogreen.policy import Effect
    from autogreen.references import _is_far

    def run_so(engine: str, batch: int) -> Effect:
        return Effect.of({"runtime": {"engine": engine}, "parallelism": {"threads": 1, "batch": batch}})

    def found(engine: str, ratio: float | None, batch: int = 1):
        return replace(scripted_evaluation(0.0, ratio), effect=run_so(engine, batch))

    measured = [found("eager", None), found("inductor", 0.4), found("aot", 0.6), found("inductor", 0.1, batch=8)]
    asked = {engine: _is_far(run_so(engine, 8), measured) for engine in ("eager", "inductor", "aot", "onnxruntime")}
    assert asked == {"eager": True, "inductor": False, "aot": False, "onnxruntime": False}, (
        "of the last nothing is known"
    )
    assert not _is_far(run_so("eager", 1), measured), "at the first batch all are"


def test_a_dry_run_tells_holes_refusals_and_costs(tmp_path):
    told = plan(toys.experiment(), tmp_path / "dry", tmp_path)
    assert set(told["holes"]) >= {"distillation.alpha"} and told["seconds"] > 0 and told["energy_j"] > 0
    assert told["disk_bytes"] > 0 and told["tier"] == "estimated"


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ConfigError, match=r"unknown sampler 'tpee'. Did you mean 'tpe'"):
        toys.experiment(sampler="tpee")
