"""GPU meters on a scripted driver (`fake_nvml`): what they read, and each fault that must never end in 0 J."""

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from autogreen.errors import MeterError
from autogreen.meters import METERS, Calibration, Meter, Reading, choose, nvml, nvml_device, nvml_sidecar, nvml_watch
from autogreen.meters.nvml import NvmlMeter
from autogreen.meters.nvml_power import PowerMeter
from autogreen.meters.steps import locate
from autogreen.testing import check_meter

UUIDS = ["GPU-aaaa0000", "GPU-bbbb1111"]
FAKE = Path(__file__).parent / "fake_nvml"
WATTS, PERIOD_S = 200.0, 0.04
WINDOW_S = 0.17
CALIBRATE = nvml._calibrate  # itself, where it is the subject
NOT_SUPPORTED, LOST, UNKNOWN = 3, 15, 999


class World:
    """The scripted boards. A change is seen at once by every process that reads them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: dict[str, Any] = {"driver": 1, "boards": []}
        for uuid, phase_s in zip(UUIDS, (0.0, 0.007), strict=True):
            self.told["boards"].append(
                {"uuid": uuid, "watts": WATTS, "period_s": PERIOD_S, "read_s": 0.0005, "phase_s": phase_s}
            )
        self.change()

    def change(self, board: int = 0, **what: Any) -> None:
        self.told["boards"][board] |= what
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(self.told))
        draft.replace(self.path)

    def driver(self, number: int) -> None:
        self.told["driver"] = number
        self.change()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path / "world.json")
    monkeypatch.setenv("AUTOGREEN_FAKE_NVML", str(found.path))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.syspath_prepend(str(FAKE))  # what the sidecar is handed down
    spec = importlib.util.spec_from_file_location("pynvml", FAKE / "pynvml.py")
    assert spec is not None and spec.loader is not None
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr("autogreen.meters.rapl_domains._ROOT", tmp_path)  # a machine without RAPL
    monkeypatch.setattr(nvml_device, "_initialised_in", 0)
    monkeypatch.setattr(nvml_device, "_cuda", lambda: None)
    monkeypatch.setattr(nvml, "_calibrate", cache(known))
    readers: list[nvml_watch.Sidecar] = []
    make = nvml_watch.Sidecar.__init__

    def note(self: nvml_watch.Sidecar, source: str, uuids: tuple[str, ...]) -> None:
        make(self, source, uuids)
        readers.append(self)

    monkeypatch.setattr(nvml_watch.Sidecar, "__init__", note)
    yield found
    nvml_watch._sidecar.cache_clear()
    CALIBRATE.cache_clear()
    for reader in readers:
        reader.stop()


def known(reader: nvml_watch.Sidecar) -> Calibration:
    """What a calibration would find, without its time; the sidecar is started all the same."""
    reader.calibrate(0.0)
    return Calibration(
        periods_s=(PERIOD_S,) * len(reader.uuids),
        regular=True,
        step_j=WATTS * PERIOD_S,
        latency_s=0.001,
        power_w=WATTS,
        slope=1.0,
    )


@pytest.fixture
def calibrating(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Boards that a meter learns to know as it would on a real machine, in less time."""
    monkeypatch.setattr(nvml, "_calibrate", CALIBRATE)
    monkeypatch.setattr(nvml, "CALIBRATE_S", 0.3)
    return world


def window(meter: Meter, seconds: float = WINDOW_S, meanwhile: Callable[[], object] = lambda: None) -> Reading:
    """A window in which something happens half way through."""
    meter.start()
    time.sleep(seconds / 2)
    meanwhile()
    time.sleep(seconds / 2)
    return meter.stop()


def power(reading: Reading) -> float:
    return reading.energy_j / reading.duration_s


def ready(device: str = "cuda") -> NvmlMeter:
    """A meter that has been calibrated."""
    meter = NvmlMeter(device=device)
    assert meter.calibration.periods_s
    return meter


def sidecar_of(meter: NvmlMeter | PowerMeter) -> psutil.Process:
    process = meter._sidecar.process
    assert process is not None
    return psutil.Process(process.pid)


def wait_for(what: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return what()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tier"), [("nvml", "measured"), ("nvml_power", "integrated")])
def test_the_contract(name: str, tier: str, calibrating: World) -> None:
    meter = choose("cuda", name)
    check_meter(meter, lambda: time.sleep(WINDOW_S))
    diagnosis = METERS[name].diagnose("cuda")
    assert diagnosis.available and diagnosis.name == name and diagnosis.tier == meter.tier == tier


def test_power_between_steps_with_all_that_is_told(calibrating: World) -> None:
    calibrating.change(memory_w=30.0, limit_w=650, clock_mhz=1700, temperature_c=61, reasons=0x04 | 0x40)
    meter = NvmlMeter()
    reading = window(meter)
    assert power(reading) == pytest.approx(WATTS, rel=0.01)
    assert reading.energy_j / (WATTS * PERIOD_S) == pytest.approx(round(reading.energy_j / (WATTS * PERIOD_S)))
    assert reading.duration_s < WINDOW_S + 0.1 and len(reading.steps) > 2
    assert reading.steps[0] == (0, 0) and reading.steps[-1] == (reading.duration_s, reading.energy_j)
    assert (reading.low_j, reading.high_j) == pytest.approx((0.94 * reading.energy_j, 1.06 * reading.energy_j))
    assert (reading.sampled_w, reading.memory_w, reading.limit_w) == (WATTS, 30.0, 650.0)
    assert (reading.clock_hz, reading.temperature_c) == ((1.7e9, 1.7e9), 61)
    assert reading.limited == ("power cap", "thermal slowdown")
    assert reading.guests == () and reading.disturbed is None
    assert meter.boundary == "GPU 0 (Scripted GPU, GPU-aaaa0000)"
    known = meter.calibration
    assert meter.resolution_s == known.period_s == pytest.approx(PERIOD_S, rel=0.01)
    assert known.step_j == pytest.approx(WATTS * PERIOD_S, rel=0.02) and known.latency_s >= 0.0005
    assert known.slope == pytest.approx(1.0, rel=0.02) and known.notes == ()


def test_power_samples_are_integrated(world: World) -> None:
    meter = PowerMeter()
    reading = window(meter, 0.4, lambda: world.change(watts=300.0))
    assert WATTS < power(reading) < 300 and power(reading) == pytest.approx(250, rel=0.15)
    assert reading.steps == () and reading.low_j < reading.energy_j < reading.high_j
    assert meter.boundary == "GPU 0 (Scripted GPU, GPU-aaaa0000), from power samples" and meter.resolution_s == 0.1


def test_boards_of_different_phase_are_summed(calibrating: World) -> None:
    calibrating.change(1, watts=100.0)
    meter = NvmlMeter(device="cuda:0,cuda:1")
    reading = window(meter)
    assert power(reading) == pytest.approx(300, rel=0.02) and reading.sampled_w == 300 and reading.limit_w == 1400
    assert len(meter.calibration.periods_s) == 2
    assert meter.boundary == "GPU 0 (Scripted GPU, GPU-aaaa0000) + GPU 1 (Scripted GPU, GPU-bbbb1111)"


def test_boards_that_step_together_do_not_make_each_other_late(
    calibrating: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two H200s of one host were seen to step; a read takes 3 ms there, and 12 to 15 if it meets a step."""
    monkeypatch.setattr(nvml, "CALIBRATE_S", 1.2)
    for board in (0, 1):
        calibrating.change(board, period_s=0.1, phase_s=0.03 + 0.001 * board, read_s=0.003, meeting_s=0.01)
    calibrating.change(1, watts=100.0)
    meter = NvmlMeter(device="cuda:0,cuda:1")
    assert meter.calibration.regular and meter.calibration.periods_s == pytest.approx((0.1, 0.1), abs=0.002)
    with suppress(MeterError):  # one board after the other finds its beat
        window(meter, 1.0)
    readings = [window(meter, 0.6) for _ in range(3)]
    assert [power(reading) for reading in readings] == pytest.approx([300] * 3, rel=0.01)
    assert max(len(reading.steps) for reading in readings) >= 4  # a busy machine may miss some


def test_nested_windows_share_one_sidecar(world: World) -> None:
    outer, inner = ready(), ready()
    outer.start()
    one = window(inner)
    world.change(watts=400.0)
    two = window(inner)
    whole = outer.stop()
    assert sidecar_of(outer).pid == sidecar_of(inner).pid
    assert power(one) == pytest.approx(WATTS, rel=0.02)
    assert power(whole) > WATTS and whole.energy_j > one.energy_j + 0.5 * two.energy_j


def test_windows_do_not_change_the_wall_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", time.time)  # put back afterwards: the driver sets it from here on
    world.told["wall_jumps"] = True
    world.change()
    assert power(window(NvmlMeter())) == pytest.approx(WATTS, rel=0.02)
    assert power(window(PowerMeter())) == pytest.approx(WATTS, rel=0.02)
    assert time.time() + 3600 == time.time()


# --- what boards do not tell ------------------------------------------------------------------------------------------


def test_without_a_counter_power_samples_are_taken_and_the_tier_says_so(world: World) -> None:
    world.change(faults={"energy": NOT_SUPPORTED})
    meter = choose("cuda")
    assert isinstance(meter, PowerMeter) and meter.tier == "integrated" and "power samples" in meter.boundary
    assert power(window(meter)) == pytest.approx(WATTS, rel=0.02)
    refused = NvmlMeter.diagnose("cuda")
    assert "has no energy counter" in refused.reason and "nvml_power" in refused.advice


def test_the_counter_is_preferred(world: World) -> None:
    assert isinstance(choose("cuda:1"), NvmlMeter)


def test_neither_counter_nor_power(world: World) -> None:
    world.change(faults={"energy": NOT_SUPPORTED, "power": NOT_SUPPORTED})
    with pytest.raises(MeterError, match=r"nvml: .* no energy counter.*nvml_power: GPU-aaaa0000 tells no power"):
        choose("cuda")


def test_without_instant_power_the_average_is_taken(world: World) -> None:
    world.change(averaged=True, sampled_w=170.0)
    meter = PowerMeter()
    assert meter.resolution_s == 1.0  # so windows get longer
    assert power(window(meter)) == pytest.approx(170)
    assert window(NvmlMeter()).sampled_w == 170


def test_fields_that_a_board_does_not_tell(world: World) -> None:
    fields: dict[str, dict[str, Any]] = {
        "fields": {"memory_w": None},  # power itself is told by an older call
        "power": {},
        "reasons": {"limited": ()},
        "clock": {"clock_hz": None},
        "temperature": {"temperature_c": None},
        "limit": {"limit_w": None},
        "processes": {"guests": (), "disturbed": None},
    }
    told = {"memory_w": 30.0, "limited": ("power cap",), "temperature_c": 50, "limit_w": 700.0, "sampled_w": WATTS}
    meter = ready()
    for asked, missing in fields.items():
        world.change(memory_w=30.0, reasons=4, pids=[os.getpid()], faults={asked: NOT_SUPPORTED})
        reading = window(meter)
        assert power(reading) == pytest.approx(WATTS, rel=0.02)
        assert {name: getattr(reading, name) for name in told | missing} == told | missing


# --- the counter ------------------------------------------------------------------------------------------------------


def test_a_frozen_counter_is_found_before_the_first_window(calibrating: World) -> None:
    calibrating.change(frozen=True)
    with pytest.raises(MeterError, match=r"GPU-aaaa0000 did not step twice within 0\.3 s: it is frozen.*nvml_power"):
        NvmlMeter().start()
    calibrating.change(frozen=False)
    assert power(window(NvmlMeter())) == pytest.approx(WATTS, rel=0.02)


def test_a_counter_that_is_read_too_slowly(calibrating: World) -> None:
    calibrating.change(read_s=0.015)
    with pytest.raises(MeterError, match=r"a read takes 1[5-9].* ms: its steps cannot be timed.*nvml_power"):
        NvmlMeter().start()


def test_a_counter_that_freezes_later(world: World) -> None:
    meter = ready()
    world.change(frozen=True)
    with pytest.raises(MeterError, match=r"stepped 0 time\(s\) in a window of 0.\d+ s; 2 .*, one every 40 ms"):
        window(meter)
    world.change(frozen=False)
    assert power(window(meter)) == pytest.approx(WATTS, rel=0.02)


def test_a_reset_inside_a_window(world: World) -> None:
    meter = ready()
    with pytest.raises(MeterError, match=r"GPU-aaaa0000 fell from .* the driver was reloaded or the board reset"):
        window(meter, meanwhile=lambda: world.change(reset_s=time.perf_counter() - 1))
    assert power(window(meter)) == pytest.approx(WATTS, rel=0.02)


def test_a_reset_between_windows(world: World) -> None:
    meter = ready()
    world.change(reset_s=time.perf_counter() - 1)
    assert power(window(meter)) == pytest.approx(WATTS, rel=0.02)


def test_a_millijoule_backwards_is_no_reset(world: World) -> None:
    reading = window(ready(), meanwhile=lambda: world.change(offset_mj=-1))
    assert power(reading) == pytest.approx(WATTS, rel=0.02)


def test_a_counter_in_whole_joules(calibrating: World) -> None:
    calibrating.change(watts=130.0, quantum_mj=1000)
    meter = ready()
    reading = window(meter, 0.5)
    assert abs(reading.energy_j - 130 * reading.duration_s) <= 1 + 0.02 * reading.energy_j
    assert all(joules == pytest.approx(round(joules)) for _, joules in reading.steps)


def test_a_counter_that_steps_every_half_second(calibrating: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "CALIBRATE_S", 2.0)
    calibrating.change(period_s=0.5)
    meter = ready()
    assert meter.resolution_s == pytest.approx(0.5, rel=0.02)
    assert power(window(meter, 1.2)) == pytest.approx(WATTS, rel=0.02)


def test_a_period_known_to_two_percent_loses_no_step(world: World) -> None:
    world.change(period_s=0.2)
    reader = nvml_watch.sidecar("counter", (UUIDS[0],))
    opened = reader.open([0.2045])
    time.sleep(0.9)
    seen = reader.close(opened)
    found = locate(seen.marks[0], 0.2045, seen.edges[0])
    assert len(found.times_s) >= 3
    power_w = (found.energies_j[-1] - found.energies_j[0]) / (found.times_s[-1] - found.times_s[0])
    assert power_w == pytest.approx(WATTS, rel=0.03)


def test_a_window_shorter_than_a_period(world: World) -> None:
    meter = ready()
    world.change(period_s=5.0)
    with pytest.raises(MeterError, match=r"stepped [01] time\(s\) in a window of 0.0\d s.*Lengthen the window"):
        window(meter, 0.03)


def test_counter_and_samples_that_disagree_are_said(calibrating: World) -> None:
    calibrating.change(sampled_w=100.0)
    known = NvmlMeter().calibration
    assert known.slope == pytest.approx(2.0, rel=0.05)
    assert any("the counter says 200 W and the power samples 100 W, +100%" in note for note in known.notes)


# --- errors of the driver ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meter", [NvmlMeter(), PowerMeter()])
def test_one_read_that_fails_is_tried_again(meter: NvmlMeter | PowerMeter, world: World) -> None:
    world.change(averaged=True, blips={"energy": 5, "power": 3})
    for _ in range(2):
        assert power(window(meter)) == pytest.approx(WATTS, rel=0.02)


@pytest.mark.parametrize(("device", "code"), [("cuda", LOST), ("cuda:0,cuda:1", UNKNOWN)])
def test_a_board_lost_in_a_window(device: str, code: int, world: World) -> None:
    meter, last = ready(device), device.count(",")
    with pytest.raises(MeterError, match=rf"{UUIDS[last]} could not be read: NVML error {code}. .*measure again"):
        window(meter, meanwhile=lambda: world.change(last, faults={"all": code}))
    with pytest.raises(MeterError, match=rf"NVML error {code}"):
        meter.start()
    world.change(last, faults={})
    assert power(window(meter)) == pytest.approx(WATTS * (last + 1), rel=0.02)


def test_a_board_lost_before_the_first_window(world: World) -> None:
    world.change(faults={"all": LOST})
    for name in ("nvml", "nvml_power"):
        with pytest.raises(MeterError, match=r"GPU-aaaa0000 cannot be read \(NVML error 15\).*nvidia-smi"):
            choose("cuda", name)
    with pytest.raises(MeterError, match="NVML error 15"):
        NvmlMeter().start()


def test_a_board_lost_while_power_is_sampled(world: World) -> None:
    meter = PowerMeter()
    with pytest.raises(MeterError, match="GPU-aaaa0000 could not be read: NVML error 15"):
        window(meter, meanwhile=lambda: world.change(faults={"all": LOST}))
    world.change(faults={})
    assert power(window(meter)) == pytest.approx(WATTS, rel=0.02)


def test_power_that_is_told_as_zero_is_no_energy(world: World) -> None:
    world.change(sampled_w=0.0)
    with pytest.raises(MeterError, match="of GPU-aaaa0000 are 0 W all through"):
        window(PowerMeter(), 0.1)


@pytest.mark.parametrize("moment", ["inside", "between"])
def test_a_driver_that_is_reloaded(moment: str, world: World) -> None:
    meter = ready()
    if moment == "inside":
        with pytest.raises(MeterError, match=r"NVML error 1\. .*measure again"):
            window(meter, meanwhile=lambda: world.driver(2))
    else:
        world.driver(0)  # there is none for a while
        for _ in range(2):
            with pytest.raises(MeterError, match="NVML error"):
                meter.start()
        world.driver(2)
    world.change(reset_s=time.perf_counter() - 1)
    windows, failures = [], 0
    while len(windows) < 2:
        try:
            windows.append(window(meter))
        except MeterError:
            failures += 1
            assert failures <= 1, "a reload costs one window more at the most"
    assert [power(reading) for reading in windows] == pytest.approx([WATTS] * 2, rel=0.02)


def test_without_driver_or_binding(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.driver(0)
    for member in (NvmlMeter, PowerMeter):
        assert "NVML does not start (NVML error 9)" in member.diagnose("cuda").reason
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in NvmlMeter.diagnose("cuda").advice


# --- company and limits -----------------------------------------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is not of our family."""
    told = subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    pid = int(told.stdout)
    yield pid
    os.kill(pid, signal.SIGKILL)


def test_a_program_that_comes_or_leaves_spoils_the_window(stranger: int, world: World) -> None:
    meter, ours = ready(), os.getpid()
    world.change(pids=[ours])
    came = window(meter, meanwhile=lambda: world.change(pids=[ours, stranger]))
    assert came.disturbed == f"another program started on the GPU (pid {stranger})" and came.energy_j > 0
    there = window(meter)
    assert there.disturbed is None and there.guests == (f"sleep (pid {stranger})",)
    left = window(meter, meanwhile=lambda: world.change(pids=[ours]))
    assert left.disturbed == f"a program left the GPU (pid {stranger})"
    assert window(meter).guests == ()


def test_our_own_family_is_no_guest(world: World) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        world.change(pids=[os.getpid(), os.getppid(), child.pid])
        reading = window(ready())
        child.kill()
    assert reading.guests == () and reading.disturbed is None


@pytest.mark.parametrize(
    ("pids", "guests"),
    [
        ([5_000_001], 0),  # it is us, by the number that the host gave
        ([5_000_001, 5_000_002], 1),
        ([os.getpid(), 5_000_001], 1),
    ],
)
def test_numbers_of_another_namespace(pids: list[int], guests: int, world: World) -> None:
    found = nvml_watch.guests(frozenset(pids))
    assert len(found) == guests and all("a process outside this container (pid 500000" in guest for guest in found)


def test_a_power_limit_that_is_moved(world: World) -> None:
    reading = window(ready(), meanwhile=lambda: world.change(limit_w=300))
    assert reading.disturbed == "the power limit was moved from 700 W to 300 W" and reading.limit_w == 300


def test_what_is_not_told_for_once_is_no_disturbance(world: World) -> None:
    world.change(pids=[os.getpid()])
    reading = window(ready(), meanwhile=lambda: world.change(faults={"limit": UNKNOWN, "processes": UNKNOWN}))
    assert reading.disturbed is None and reading.guests == ()


def test_what_held_the_clocks_down(world: World) -> None:
    meter = ready()
    for reasons, limited in {
        0x00: (),
        0x01 | 0x02: (),  # idle, and clocks set by the user
        0x04: ("power cap",),
        0x08: ("hardware slowdown",),
        0x20 | 0x40: ("thermal slowdown",),
        0x80: ("power brake",),
    }.items():
        world.change(reasons=reasons, clock_mhz=900)
        reading = window(meter, meanwhile=lambda: world.change(reasons=0, clock_mhz=1500))
        assert reading.limited == limited and reading.clock_hz == (0.9e9, 1.5e9)


# --- the sidecar ------------------------------------------------------------------------------------------------------


def test_a_sidecar_that_is_late_costs_no_accuracy(world: World) -> None:
    meter = ready()
    reader = sidecar_of(meter)

    def hold() -> None:
        reader.suspend()
        time.sleep(0.2)
        reader.resume()

    reading = window(meter, 0.4, hold)
    assert power(reading) == pytest.approx(WATTS, rel=0.02) and reading.duration_s > 0.4


@pytest.mark.parametrize("moment", ["at open", "inside", "at close"])
def test_a_sidecar_that_hangs(moment: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = ready()
    old = sidecar_of(meter).pid
    monkeypatch.setattr(nvml_watch, "ANSWER_S", 0.2)

    def hang() -> None:
        if moment == "inside":
            sidecar_of(meter).suspend()
        else:
            world.change(hang_s=60)

    if moment == "at open":
        hang()
    with pytest.raises(MeterError, match=r"gave no answer within 0\.2 s"):
        window(meter, meanwhile=hang)
    world.change(hang_s=0)
    assert gone(old)
    monkeypatch.setattr(nvml_watch, "ANSWER_S", 10.0)
    assert power(window(meter)) == pytest.approx(WATTS, rel=0.02)


def test_a_sidecar_that_does_not_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = NvmlMeter()
    monkeypatch.setattr(nvml_watch, "START_S", 0.0)
    with pytest.raises(MeterError, match="gave no answer within 0 s"):
        meter.start()
    monkeypatch.setattr(nvml_watch, "START_S", 30.0)
    with monkeypatch.context() as context:
        context.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(MeterError, match="cannot be started"):
            meter.start()
    assert power(window(meter)) == pytest.approx(WATTS, rel=0.02)


def test_a_sidecar_that_talks_nonsense(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    custom = tmp_path / "sitecustomize.py"
    custom.write_text("print('welcome')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MeterError, match=r"said b'welcome"):
        NvmlMeter().start()
    custom.unlink()
    assert power(window(NvmlMeter())) == pytest.approx(WATTS, rel=0.02)


@pytest.mark.parametrize("moment", ["at rest", "at open", "inside", "at close"])
def test_a_sidecar_that_is_killed(moment: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = ready()
    reader = sidecar_of(meter)
    if moment == "at rest":
        reader.kill()
        wait_for(lambda: gone(reader.pid))
    elif moment == "at open":
        reader.kill()
        wait_for(lambda: gone(reader.pid))
        monkeypatch.setattr(meter._sidecar.process, "poll", lambda: None)  # it died after we had looked
        with pytest.raises(MeterError, match=r"died \(exit status -9\). Measure again"):
            meter.start()
    elif moment == "inside":
        with pytest.raises(MeterError, match=r"died \(exit status -9\). Measure again"):
            window(meter, meanwhile=reader.kill)
    else:
        meter.start()
        time.sleep(0.1)
        world.change(hang_s=1.0)
        Timer(0.2, reader.kill).start()
        with pytest.raises(MeterError, match=r"died \(exit status -9\). Measure again"):
            meter.stop()
        world.change(hang_s=0)
    assert power(window(meter)) == pytest.approx(WATTS, rel=0.02)
    assert sidecar_of(meter).pid != reader.pid


def test_a_window_outside_one_that_lost_the_sidecar_is_lost_too(world: World) -> None:
    outer, inner = ready(), ready()
    outer.start()
    with pytest.raises(MeterError, match="died"):
        window(inner, meanwhile=sidecar_of(inner).kill)
    assert power(window(inner)) == pytest.approx(WATTS, rel=0.02)
    with pytest.raises(MeterError, match="was lost within the window"):
        outer.stop()
    assert power(window(outer)) == pytest.approx(WATTS, rel=0.02)


@pytest.mark.parametrize("moment", ["start", "stop"])
def test_an_answer_that_was_not_waited_for_is_never_taken_for_another(
    moment: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    meter = ready()
    if moment == "stop":
        meter.start()
    with monkeypatch.context() as context:
        context.setattr(nvml_watch.select, "select", interrupted)
        with pytest.raises(KeyboardInterrupt):
            getattr(meter, moment)()
    assert power(window(meter)) == pytest.approx(WATTS, rel=0.02)


def test_a_sidecar_that_cannot_be_killed_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = ready()
    process = meter._sidecar.process
    assert process is not None
    monkeypatch.setattr(nvml_watch, "ANSWER_S", 0.2)
    monkeypatch.setattr(nvml_watch, "END_S", 0.2)
    world.change(hang_s=60)  # a driver that never comes back: not even SIGKILL ends who waits in it
    with monkeypatch.context() as context:
        context.setattr(process, "kill", lambda: None)
        began = time.monotonic()
        with pytest.raises(MeterError, match="gave no answer"):
            meter.start()
        assert time.monotonic() - began < 5
    world.change(hang_s=0)
    process.kill()
    process.wait()


def test_a_sidecar_needs_neither_this_package_nor_torch(world: World) -> None:
    told = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", str(nvml_sidecar.__file__), "counter", UUIDS[0]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(FAKE)},
    )
    assert json.loads(told.stdout) == {"ready": True}
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.stderr.splitlines()}
    assert "pynvml" in loaded and not loaded & {"torch", "numpy", "psutil", "autogreen"}


# --- other processes --------------------------------------------------------------------------------------------------

ALONE = """
import os, signal, sys, time
from autogreen.errors import MeterError
from autogreen.meters import nvml, nvml_device
nvml_device._cuda, nvml.CALIBRATE_S = (lambda: None), 0.3
meter = nvml.NvmlMeter()
def window(meter):
    meter.start()
    time.sleep(0.25)
    reading = meter.stop()
    return round(reading.energy_j / reading.duration_s)
def reader(meter):
    return meter._sidecar.process.pid
"""


def alone(code: str) -> "subprocess.Popen[str]":
    """A process, in a group of its own, that has a meter and tells what it finds in lines."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", ALONE + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(FAKE), *filter(None, sys.path)))},
    )


def heard(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_a_fork_neither_uses_nor_ends_the_reader_of_its_parent(world: World) -> None:
    code = """
        window(meter)
        meter.start()
        theirs = reader(meter)
        if not (child := os.fork()):
            try:
                meter.stop()
            except MeterError as error:
                print("lost" if "lost within the window" in str(error) else error)
            print(window(meter), reader(meter) != theirs)
            sys.exit()
        os.waitpid(child, 0)
        reading = meter.stop()
        print(round(reading.energy_j / reading.duration_s), reader(meter) == theirs)
        print(window(meter), reader(meter) == theirs)
    """
    with alone(code) as process:
        assert [heard(process) for _ in range(4)] == [["lost"], ["200", "True"], ["200", "True"], ["200", "True"]]
    assert process.returncode == 0


def test_a_parent_that_is_killed_leaves_no_sidecar(world: World) -> None:
    with alone("window(meter); meter.start(); print(reader(meter)); time.sleep(60)") as process:
        reader = int(heard(process)[0])
        assert not gone(reader)
        process.kill()
    assert wait_for(lambda: gone(reader))


def test_ctrl_c_does_not_end_the_sidecar_within_a_window(world: World) -> None:
    code = """
        window(meter)
        meter.start()
        print("open")
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(0.1)
        reading = meter.stop()
        print(round(reading.energy_j / reading.duration_s))
    """
    with alone(code) as process:
        assert heard(process) == ["open"]
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert heard(process) == ["200"]
    assert process.returncode == 0


# --- which board ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "reason", "advice"),
    [
        ({"mig": 1}, "split by MIG", "Switch MIG off"),
        ({"virtualization": 2}, "is a virtual GPU", "Measure on a whole board"),
        ({"virtualization": 3}, "hosts virtual GPUs", "Measure on a whole board"),
        ({"virtualization": 4}, "shared between virtual machines", "Measure on a whole board"),
    ],
)
@pytest.mark.parametrize("name", ["nvml", "nvml_power"])
def test_a_board_shared_with_others_is_refused(
    name: str, how: dict[str, Any], reason: str, advice: str, world: World
) -> None:
    world.change(**how)
    diagnosis = METERS[name].diagnose("cuda")
    assert not diagnosis.available and reason in diagnosis.reason and advice in diagnosis.advice


def test_a_board_passed_through_whole_is_read(world: World) -> None:
    world.change(virtualization=1, faults={"mig": NOT_SUPPORTED})
    assert NvmlMeter.diagnose("cuda").available
    world.change(faults={"mig": NOT_SUPPORTED, "virtualization": NOT_SUPPORTED})
    assert NvmlMeter.diagnose("cuda").available


@pytest.mark.parametrize(
    ("visible", "device", "uuids"),
    [
        (None, "cuda", UUIDS[:1]),
        (None, "cuda:1", UUIDS[1:]),
        (None, "cuda:0,cuda:1", UUIDS),
        ("1", "cuda:0", UUIDS[1:]),
        ("1,0", "cuda:1", UUIDS[:1]),
        ("1,0", "cuda:0, cuda:1", UUIDS[::-1]),
        ("GPU-bbbb1111,GPU-aaaa0000", "cuda", UUIDS[1:]),
        ("GPU-bb", "cuda", UUIDS[1:]),
    ],
)
def test_boards_are_found_by_uuid(
    visible: str | None, device: str, uuids: list[str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert NvmlMeter(device=device).uuids == PowerMeter(device=device).uuids == tuple(uuids)


@pytest.mark.parametrize(
    ("visible", "device", "message"),
    [
        ("MIG-1234", "cuda", "names a MIG slice.*Switch MIG off"),
        ("0,MIG-GPU-aaaa0000/1/0", "cuda", "names a MIG slice"),
        ("", "cuda", "only 0 GPU"),
        ("-1", "cuda", "fits 0 boards"),
        ("7", "cuda", "fits 0 boards"),
        ("GPU-", "cuda", "fits 2 boards"),
        ("0", "cuda:1", "only 1 GPU"),
        ("0", "cuda:x", "NVML reads NVIDIA GPUs"),
        ("0", "cuda:0,cpu", "NVML reads NVIDIA GPUs"),
        ("0", "cuda:0,", "NVML reads NVIDIA GPUs"),
        ("0,1", "cuda,cuda:0", "names a GPU twice"),
        ("0,0", "cuda:0,cuda:1", "names a GPU twice"),
        ("0,GPU-aaaa0000", "cuda:0,cuda:1", "names a GPU twice"),
    ],
)
def test_boards_that_cannot_be_told(
    visible: str, device: str, message: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(MeterError, match=message):
        _ = NvmlMeter(device=device).uuids


def test_no_order_is_guessed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    with pytest.raises(MeterError, match="another order"):
        _ = NvmlMeter(device="cuda:1").uuids


def test_torch_is_asked_where_torch_sees_a_gpu(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = ["bbbb1111", "aaaa0000", "cccc2222"]
    cuda = SimpleNamespace(
        device_count=lambda: 3,
        current_device=lambda: 1,
        get_device_properties=lambda index: SimpleNamespace(uuid=seen[index]),
    )
    monkeypatch.setattr(nvml_device, "_cuda", lambda: cuda)
    assert [NvmlMeter(device=device).uuids[0] for device in ("cuda", "cuda:0")] == UUIDS
    with pytest.raises(MeterError, match="only 3 GPU"):
        _ = NvmlMeter(device="cuda:3").uuids
    with pytest.raises(MeterError, match="GPU-cccc2222 cannot be read"):
        choose("cuda:2", "nvml")


# --- on a real GPU ----------------------------------------------------------------------------------------------------


def cuda_torch() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    return torch


def busy(torch: Any) -> Callable[[float], None]:
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def work(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(20):
                a @ a
            torch.cuda.synchronize()

    return work


@pytest.mark.gpu
def test_a_gpu_keeps_the_contract_and_power_does_not_depend_on_the_window() -> None:
    work, meter = busy(cuda_torch()), choose("cuda")
    assert isinstance(meter, NvmlMeter)
    known = meter.calibration
    print(known)  # noqa: T201
    assert 0.001 < meter.resolution_s == known.period_s < 1
    assert known.slope == pytest.approx(1.0, abs=nvml.SLOPE) and known.notes == ()
    work(3.0)
    check_meter(meter, lambda: work(0.5))
    watts: dict[float, float] = {}
    for seconds in (0.5, 3.0):
        meter.start()
        work(seconds)
        reading = meter.stop()
        watts[seconds] = power(reading)
        assert reading.sampled_w == pytest.approx(power(reading), rel=0.1)
        assert reading.disturbed is None and len(reading.steps) > 2
    print(json.dumps(watts))  # noqa: T201
    assert watts[0.5] == pytest.approx(watts[3.0], rel=0.05)
    assert 100 < watts[3.0] < 1200


@pytest.mark.gpu
def test_power_samples_of_a_gpu_agree_with_its_counter() -> None:
    work, counter, sampler = busy(cuda_torch()), choose("cuda", "nvml"), choose("cuda", "nvml_power")
    work(3.0)
    check_meter(sampler, lambda: work(0.5))
    counter.start()
    sampler.start()
    work(3.0)
    assert power(sampler.stop()) == pytest.approx(power(counter.stop()), rel=0.06)


def _child_reads(queue: Any) -> None:
    meter = NvmlMeter()
    meter.start()
    time.sleep(0.5)
    queue.put(meter.stop().energy_j)


@pytest.mark.gpu
def test_a_gpu_is_read_in_a_spawned_process() -> None:
    cuda_torch()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_child_reads, args=(queue,))
    process.start()
    assert queue.get(timeout=120) > 0
    process.join()
