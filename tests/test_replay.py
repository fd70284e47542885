"""Recordings: what was measured is measured again from the file alone, bit by bit; damaged files are refused."""

import itertools
import json
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autogreen.errors import ConfigError, MeterError
from autogreen.measure import Beside, Measurement, Protocol, measure, measure_beside
from autogreen.meters import METERS, choose, diagnose
from autogreen.meters.replay import ReplayMeter
from autogreen.recording import Tape, recorded, replay, save
from autogreen.testing import ScriptedClock, ScriptedMeter, check_meter

PROTOCOL = Protocol(warmup_s=0.1, window_s=0.5, min_windows=6, max_windows=12, target_relative=0.001)
HARDWARE = {"cpu": "Scripted CPU", "cores": 2, "cpu_capability": "AVX2"}


def written(folder: Path, sides: dict[str, Measurement], tape: Tape, protocol: Protocol) -> Path:
    data = recorded(
        sides,
        order=tape.order,
        names={side: f"the {side}" for side in sides},
        resolution_s=tape.resolution_s,
        protocol=protocol,
        hardware=HARDWARE,
        item="image",
        notes=("made up",),
    )
    save(data, folder / "recording.json")
    return folder / "recording.json"


def tapes(meter: Any) -> tuple[Tape, Tape]:
    order: list[str] = []
    return Tape(meter, "candidate", order), Tape(meter, "reference", order)


def uneven(clock: ScriptedClock, side: str, seconds: float) -> Callable[[], object]:
    """Calls that become faster, so that later windows hold more of them, and that never take the same time."""
    chance, made = random.Random(side), itertools.count()
    return lambda: clock.advance(seconds * (1 + 0.5 / (1 + next(made) / 40) + 0.02 * chance.random()))


def take(
    folder: Path, protocol: Protocol = PROTOCOL, idle_w: float | None = None, **script: Any
) -> tuple[Path, Beside]:
    chance, clock = random.Random(5), ScriptedClock()
    script = {"watts": [chance.gauss(100, 2) for _ in range(60)], **script}
    tape, other = tapes(ScriptedMeter(clock=clock, resolution_s=0.03, uncertainty=0.1, **script))
    found = measure_beside(
        uneven(clock, "candidate", 0.013),
        uneven(clock, "reference", 0.029),
        items=8,
        reference_items=2,
        meter=tape,
        reference_meter=other,
        protocol=protocol,
        clock=clock,
        idle_w=idle_w,
        reference_idle_w=idle_w,
    )
    return written(folder, {"candidate": found.candidate, "reference": found.reference}, tape, protocol), found


def stamped(found: Beside) -> Beside:
    """As it is when it is replayed: only the boundary says so."""
    sides = {
        side: replace(getattr(found, side), boundary=f"{getattr(found, side).boundary}, replayed")
        for side in ("candidate", "reference")
    }
    return replace(found, **sides)


# --- the same again ---------------------------------------------------------------------------------------------------


def test_a_comparison_is_replayed_bit_by_bit(tmp_path: Path) -> None:
    path, found = take(tmp_path)
    assert len({window.calls for window in found.candidate.windows}) > 1  # else the test would prove little
    again, recording = replay(path)
    assert again == stamped(found)
    assert recording.sides["candidate"].name == "the candidate" and recording.notes == ("made up",)
    assert (recording.item, recording.hardware, recording.tier) == ("image", HARDWARE, "measured")


def test_failed_and_disturbed_windows_are_replayed_too(tmp_path: Path) -> None:
    watts = [100.0, MeterError("the counter fell"), 101.0, math.nan, *([99.0, 100.5] * 30)]
    path, found = take(tmp_path, watts=watts, busy_cores=0.9, foreign_cores=[0.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.0])
    windows = (*found.candidate.windows, *found.reference.windows)
    assert {window.reason for window in windows if not window.used} >= {"the counter fell"}
    assert any(window.reading is not None and not window.used for window in windows)
    assert replay(path)[0] == stamped(found)


def told(window: int) -> dict[str, Any]:
    """Everything a reading can tell; now and then something that speaks against it."""
    return {
        "sampled_w": 101.5,
        "memory_w": 20.0,
        "limit_w": 108.0,
        "limited": ("power cap", *(("thermal slowdown",) if window == 5 else ())),
        "clock_hz": (1.2e9, 1.9e9),
        "temperature_c": 61.0,
        "guests": ("Xorg (pid 9)",),
        "steps": ((0.0, 0.0), (0.25, 24.5), (0.5, 50.0)),
        "disturbed": "another program came" if window == 9 else None,
    }


def test_gates_and_the_warm_up_are_decided_again(tmp_path: Path) -> None:
    watts = [100 * (1 - 0.3 * math.exp(-n / 3)) for n in range(60)]
    watts[17], watts[19] = 130.0, 30.0
    script = {"watts": watts, "told": [told(window) for window in range(60)]}
    path, found = take(tmp_path, idle_w=50.0, **script)
    windows = (*found.candidate.windows, *found.reference.windows)
    reasons = " | ".join(window.reason for window in windows if window.reason and window.reading is not None)
    for reason in ("thermal slowdown", "another program came", "more than the device can take", "at rest (50 W)"):
        assert reason in reasons
    assert found.candidate.limited == ("power cap",) and found.candidate.idle_w == 50.0
    again, recording = replay(path)
    assert again == stamped(found) and recording.idle_w == 50.0
    assert Beside.from_json(json.loads(json.dumps(again.to_json()))) == again


def test_a_discarded_warm_up_is_replayed(tmp_path: Path) -> None:
    clock, chance = ScriptedClock(), random.Random(3)
    watts = [100 * (1 - 0.4 * math.exp(-n / 3)) * (1 + 0.003 * chance.gauss(0, 1)) for n in range(60)]
    tape, _ = tapes(ScriptedMeter(clock=clock, watts=watts))
    work, protocol = uneven(clock, "candidate", 0.007), replace(PROTOCOL, target_relative=0.5)
    for preheat_s in (30.0, 3.0):  # enough, and too little: given up at the same window
        protocol = replace(protocol, preheat_s=preheat_s)
        found = measure(work, items=3, meter=tape, protocol=protocol, clock=clock)
        early = sum(window.reason == "warming up" for window in found.windows)
        assert early >= 2 and any("not steady" in warning for warning in found.warnings) == (preheat_s == 3.0)
        (tmp_path / f"{preheat_s}").mkdir()
        path = written(tmp_path / f"{preheat_s}", {"candidate": found}, tape, protocol)
        meter = ReplayMeter(readings=path)
        again = measure(meter.call("candidate"), items=3, meter=meter, protocol=protocol, clock=meter.clock)
        assert again == replace(found, boundary="scripted, replayed")
        tape, _ = tapes(ScriptedMeter(clock=clock, watts=watts))
        work = uneven(clock, "candidate", 0.007)


def test_windows_stand_in_the_order_they_were_taken(tmp_path: Path) -> None:
    path, found = take(tmp_path)
    sides = [window["side"] for window in json.loads(path.read_text())["windows"]]
    pairs = [set(sides[place : place + 2]) for place in range(0, len(sides), 2)]
    assert all(pair == {"candidate", "reference"} for pair in pairs)
    assert sides[1] == sides[2] and sides[0] == sides[3]  # A B B A
    meter = ReplayMeter(readings=path)
    for side in sides:  # without calls of its own it gives the readings as they came
        meter.start()
        reading = meter.stop()
        assert reading in [window.reading for window in getattr(found, side).windows]


def test_one_measurement_alone(tmp_path: Path) -> None:
    clock = ScriptedClock()
    tape, _ = tapes(ScriptedMeter(clock=clock, watts=[100.0, 103.0, 98.0, 101.0, 99.0, 102.0] * 4))
    work = uneven(clock, "candidate", 0.007)
    found = measure(work, items=3, meter=tape, protocol=PROTOCOL, clock=clock)
    path = written(tmp_path, {"candidate": found}, tape, PROTOCOL)
    meter = ReplayMeter(readings=path)
    again = measure(meter.call("candidate"), items=3, meter=meter, protocol=PROTOCOL, clock=meter.clock)
    assert again == replace(found, boundary="scripted, replayed")
    with pytest.raises(MeterError, match="no comparison: its sides are candidate"):
        replay(path)


def test_real_time_and_a_real_meter(tmp_path: Path) -> None:
    protocol = Protocol(warmup_s=0.02, window_s=0.02, min_windows=4, max_windows=6, foreign_limit=math.inf)
    tape, other = tapes(choose("cpu", "estimate"))
    found = measure_beside(
        lambda: sum(range(700)),
        lambda: sum(range(5000)),
        items=1,
        meter=tape,
        reference_meter=other,
        protocol=protocol,
    )
    path = written(tmp_path, {"candidate": found.candidate, "reference": found.reference}, tape, protocol)
    again, _ = replay(path)
    for side in ("candidate", "reference"):  # warnings look at the process that measures
        mine, other = getattr(again, side), getattr(stamped(found), side)
        assert replace(mine, warnings=()) == replace(other, warnings=())
    assert again.ratio == found.ratio


# --- another analysis -------------------------------------------------------------------------------------------------


def test_fewer_windows_give_what_would_have_come_out(tmp_path: Path) -> None:
    path, found = take(tmp_path)
    assert len(found.candidate.windows) == 12
    again, _ = replay(path, {"min_windows": 4, "max_windows": 4})
    assert again.candidate.windows == found.candidate.windows[:4]
    assert again.reference.windows == found.reference.windows[:4]
    logs = [
        math.log((a.energy_per_call_j / 8) / (b.energy_per_call_j / 2))
        for a, b in zip(found.candidate.windows[:4], found.reference.windows[:4], strict=True)
    ]
    assert again.ratio.mean == pytest.approx(math.exp(statistics.mean(logs)))


def test_another_limit_of_foreign_load(tmp_path: Path) -> None:
    path, found = take(tmp_path, foreign_cores=[0.1, 0.1, 0.1, 0.1, 0.2])
    assert all(window.used for window in found.candidate.windows)
    with pytest.raises(MeterError, match="has no more windows"):
        replay(path, {"foreign_limit": 0.15})


def test_more_than_was_recorded(tmp_path: Path) -> None:
    path, _ = take(tmp_path)
    with pytest.raises(MeterError, match=r"has no more windows of the .*; it holds 24 in all\. Ask for fewer"):
        replay(path, {"min_windows": 14, "max_windows": 14})
    with pytest.raises(ConfigError, match="window_s cannot be changed afterwards"):
        replay(path, {"window_s": 1.0})
    with pytest.raises(ConfigError, match="unknown key 'min_window'"):
        replay(path, {"min_window": 4})


def test_a_window_of_other_length_lasts_in_proportion(tmp_path: Path) -> None:
    path, found = take(tmp_path)
    meter = ReplayMeter(readings=path)
    call, recorded_window = meter.call("candidate"), found.candidate.windows[0]
    call()
    meter.start()
    for _ in range(2 * recorded_window.calls):
        call()
    assert meter.clock() == pytest.approx(2 * recorded_window.duration_s)
    assert meter.stop() == recorded_window.reading
    with pytest.raises(MeterError, match="no side 'third'; it has candidate, reference"):
        meter.call("third")


# --- a meter like the others, but never chosen ------------------------------------------------------------------------


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    path, found = take(tmp_path)
    meter = ReplayMeter(readings=path)
    check_meter(meter, lambda: None)
    assert (meter.tier, meter.resolution_s, meter.boundary) == ("measured", 0.03, "scripted, replayed")
    for _ in range(len(found.candidate.windows) + len(found.reference.windows) - 2):
        meter.start()
        meter.stop()
    with pytest.raises(MeterError, match="no more windows"):
        meter.start()


def test_it_is_never_chosen_and_says_how_to_use_it(tmp_path: Path) -> None:
    path, _ = take(tmp_path)
    assert METERS["replay"] is ReplayMeter
    assert type(choose("cpu")) is not ReplayMeter
    (found,) = [diagnosis for diagnosis in diagnose("cpu") if diagnosis.name == "replay"]
    assert not found.available and "--replay" in found.advice
    with pytest.raises(MeterError, match=r"autogreen compare --replay FILE"):
        choose("cpu", "replay", readings=path)


# --- damaged files ----------------------------------------------------------------------------------------------------


def put(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", value=1), "has format 1; this autogreen reads format 2 only. Record again"),
        (put("tier", value="guessed"), "tier is 'guessed'; allowed: one of measured, integrated, estimated"),
        (put("resolution_s", value=0), "resolution_s is '0'; allowed: a number above 0"),
        (put("windows", 3, "reading", "energy_j", value=-1.0), r"windows\[3\]\.reading: energy_j is '-1.0'"),
        (
            put("windows", 3, "reading", "energy_j", value=1e9),
            r"energy_j is '1000000000.0'; allowed: a number from low",
        ),
        (put("windows", 3, "reading", "duration_s", value=0.0), "duration_s is '0.0'; allowed: a number above 0"),
        (put("windows", 3, "reading", "busy_s", value=-0.1), "busy_s is '-0.1'; allowed: a number of 0 or more"),
        (put("windows", 3, "reading", "watts", value=5), "unknown keys: 'watts'"),
        (put("windows", 3, "reading", value=None), "a reading, or null with a reason"),
        (put("windows", 3, "reading", value=[1, 2]), r"windows\[3\]\.reading is no mapping"),
        (put("windows", 3, "calls", value=0), "calls is '0'; allowed: a whole number from 1 to 10,000,000"),
        (put("windows", 3, "calls", value=True), "calls is 'True'"),
        (put("windows", 3, "duration_s", value="1"), "duration_s is '1'"),
        (put("windows", 3, "side", value="third"), "side is 'third'; allowed: one of candidate, reference"),
        (put("windows", 3, "reason", value=5), "reason is '5'; allowed: text or null"),
        (put("windows", value={}), "windows is '{}'; allowed: a list"),
        (put("sides", "candidate", "call_s", value=-1), "sides.candidate: call_s is '-1'"),
        (put("sides", "candidate", "call_s", value=1e-300), "call_s is '1e-300'; allowed: a number above 1e-09"),
        (put("resolution_s", value=1e300), r"resolution_s is '1e\+300'; allowed: a number up to 3600"),
        (put("notes", value=[1]), "notes is"),
        (put("idle_w", value=-3), "idle_w is '-3'; allowed: a number of 0 or more"),
        (put("windows", 3, "reading", "steps", value=[[0, 0], [1]]), r"reading: steps\[1\]: steps is .*two numbers"),
        (put("windows", 3, "reading", "steps", value=[[0, "a"]]), r"steps\[0\]: steps is 'a'; allowed: a number"),
        (
            put("windows", 3, "reading", "limited", value=["tired"]),
            "limited is .*; allowed: a list of power cap, therm",
        ),
        (put("windows", 3, "reading", "clock_hz", value=[1.0]), "clock_hz is .*; allowed: two numbers"),
        (put("windows", 3, "reading", "guests", value="me"), "guests is 'me'; allowed: a list"),
        (put("windows", 3, "reading", "disturbed", value=5), "disturbed is '5'; allowed: text or null"),
        (put("windows", 3, "reading", "sampled_w", value="x"), "sampled_w is 'x'; allowed: a number of 0 or more"),
        (put("windows", 3, "calls", value=10**8), "calls is '100000000'; allowed: a whole number from 1 to"),
        (lambda data: data["windows"][3]["reading"].pop("steps"), r"windows\[3\]\.reading lacks 'steps'"),
        (put("more", value=1), "unknown keys: 'more'"),
        (lambda data: data.pop("boundary"), "lacks 'boundary'"),
    ],
)
def test_a_damaged_recording_names_the_place(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    path, _ = take(tmp_path, protocol=replace(PROTOCOL, min_windows=4, max_windows=4))
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(MeterError, match=message):
        ReplayMeter(readings=path)


@pytest.mark.parametrize("change", [put("hardware", value={}), put("protocol", "min_windows", value="six")])
def test_a_comparison_without_machine_or_protocol(tmp_path: Path, change: Callable[[Any], object]) -> None:
    path, _ = take(tmp_path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(MeterError, match="hardware or protocol are none"):
        replay(path)


@pytest.mark.parametrize(
    "change",
    [
        *(put("sides", side, "call_s", value=tiny) for side in ("candidate", "reference") for tiny in (2e-9, 1e-7)),
        put("protocol", "window_s", value=3600.0),
        put("resolution_s", value=3600.0),
    ],
)
def test_a_recording_that_would_take_for_ever_is_refused_soon(tmp_path: Path, change: Callable[[Any], object]) -> None:
    path, _ = take(tmp_path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(MeterError, match=r"call_s is .* calls would fill a window; none was recorded with more than"):
        replay(path)


def test_what_is_no_recording(tmp_path: Path) -> None:
    path, _ = take(tmp_path)
    text = path.read_text()
    for other, message in (
        (text[: len(text) // 2], "was cut off"),
        (text.replace('"resolution_s": 0.03', '"resolution_s": NaN'), "NaN is no finite number"),
        ("[]", "is no mapping"),
        ("[" * 100_000, "nested too deeply|no recording"),
        ("", "no recording, or was cut off"),
    ):
        path.write_text(other)
        with pytest.raises(MeterError, match=message):
            ReplayMeter(readings=path)
    with pytest.raises(MeterError, match="cannot be read: No such file"):
        ReplayMeter(readings=tmp_path / "none.json")
    with pytest.raises(MeterError, match="cannot be read: Is a directory"):
        ReplayMeter(readings=tmp_path)


def test_a_recording_is_never_overwritten_and_never_half_written(tmp_path: Path) -> None:
    path, _ = take(tmp_path)
    with pytest.raises(ConfigError, match="exists and would be lost"):
        save({}, path)
    with pytest.raises(ConfigError, match="its folder does not exist"):
        save({}, tmp_path / "none" / "recording.json")
    with pytest.raises(ValueError, match="JSON compliant"):
        save({"energy_j": math.nan}, tmp_path / "other.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["recording.json"]
