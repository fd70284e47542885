"""compare: what it says, how often it is wrong, and what it refuses."""

import json
import math
import random
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys import experiment

import autogreen
from autogreen import api, cli, comparison
from autogreen.compare_worker import contest
from autogreen.comparison import Comparison, compare, patient
from autogreen.entrant import Entrant, find
from autogreen.errors import AutogreenError, EvaluationError, RefusedError, StudyError
from autogreen.front import Front
from autogreen.measure import Protocol, measure_beside
from autogreen.measurement import Beside, Interval
from autogreen.store import Store
from autogreen.testing import ScriptedClock, ScriptedMeter

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]

GPU = Protocol(warmup_s=0.0, window_s=0.5, min_windows=4, max_windows=10).final()
QUICK = {"warmup_s": 0.0, "window_s": 0.02, "min_windows": 2, "max_windows": 2, "foreign_limit": 99.0}
SHORT = [text for key, value in QUICK.items() for text in ("--protocol", f"{key}={value}")]


def scripted(ratio: float, cv: float, seed: int, protocol: Protocol = GPU) -> Comparison:
    """A takes `ratio` of B's time at the same power; every window's reading has noise of its own."""
    chance, clock = random.Random(seed), ScriptedClock()
    meter = ScriptedMeter(
        clock=clock, watts=[300 * (1 + cv * chance.gauss(0, 1)) for _ in range(2 * protocol.max_windows + 200)]
    )
    beside = measure_beside(
        lambda: clock.advance(0.125 * ratio),
        lambda: clock.advance(0.125),
        items=4,
        meter=meter,
        protocol=protocol,
        seed=seed,
        clock=clock,
    )
    return Comparison(a="one", b="other", item="image", hardware="Scripted GPU", beside=beside)


def told(ratio: Interval) -> Comparison:
    found = scripted(1.0, 0.0, 0)
    return replace(found, beside=replace(found.beside, ratio=ratio))


# --- how often it is wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [0.003, 0.02])
def test_equal_things_are_seldom_called_different(cv: float) -> None:
    tries = 300
    alarms = sum(scripted(1.0, cv, seed).cheaper is not None for seed in range(tries))
    assert alarms <= 0.08 * tries


@pytest.mark.parametrize(("ratio", "cheaper"), [(0.98, "a"), (1 / 0.98, "b")])
def test_two_percent_are_found_with_the_noise_of_a_counter(ratio: float, cheaper: str) -> None:
    tries = 300
    found = [scripted(ratio, 0.003, seed) for seed in range(tries)]
    assert sum(one.cheaper == cheaper for one in found) >= 0.95 * tries
    held = sum(one.ratio.low <= ratio <= one.ratio.high for one in found)
    assert held >= 0.91 * tries  # 95 % less three standard errors


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_verdict_in_words() -> None:
    a = told(Interval(mean=0.8, low=0.78, high=0.82))
    assert (a.cheaper, a.verdict) == ("a", "A is cheaper by 20.00 % (95 % interval 18.00 to 22.00 %)")
    b = told(Interval(mean=1.25, low=1.0 / 0.82, high=1.0 / 0.78))
    assert (b.cheaper, b.verdict) == ("b", "B is cheaper by 20.00 % (95 % interval 18.00 to 22.00 %)")
    assert a.cautions == () == b.cautions and a.settles is None
    small = told(Interval(mean=0.98, low=0.97, high=0.99))
    assert "compiled and laid out" in small.cautions[0] and "compiled and laid out" in small.summary()


def test_what_would_settle_it() -> None:
    """Half width h shows 1.96 standard errors; 3.605 of them must fit into the difference d: time grows by their
    square."""
    half, seen = 0.02, 0.01
    ratio = Interval(mean=math.exp(seen), low=math.exp(seen - half), high=math.exp(seen + half))
    found = told(ratio)
    assert found.cheaper is None and found.settles is not None
    difference, seconds = found.settles
    assert difference == pytest.approx(math.expm1(seen))
    assert seconds == pytest.approx(found.measured_s * ((3.605 / 1.96 * half / seen) ** 2 - 1))
    assert found.verdict.startswith("no difference beyond the noise: ratio 1.0101 (0.9900 to 1.0305); ")
    assert found.verdict.endswith("more minutes would settle a difference of 1 %") or "less than one" in found.verdict
    centred = told(Interval(mean=1.0, low=math.exp(-half), high=math.exp(half)))
    assert centred.settles is not None and centred.settles[0] == pytest.approx(math.expm1(half / 2))


def test_nothing_differs_and_nothing_varies() -> None:
    found = told(Interval(mean=1.0, low=1.0, high=1.0))
    assert found.settles is None and found.verdict == "no difference beyond the noise: ratio 1.0000 (1.0000 to 1.0000)"


def test_summary_and_json_state_the_origin() -> None:
    found = scripted(0.9, 0.003, 1)
    text = found.summary()
    assert "measured, scripted; on Scripted GPU" in text and "per image" in text and "A is cheaper by" in text
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (data["tier"], data["boundary"], data["unit"]) == ("measured", "scripted", "J per image")
    assert data["cheaper"] == "a" and data["ratio"]["high"] < 1 and data["pairs"] >= 6
    assert data["a"]["energy_per_item_j"]["mean"] < data["b"]["energy_per_item_j"]["mean"]


@pytest.mark.parametrize("seen", [0.0, 0.01])
def test_what_it_says_would_settle_it_does(seen: float) -> None:
    """A true difference, undecided after 20 pairs: as many more as `settles` asks for find it in about 95 of 100."""
    cv, few, tries = 0.02, Protocol(warmup_s=0, window_s=0.5, min_windows=20, max_windows=20, target_relative=1.0), 100
    halves = [math.log(one.high / one.low) / 2 for one in (scripted(1.0, cv, n, few).ratio for n in range(30))]
    half = statistics.mean(halves)
    first = scripted(1.0, cv, 0, few)
    undecided = replace(first, beside=replace(first.beside, ratio=around(-seen, half)))
    assert undecided.settles is not None
    difference, seconds = undecided.settles
    pairs = math.ceil(20 * (1 + seconds / undecided.measured_s))
    longer = replace(few, min_windows=pairs, max_windows=pairs)
    found = sum(scripted(1 / (1 + difference), cv, n, longer).cheaper == "a" for n in range(tries))
    assert found >= 0.88 * tries  # 95 % less three standard errors


def around(log: float, half: float) -> Interval:
    return Interval(mean=math.exp(log), low=math.exp(log - half), high=math.exp(log + half))


def test_a_comparison_goes_on_to_one_percent_or_about_a_minute_of_windows() -> None:
    first = patient(Protocol())
    assert (first.min_windows, first.max_windows, first.target_relative) == (20, 120, 0.01)
    short = patient(Protocol(window_s=0.01, min_windows=48, max_windows=48, target_relative=0.005))
    assert (short.min_windows, short.max_windows, short.target_relative) == (48, 1000, 0.005)
    long = patient(Protocol(window_s=5.0))
    assert (long.min_windows, long.max_windows) == (20, 80)


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/toy, a finished study, and a bundle of it."""
    from autogreen.sweep import sweep

    folder = tmp_path_factory.mktemp("place")
    for _ in sweep(experiment(budget={"trials": 1}, finalists=0), folder / "runs" / "toy", folder / "runs" / ".cache"):
        pass
    front = Front.of(Store.open(folder / "runs" / "toy").results())
    api.export(front, pick="cheapest", to=folder / "bundle", runs=folder / "runs")
    return folder


@pytest.fixture
def runs(place: Path) -> Path:
    return place / "runs"


def command(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and what was said, on standard output or, when it failed, on standard error."""
    monkeypatch.setattr(sys, "argv", ["autogreen", *arguments])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, err if code else out


def test_a_bundle_beside_a_policy_recorded_and_replayed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    file = str(tmp_path / "recording.json")
    run = {"monkeypatch": monkeypatch, "capsys": capsys}
    code, text = command("compare", "bundle", "toy:plain", "--json", "--record", file, *SHORT, **run)
    assert code == 0, text
    found = json.loads(text)
    assert found["tier"] == "estimated" and found["unit"] == "J per image" and found["pairs"] == 2
    assert found["a"]["name"].startswith("bundle (") and found["b"]["name"].startswith("toy:plain (")
    assert "settings of the meter" not in text and "different inputs" not in text
    code, text = command("compare", "--replay", file, "--json", **run)
    again = json.loads(text)
    assert code == 0 and again["ratio"] == found["ratio"] and again["verdict"] == found["verdict"]
    assert again["a"] == found["a"] and again["boundary"] == f"{found['boundary']}, replayed"
    code, text = command("compare", "--replay", file, **run)
    assert code == 0 and "nothing was measured now" in text
    code, text = command("compare", "bundle", "toy:plain", "--record", file, *SHORT, **run)
    assert code == 1 and "exists and would be lost" in text


def test_from_python_with_itself(runs: Path) -> None:
    found = autogreen.compare("toy:baseline", "toy:baseline", runs=runs, protocol=QUICK)
    assert isinstance(found, Comparison)
    assert any("the same policy, loaded twice" in note for note in found.notes)
    assert Beside.from_json(json.loads(json.dumps(found.beside.to_json()))) == found.beside


def test_entrants_make_a_round_trip_to_the_other_process(place: Path, runs: Path) -> None:
    for text in ("toy:baseline", "toy:plain", "toy:knee", "toy:cheapest:loss<=1", str(place / "bundle")):
        found = find(text, runs)
        assert Entrant.from_json(json.loads(json.dumps(found.to_json()))) == found
    member = Front.of(Store.open(runs / "toy").results()).members[0]
    assert find(f"toy:{member.id}", runs).key == member.evaluation.key


def changed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """B is as A but for the changes."""
    monkeypatch.setattr(
        comparison,
        "find",
        lambda text, runs, **_: replace(find("toy:baseline", runs), **(changes if text == "b" else {})),
    )


def test_what_must_not_be_compared(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, item="token")
    with pytest.raises(RefusedError, match="per image and B per token"):
        compare("a", "b", runs=runs)
    changed(monkeypatch, tier="measured")
    with pytest.raises(RefusedError, match="estimated and that of B measured: tiers are never ranked"):
        compare("a", "b", runs=runs)
    base = find("toy:baseline", runs)
    changed(monkeypatch, recipe=replace(base.recipe, device="cuda:0"))
    with pytest.raises(RefusedError, match="A runs on cpu and B on cuda:0"):
        compare("a", "b", runs=runs)
    elsewhere = replace(base, hardware={**base.hardware, "cpu": "Another CPU"})
    with pytest.raises(RefusedError, match=r"is for Another CPU.*; this is .*compare there"):
        contest(base, elsewhere, Protocol(**QUICK))


def test_items_are_those_that_the_search_counted(runs: Path) -> None:
    base = find("toy:baseline", runs)
    assert base.items == Store.open(runs / "toy").results().baseline.measurement.items_per_call  # type: ignore[union-attr]
    told = contest(replace(base, items=16 * base.items), base, Protocol(**QUICK))
    beside = Beside.from_json(told["beside"])
    assert (beside.candidate.items_per_call, beside.reference.items_per_call) == (16 * base.items, base.items)


def test_what_is_said_beside_the_numbers(runs: Path) -> None:
    base = find("toy:baseline", runs)
    other = replace(
        base,
        key="another",
        recipe=replace(base.recipe, threads=2),
        tier="measured",
        meter={"name": "estimate", "idle_watts": 1.0},
        hardware={**base.hardware, "torch": "1.0"},
    )
    notes = contest(other, replace(base, tier="measured"), Protocol(**QUICK))["recording"]["notes"]
    said = " | ".join(notes)
    assert "A runs with 2 and B with 1 threads: an estimate" in said and "A's settings of the meter" in said
    assert "energy is estimated here; both were measured" in said and "made with torch 1.0" in said
    assert "same policy" not in said


def test_programs_that_fail_name_the_side(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    base = find("toy:baseline", tmp_path / "runs")
    (tmp_path / "runs" / "toy" / "golden.json").write_text('{"tuple": [')
    with pytest.raises(StudyError, match="inputs kept with study 'toy' cannot be read"):
        contest(base, base, Protocol(**QUICK))
    shutil.copytree(runs, tmp_path / "again")
    base = find("toy:baseline", tmp_path / "again")
    (base.folder / "model.pt2").write_bytes(b"broken")
    with pytest.raises(AutogreenError, match=r"model\.pt2|cannot be loaded"):
        contest(base, base, Protocol(**QUICK))


def test_time_is_up(runs: Path) -> None:
    with pytest.raises(EvaluationError, match=r"toy:baseline beside toy:plain was not compared within 0\.05 s"):
        compare("toy:baseline", "toy:plain", runs=runs, limit_s=0.05)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy:knee", "toi:knee"], "There are: toy"),
        (["toy:kne", "toy:knee"], "Did you mean 'knee'"),
        (["toy", "toy:knee"], "'toy' is a study; say which of its policies, for example toy:knee"),
        (["nowhere", "toy:knee"], "neither a folder nor of the form STUDY:RULE"),
        ([":knee", "toy:knee"], "not of the form STUDY:RULE"),
        (["toy:", "toy:knee"], "Rules: baseline, plain, knee"),
        (["runs", "toy:knee"], "runs is not a bundle"),
        (["toy:knee"], "name two programs"),
        ([], "name two programs"),
        (["toy:knee", "toy:plain", "--replay", "x.json"], "--replay FILE alone"),
        (["--replay", "x.json"], "x.json cannot be read"),
        (["toy:knee", "toy:plain", "--protocol", "max_windows"], "not of the form KEY=VALUE"),
        (["toy:knee", "toy:plain", "--protocol", "max_window=5"], "Did you mean 'max_windows'"),
        (["toy:knee", "toy:plain", "--protocol", "max_windows=many"], "protocol.max_windows"),
        (["toy:knee", "toy:plain", "--record", "none/x.json"], "its folder does not exist"),
    ],
)
def test_mistakes_get_one_clear_line(
    place: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    code, text = command("compare", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1 and message in text
    assert text.startswith("error: ") and len(text.strip().splitlines()) == 1


def test_an_artifact_that_is_gone(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    found = find("toy:knee", tmp_path / "runs")
    shutil.rmtree(found.folder)
    with pytest.raises(StudyError, match=r"the artifact of toy:knee \(.*\) is gone: a study keeps"):
        find("toy:knee", tmp_path / "runs")
