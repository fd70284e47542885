"""The doctor's page: every part on a fake machine, and every part that cannot be read."""

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

from autogreen import doctor, floor, hardware, surroundings
from autogreen.doctor import Counter, Examination, examine
from autogreen.errors import ConfigError, MeterError
from autogreen.floor import UnitCosts
from autogreen.measurement import Interval
from autogreen.surroundings import Finding, governor, gpus
from autogreen.testing import ScriptedMeter


def look(**changes: Any) -> Examination:
    return examine("cpu", **{"rest_s": 0.02, **changes})


def page(found: Examination) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(found.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def costs_here() -> UnitCosts:
    described = hardware.describe("cpu")
    meter = doctor.choose("cpu")
    cost = Interval(mean=5.0, low=4.0, high=6.0)
    return UnitCosts(
        machine=hardware.name(described),
        driver="none",
        torch=described["torch"],
        tier=meter.tier,
        boundary=meter.boundary,
        flop_pj={"float32": cost},
        byte_pj=cost,
        cache_bytes=None,
        left_out={"float16": "no instructions"},
        measured="2026-11-01T00:00:00+00:00",
    )


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A fake nvidia-smi: what it answers about boards and processes, and its exit code."""

    def install(boards: str = "", processes: str = "", code: int = 0) -> None:
        script = tmp_path / "bin" / "nvidia-smi"
        script.parent.mkdir()
        answers = f'case "$1" in --query-gpu*) echo "{boards}";; *) echo "{processes}";; esac'
        script.write_text(f"#!/bin/sh\n{answers}\nexit {code}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")

    return install


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_and_its_json() -> None:
    found = look()
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(told) == {
        *("hardware", "devices", "meters", "counter", "idle", "costs", "costs_note", "disturbances", "schemes"),
    }
    assert told["devices"][0]["name"] == "cpu" and told["costs"] is None and "--floor" in told["costs_note"]
    assert told["idle"]["tier"] in ("measured", "integrated", "estimated") and told["idle"]["power_w"] > 0
    assert {finding["name"] for finding in told["disturbances"]} >= {"foreign load", "load", "frequency governor"}
    shown = page(found)
    for part in ("device cpu", "meter estimate", "idle power now", "unit costs", "foreign load", "scheme w8a8_static"):
        assert part in shown


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="device 'tpu' is not here"):
        examine("tpu")


# --- idle power -------------------------------------------------------------------------------------------------------


def test_idle_power_with_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "choose", lambda device: ScriptedMeter(watts=40.0, uncertainty=0.25))
    found = look()
    assert found.idle is not None
    assert (found.idle.power_w, found.idle.low_w, found.idle.high_w) == pytest.approx((40, 30, 50))
    assert "40 W (30 to 50), measured" in page(found) and "scripted; a step every 1 ms" in page(found)


def test_a_meter_that_fails_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "choose", lambda device: ScriptedMeter(watts=[MeterError("the counter stood still")]))
    found = look()
    assert found.idle is not None and found.idle.power_w is None and found.idle.note == "the counter stood still"
    assert "the counter stood still" in page(found)


def test_what_a_meter_knows_of_its_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stepping(ScriptedMeter):
        calibration = SimpleNamespace(
            periods_s=(0.1,), period_s=0.1, step_j=7.0, latency_s=0.0004, power_w=70.0, slope=1.12, notes=("renew it",)
        )

    monkeypatch.setattr(doctor, "choose", lambda device: Stepping(watts=40.0))
    found = look()
    assert found.counter == Counter(period_s=0.1, step_j=7.0, latency_s=0.0004, slope=1.12, notes=("renew it",))
    told = page(found)
    assert "a step of 7 J every 100 ms, read in 0.4 ms" in told and "1.12 times" in told and "renew it" in told
    json.dumps(found.to_json(), allow_nan=False)


def test_a_meter_that_cannot_look_at_its_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(ScriptedMeter):
        @property
        def calibration(self) -> Any:
            raise MeterError("no step within 2 s")

        @property
        def resolution_s(self) -> float:
            return self.calibration.period_s  # type: ignore[no-any-return]

        @resolution_s.setter
        def resolution_s(self, value: float) -> None: ...

    monkeypatch.setattr(doctor, "choose", lambda device: Frozen())
    found = look()
    assert found.counter is None and found.idle is not None and found.idle.resolution_s is None
    assert "no step within 2 s" in page(found)


def test_no_meter_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(device: str) -> Any:
        raise MeterError("nothing reads here")

    monkeypatch.setattr(doctor, "choose", none)
    found = look(measure_floor=True)
    assert found.idle is None and "no meter" in found.costs_note and "idle power" not in page(found)


# --- unit costs -------------------------------------------------------------------------------------------------------


def test_the_floor_is_measured_once_and_shown_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(floor, "measure_costs", lambda device, meter: calls.append(device) or costs_here())
    assert look(cache=tmp_path, measure_floor=True).costs == costs_here()
    found = look(cache=tmp_path)
    assert found.costs == costs_here() and calls == ["cpu"] and not found.costs_note
    assert "float32 5 pJ/FLOP" in page(found) and "float16: no instructions" in page(found)
    json.dumps(found.to_json(), allow_nan=False)


def test_costs_of_another_meter_are_not_these(tmp_path: Path) -> None:
    floor.keep(replace(costs_here(), boundary="another"), tmp_path)
    found = look(cache=tmp_path)
    assert found.costs is None and "not measured yet with this meter" in found.costs_note


def test_costs_that_cannot_be_measured_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(device: str, meter: Any) -> Any:
        raise MeterError("beside other programs")

    monkeypatch.setattr(floor, "measure_costs", busy)
    assert look(cache=tmp_path, measure_floor=True).costs_note == "not readable: beside other programs"
    floor.keep(costs_here(), tmp_path).write_text("{")
    assert "cannot be read" in look(cache=tmp_path).costs_note
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(floor, "measure_costs", lambda device, meter: costs_here())
    assert look(cache=tmp_path / "file", measure_floor=True).costs_note.startswith("not readable")


# --- what disturbs ----------------------------------------------------------------------------------------------------


def finding(found: Examination, name: str) -> Finding:
    return next(entry for entry in found.disturbances if entry.name == name)


def test_foreign_load_names_its_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0])
    busy, processes = iter([50.0, 53.0]), iter([{7: ("make", 1.0)}, {7: ("make", 3.5), 8: ("new", 0.3)}])
    monkeypatch.setattr(surroundings.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(surroundings, "_busy_s", lambda: next(busy))
    monkeypatch.setattr(surroundings, "_process_times", lambda: next(processes))
    told = surroundings.Load().finding()
    assert told.number == pytest.approx(1.5) and told.found == "1.50 busy cores: make (pid 7) 1.25"
    assert "Stop them" in told.advice


def test_a_quiet_machine_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_busy_s", lambda: 1.0)
    told = surroundings.Load().finding()
    assert told.number == 0 and told.advice == "Nothing to do"


def test_a_system_that_tells_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **settings: Any) -> Any:
        raise FileNotFoundError("/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", fail)
    monkeypatch.setattr(psutil, "process_iter", fail)
    assert surroundings.Load().finding().found.startswith("not readable")


def test_a_system_without_load_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg")
    assert surroundings.load_average().found.startswith("not readable")


def test_load_above_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 1.0, 1.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    told = surroundings.load_average()
    assert told.number == 9.0 and "Wait" in told.advice


def test_governors(tmp_path: Path) -> None:
    assert governor(tmp_path).found.startswith("not readable")
    for cpu, rule in enumerate(("performance", "powersave")):
        place = tmp_path / f"cpu{cpu}" / "cpufreq"
        place.mkdir(parents=True)
        (place / "scaling_governor").write_text(f"{rule}\n")
    assert governor(tmp_path).found == "performance, powersave" and "cpupower" in governor(tmp_path).advice
    (tmp_path / "cpu1" / "cpufreq" / "scaling_governor").write_text("performance\n")
    assert governor(tmp_path).advice == "Nothing to do"
    (tmp_path / "cpu2" / "cpufreq" / "scaling_governor").mkdir(parents=True)
    assert governor(tmp_path).found.startswith("not readable")


# --- GPUs -------------------------------------------------------------------------------------------------------------


def test_boards_and_what_runs_on_them(driver: Callable[..., None]) -> None:
    driver("0, GPU-aa, Scripted GPU, 700.00\n1, GPU-bb, Scripted GPU, [N/A]", "GPU-aa, 4711, python3, 1024")
    boards, (processes,) = gpus()
    assert [(board.name, board.uuid, board.limit_w) for board in boards] == [
        ("gpu 0", "GPU-aa", 700.0),
        ("gpu 1", "GPU-bb", None),
    ]
    assert processes.found == "python3 (pid 4711) on GPU-aa, 1024 MiB" and "Stop them" in processes.advice
    shown = page(look())
    assert "device gpu 0" in shown and "limit 700 W" in shown and "processes on GPUs" in shown


def test_our_own_process_is_none_of_the_others(driver: Callable[..., None]) -> None:
    driver("0, GPU-aa, Scripted GPU, 700.00", f"GPU-aa, {os.getpid()}, python3, 1024")
    _, (processes,) = gpus()
    assert processes.found == "none" and processes.number == 0


def test_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == ((), ())


def test_a_driver_that_fails_is_told(driver: Callable[..., None]) -> None:
    driver("NVIDIA-SMI has failed because it could not communicate with the driver", code=9)
    boards, (told,) = gpus()
    assert boards == () and "NVIDIA-SMI has failed" in told.found and told.found.startswith("not readable")
    assert "NVIDIA-SMI has failed" in page(look())
