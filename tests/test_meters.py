"""The contract of a meter, the choice among meters, and the estimate; the others have files of their own."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autogreen.errors import ConfigError, MeterError, UnknownNameError
from autogreen.meters import METERS, TIERS, choose, diagnose, estimate
from autogreen.meters.estimate import EstimateMeter
from autogreen.testing import ScriptedClock, ScriptedMeter, check_meter


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a counter: neither RAPL nor, for want of pynvml, an NVIDIA GPU."""
    monkeypatch.setattr("autogreen.meters.rapl_domains._ROOT", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def burn() -> None:
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass


# --- the contract -----------------------------------------------------------------------------------------------------


def test_the_estimate_keeps_the_contract(machine: None) -> None:
    meter = choose("cpu", "estimate")
    assert check_meter(meter, burn).duration_s < 5
    diagnosis = METERS["estimate"].diagnose("cpu")
    assert diagnosis.available and diagnosis.name == "estimate" and diagnosis.tier == meter.tier


@pytest.mark.parametrize("name", METERS)
def test_every_meter_refuses_what_is_no_device(name: str, machine: None) -> None:
    refused = METERS[name].diagnose("tpu")
    assert not refused.available and refused.reason and refused.advice


def test_the_scripted_meter_keeps_the_contract() -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(watts=[50.0, 80.0], clock=clock, uncertainty=0.1, busy_cores=2.0, foreign_cores=[0.0, 0.5])
    reading = check_meter(meter, lambda: clock.advance(2.0))
    assert (reading.energy_j, reading.low_j, reading.high_j) == pytest.approx((160, 144, 176))
    assert (reading.busy_s, reading.foreign_busy_s) == (4.0, 1.0)


def test_the_contract_finds_a_meter_that_reads_nothing() -> None:
    clock = ScriptedClock()
    with pytest.raises(AssertionError, match="not a range of joules"):
        check_meter(ScriptedMeter(watts=0.0, clock=clock), lambda: clock.advance(1))


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_auto_takes_the_best_tier_that_works(machine: None) -> None:
    assert isinstance(choose("cpu"), EstimateMeter)
    assert choose("cpu", watts_per_core=5.0).watts_per_core == 5.0  # type: ignore[attr-defined]
    ranks = [TIERS.index(diagnosis.tier) for diagnosis in diagnose("cpu")]
    assert ranks == sorted(ranks) and len(ranks) == len(METERS)


def test_no_meter_at_all_says_why_and_what_to_do(machine: None) -> None:
    with pytest.raises(MeterError, match=r"'cuda'.*nvml: pynvml cannot be.*pip install.*estimate: processor time"):
        choose("cuda")


@pytest.mark.parametrize(
    ("error", "message", "arguments", "settings"),
    [
        (UnknownNameError, "Did you mean 'estimate'", ("cpu", "estimat"), {}),
        (ConfigError, "no meter has a setting 'wats_per_core'.*watts_per_core", ("cpu",), {"wats_per_core": 1}),
        (ConfigError, "'estimate' has no setting 'resolution_s'", ("cpu", "estimate"), {"resolution_s": 1}),
        (ConfigError, "watts_per_core is 0;.*above 0", ("cpu",), {"watts_per_core": 0}),
        (ConfigError, "watts_per_core is nan", ("cpu",), {"watts_per_core": float("nan")}),
        (ConfigError, "watts_per_core is '5'", ("cpu",), {"watts_per_core": "5"}),
        (ConfigError, "idle_watts is -1", ("cpu",), {"idle_watts": -1}),
        (ConfigError, "uncertainty is True", ("cpu",), {"uncertainty": True}),
        (MeterError, "NVML reads NVIDIA GPUs", ("cpu", "nvml"), {}),
    ],
)
def test_bad_choices(
    error: type[Exception], message: str, arguments: tuple[str, ...], settings: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        choose(*arguments, **settings)


def test_importing_the_face_loads_nothing_heavy() -> None:
    code = (
        "import sys, autogreen.measure, autogreen.testing, autogreen.meters;"
        "print([name for name in ('torch', 'pynvml', 'mlflow', 'psutil', 'scipy', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- estimate ---------------------------------------------------------------------------------------------------------


def scripted_times(monkeypatch: pytest.MonkeyPatch, *moments: tuple[float, float, float]) -> None:
    script = iter(moments)
    monkeypatch.setattr(estimate, "_now", lambda: next(script))


def test_estimate_is_the_stated_model_with_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_times(monkeypatch, (10.0, 1.0, 50.0), (12.0, 4.0, 53.5))
    meter = EstimateMeter(watts_per_core=5.0, idle_watts=2.0, uncertainty=0.5)
    meter.start()
    reading = meter.stop()
    assert reading.energy_j == 3 * 5 + 2 * 2
    assert (reading.low_j, reading.high_j) == (9.5, 28.5)
    assert (reading.busy_s, reading.foreign_busy_s, reading.duration_s) == (3.0, 0.5, 2.0)
    assert "5 W a busy core, 2 W at rest" in meter.boundary


def test_estimate_never_reports_negative_foreign_load_or_zero_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_times(
        monkeypatch, (0, 0, 0), (1, 0.5, 0.49), (1, 1, 1), (2, 1, 1), (2, 2, 2), (2, 3, 3), (3, 3, 3), (4, 2, 3)
    )
    meter = EstimateMeter(idle_watts=0.0)
    meter.start()
    assert meter.stop().foreign_busy_s == 0.0
    for message in ("no processor time", "window is lost", "window is lost"):
        meter.start()
        with pytest.raises(MeterError, match=message):
            meter.stop()


def test_estimate_bills_all_threads_and_reaped_children() -> None:
    meter = EstimateMeter()
    meter.start()
    burn()
    alone = meter.stop()
    assert alone.busy_s is not None and 0.02 <= alone.busy_s < 0.2
    meter.start()
    subprocess.run([sys.executable, "-c", "while __import__('time').process_time() < 0.15: pass"], check=True)
    reading = meter.stop()
    assert reading.busy_s is not None and reading.busy_s >= 0.14


def test_nested_windows_take_two_instances() -> None:
    outer, inner = EstimateMeter(), EstimateMeter()
    outer.start()
    inner.start()
    burn()
    assert inner.stop().energy_j < outer.stop().energy_j
