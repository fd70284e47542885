"""Meters: the contract over every table entry, and each fault of a counter that must never end in 0 J."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autogreen.errors import ConfigError, MeterError, UnknownNameError
from autogreen.meters import METERS, TIERS, choose, diagnose, estimate, nvml, nvml_device
from autogreen.meters.estimate import EstimateMeter
from autogreen.meters.nvml import NvmlMeter
from autogreen.testing import ScriptedClock, ScriptedMeter, check_meter

STEP_S = 0.01
UUIDS = ["GPU-aaaa0000", "GPU-bbbb1111"]


class NVMLError(Exception):
    """The binding's one exception type, by error code."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class Board:
    """A scripted pynvml: boards at 200 W whose counter moves every STEP_S, and faults to switch on."""

    NVMLError, NVML_ERROR_NOT_SUPPORTED = NVMLError, 3

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.faults: list[int] = []  # error codes of the next reads
        self.offset_mj, self.step_s, self.mig, self.inits, self.frozen = 5_000_000, STEP_S, 0, 0, False

    def nvmlInit(self) -> None:
        self.inits += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return UUIDS[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in UUIDS:
            raise NVMLError(6)
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetIndex(self, handle: str) -> int:
        return UUIDS.index(handle)

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "Scripted GPU"

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        return [self.mig, self.mig]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if self.faults and (fault := self.faults.pop(0)):
            raise NVMLError(fault)
        steps = 0 if self.frozen else int((time.perf_counter() - self.began) / self.step_s)
        return self.offset_mj + round(200_000 * self.step_s) * steps


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Board:
    fake = Board()
    monkeypatch.setattr("autogreen.meters.rapl_domains._ROOT", tmp_path)  # a machine without RAPL
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(nvml_device, "_initialised_in", 0)
    monkeypatch.setattr(nvml_device, "_cuda", lambda: None)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def spend(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        time.sleep(0.001)


def burn() -> None:
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in METERS if name not in ("rapl", "replay")])  # in files of their own
def test_every_meter_keeps_the_contract(name: str, board: Board) -> None:
    device = "cpu" if name == "estimate" else "cuda"
    meter = choose(device, name, **({} if device == "cpu" else {"resolution_s": STEP_S}))
    reading = check_meter(meter, burn if device == "cpu" else lambda: spend(5 * STEP_S))
    assert reading.duration_s < 5
    diagnosis = METERS[name].diagnose(device)
    assert diagnosis.available and diagnosis.name == name and diagnosis.tier == meter.tier
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


def test_auto_takes_the_best_tier_that_works(board: Board) -> None:
    assert isinstance(choose("cuda:1"), NvmlMeter)
    assert isinstance(choose("cpu", watts_per_core=5.0, resolution_s=0.5), EstimateMeter)
    assert choose("cpu", watts_per_core=5.0).watts_per_core == 5.0  # type: ignore[attr-defined]
    ranks = [TIERS.index(diagnosis.tier) for diagnosis in diagnose("cpu")]
    assert ranks == sorted(ranks) and len(ranks) == len(METERS)


def test_no_meter_at_all_says_why_and_what_to_do(board: Board) -> None:
    board.faults = [3, 3]
    with pytest.raises(MeterError, match=r"'cuda'.*nvml: GPU-aaaa0000 has no energy counter.*estimate: processor time"):
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


def test_bad_resolution() -> None:
    for bad in (0, -1, 11, True, "0.1"):
        with pytest.raises(ConfigError, match="resolution_s is"):
            NvmlMeter(resolution_s=bad)  # type: ignore[arg-type]


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


# --- nvml -------------------------------------------------------------------------------------------------------------


def window(meter: NvmlMeter, seconds: float) -> Any:
    meter.start()
    spend(seconds)
    return meter.stop()


def in_doubt(reading: Any) -> float:
    """How far power may be off on a busy machine: the step at either end has a time that is known to 15 ms."""
    return float(2 * nvml.LEAST_BLUR_S / reading.duration_s)


def test_nvml_reads_between_steps(board: Board) -> None:
    board.step_s = 0.02
    meter = NvmlMeter(resolution_s=0.02)
    reading = window(meter, 0.5)
    steps = reading.energy_j / (200 * board.step_s)
    assert steps == pytest.approx(round(steps)) and 5 <= steps <= 25  # whole steps, those inside the window only
    assert reading.energy_j / reading.duration_s == pytest.approx(200, rel=in_doubt(reading))
    assert reading.low_j == reading.energy_j == reading.high_j
    assert meter.boundary == "GPU 0 (Scripted GPU, GPU-aaaa0000)"


def test_nvml_with_a_step_shorter_than_stated_still_reads_true_power(board: Board) -> None:
    reading = window(NvmlMeter(resolution_s=0.04), 0.5)  # rests over steps, whose time it then does not know
    assert reading.energy_j / reading.duration_s == pytest.approx(200, rel=in_doubt(reading))


def test_nvml_outlives_one_failing_read(board: Board) -> None:
    board.faults = [0, 0, 999, 0, 0, 999, 0]
    assert window(NvmlMeter(resolution_s=STEP_S), 0.06).energy_j > 0


def test_nvml_vanishing_in_a_window_is_an_error_and_the_next_window_works(board: Board) -> None:
    meter = NvmlMeter(resolution_s=STEP_S)
    board.faults = [0, 0, 15, 15]
    with pytest.raises(MeterError, match=r"GPU-aaaa0000 cannot be read \(NVML error 15\)"):
        window(meter, 0.05)
    assert window(meter, 0.06).energy_j > 0


def test_nvml_gone_before_the_window(board: Board) -> None:
    board.faults = [15, 15]
    with pytest.raises(MeterError, match="cannot be read"):
        NvmlMeter().start()


def test_nvml_counter_that_falls(board: Board) -> None:
    meter = NvmlMeter(resolution_s=STEP_S)
    meter.start()
    spend(0.03)
    board.offset_mj -= 4_000_000
    spend(0.03)
    with pytest.raises(MeterError, match=r"fell from .* driver was reloaded"):
        meter.stop()


def test_nvml_one_millijoule_backwards_is_no_reset(board: Board) -> None:
    meter = NvmlMeter(resolution_s=STEP_S)
    meter.start()
    board.offset_mj -= 1
    spend(0.06)
    assert meter.stop().energy_j > 0


def test_nvml_counter_that_stands_still(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.frozen = True
    with pytest.raises(MeterError, match="stepped 0 times"):
        window(NvmlMeter(), 0.03)
    monkeypatch.setattr("autogreen.meters.nvml.FROZEN_S", 0.01)
    with pytest.raises(MeterError, match=r"stood still .* frozen"):
        window(NvmlMeter(resolution_s=0.005), 0.03)


def test_nvml_window_too_short_names_the_remedy(board: Board) -> None:
    board.step_s = 0.5
    with pytest.raises(MeterError, match=r"at least 2 are needed.*set resolution_s \(now 0.1\)"):
        window(NvmlMeter(), 0.02)


def test_nvml_broken_binding_is_not_a_still_counter(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: None)
    with pytest.raises(MeterError, match="reading the energy counter broke: TypeError"):
        NvmlMeter().start()


def test_nvml_refuses_a_board_split_by_mig(board: Board) -> None:
    board.mig = 1
    diagnosis = NvmlMeter.diagnose("cuda")
    assert not diagnosis.available and "split by MIG" in diagnosis.reason and "Switch MIG off" in diagnosis.advice


@pytest.mark.parametrize(
    ("visible", "device", "uuid"),
    [
        (None, "cuda", UUIDS[0]),
        (None, "cuda:1", UUIDS[1]),
        ("1", "cuda:0", UUIDS[1]),
        ("1,0", "cuda:1", UUIDS[0]),
        ("GPU-bbbb1111,GPU-aaaa0000", "cuda", UUIDS[1]),
        ("GPU-bb", "cuda", UUIDS[1]),
    ],
)
def test_nvml_maps_by_uuid(
    visible: str | None, device: str, uuid: str, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert NvmlMeter(device=device).uuid == uuid


@pytest.mark.parametrize(
    ("visible", "device", "message"),
    [
        ("MIG-1234", "cuda", "names a MIG slice"),
        ("", "cuda", "only 0 GPU"),
        ("-1", "cuda", "fits 0 boards"),
        ("7", "cuda", "fits 0 boards"),
        ("GPU-", "cuda", "fits 2 boards"),
        ("0", "cuda:1", "only 1 GPU"),
        ("0", "cuda:x", "NVML reads NVIDIA GPUs"),
    ],
)
def test_nvml_mapping_it_cannot_do(
    visible: str, device: str, message: str, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(MeterError, match=message):
        _ = NvmlMeter(device=device).uuid


def test_nvml_does_not_guess_an_order(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    with pytest.raises(MeterError, match="another order"):
        _ = NvmlMeter(device="cuda:1").uuid


def test_nvml_asks_torch_where_torch_sees_a_gpu(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        device_count=lambda: 2,
        current_device=lambda: 1,
        get_device_properties=lambda index: SimpleNamespace(uuid=["bbbb1111", "aaaa0000"][index]),
    )
    monkeypatch.setattr(nvml_device, "_cuda", lambda: cuda)
    assert [NvmlMeter(device=device).uuid for device in ("cuda", "cuda:0")] == [UUIDS[0], UUIDS[1]]
    with pytest.raises(MeterError, match="only 2 GPU"):
        _ = NvmlMeter(device="cuda:2").uuid


def test_nvml_without_driver_or_binding(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise NVMLError(12)

    monkeypatch.setattr(board, "nvmlInit", missing)
    assert "NVML does not start (NVML error 12)" in NvmlMeter.diagnose("cuda").reason
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in NvmlMeter.diagnose("cuda").advice


def test_nvml_is_initialised_again_in_a_forked_process(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml_device.load_nvml()
    nvml_device.load_nvml()
    assert board.inits == 1
    monkeypatch.setattr(os, "getpid", lambda: -1)  # what a forked child would see
    nvml_device.load_nvml()
    assert board.inits == 2


# --- on a real GPU ----------------------------------------------------------------------------------------------------


def cuda_torch() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    return torch


@pytest.mark.gpu
def test_nvml_on_a_gpu_keeps_the_contract_and_does_not_depend_on_the_window() -> None:
    torch = cuda_torch()
    meter = choose("cuda")
    assert meter.tier == "measured"
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def work(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(20):
                a @ a
            torch.cuda.synchronize()

    work(3.0)
    check_meter(meter, lambda: work(0.5))
    watts: dict[float, float] = {}
    for seconds in (0.5, 3.0):
        meter.start()
        work(seconds)
        reading = meter.stop()
        watts[seconds] = reading.energy_j / reading.duration_s
    print(json.dumps(watts))  # noqa: T201
    assert watts[0.5] == pytest.approx(watts[3.0], rel=0.05)
    assert 100 < watts[3.0] < 1200


def _child_reads(queue: Any) -> None:
    meter = NvmlMeter()
    meter.start()
    time.sleep(0.5)
    queue.put(meter.stop().energy_j)


@pytest.mark.gpu
def test_nvml_on_a_gpu_in_a_spawned_process() -> None:
    cuda_torch()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_child_reads, args=(queue,))
    process.start()
    assert queue.get(timeout=120) > 0
    process.join()
