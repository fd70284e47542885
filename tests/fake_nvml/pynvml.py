"""A scripted driver: boards and their faults stand in a JSON file that a test rewrites while processes read it.

AUTOGREEN_FAKE_NVML    path of {"boards": [{"uuid", "watts", "period_s", ...}, ...], "driver": 1}

driver      0: there is none; another number than at nvmlInit: it was reloaded since
faults      of a board: {function: error code}, every call of it fails; "all": every call of any
blips       of a board: {function: n}, every n-th call of it in a process fails
hang_s      of a board: what each call takes
reset_s     of a board: when, on the monotonic clock, its counter began at 0 again
wall_jumps  of the world: from nvmlInit on, the wall clock of the process steps by an hour at each look
"""

import itertools
import json
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_GPU_IS_LOST = 3, 15
NVML_GPU_VIRTUALIZATION_MODE_VGPU, NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU = 2, 3
NVML_GPU_VIRTUALIZATION_MODE_HOST_VSGA = 4
NVML_FI_DEV_POWER_INSTANT, NVML_FI_DEV_POWER_AVERAGE = 186, 185
NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

_begun: tuple[int, int] | None = None  # process and driver of nvmlInit: the library lives through no fork and no reload
_calls: Counter[tuple[str, str]] = Counter()


class NVMLError(Exception):
    """The binding's one exception type, by error code."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


def _world() -> dict[str, Any]:
    with Path(os.environ["AUTOGREEN_FAKE_NVML"]).open(encoding="utf-8") as file:
        world: dict[str, Any] = json.load(file)
    return world


def _awake() -> dict[str, Any]:
    world = _world()
    if _begun != (os.getpid(), world["driver"]):
        raise NVMLError(1)
    return world


def _board(uuid: str, asked: str) -> dict[str, Any]:
    board: dict[str, Any] | None = next((board for board in _awake()["boards"] if board["uuid"] == uuid), None)
    if board is None:
        raise NVMLError(6)
    if board.get("hang_s"):
        time.sleep(board["hang_s"])
    faults, every = board.get("faults", {}), board.get("blips", {}).get(asked)
    if (code := faults.get(asked, faults.get("all"))) is not None:
        raise NVMLError(code)
    _calls[uuid, asked] += 1
    if every and _calls[uuid, asked] % every == 0:
        raise NVMLError(999)
    return board


def nvmlInit() -> None:
    global _begun
    if not (world := _world())["driver"]:
        raise NVMLError(9)
    if world.get("wall_jumps"):
        jumps = itertools.count(0, 3600)
        time.time = lambda: float(next(jumps))
    _begun = os.getpid(), world["driver"]


def nvmlDeviceGetCount() -> int:
    return len(_awake()["boards"])


def nvmlDeviceGetHandleByIndex(index: int) -> str:
    return str(_awake()["boards"][index]["uuid"])


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:
    if not any(board["uuid"] == uuid for board in _awake()["boards"]):
        raise NVMLError(6)
    return uuid


def nvmlDeviceGetUUID(handle: str) -> str:
    return handle


def nvmlDeviceGetIndex(handle: str) -> int:
    return [board["uuid"] for board in _awake()["boards"]].index(handle)


def nvmlDeviceGetName(handle: str) -> str:
    return "Scripted GPU"


def nvmlDeviceGetMigMode(handle: str) -> list[int]:
    mode = _board(handle, "mig").get("mig", 0)
    return [mode, mode]


def nvmlDeviceGetVirtualizationMode(handle: str) -> int:
    return int(_board(handle, "virtualization").get("virtualization", 1))


def nvmlDeviceGetTotalEnergyConsumption(handle: str) -> int:
    board = _board(handle, "energy")
    asked_s = time.perf_counter()
    time.sleep(board.get("read_s", 0.0005))
    beat_s = board["period_s"], board.get("phase_s", 0.0)
    if (time.perf_counter() - beat_s[1]) // beat_s[0] > (asked_s - beat_s[1]) // beat_s[0]:
        time.sleep(board.get("meeting_s", 0.0))  # a read that meets a step takes longer
    board = _board(handle, "energy_again")
    if board.get("frozen"):
        return 5_000_000
    began_s = board.get("reset_s", 0.0)
    steps = int((time.perf_counter() - began_s - board.get("phase_s", 0.0)) / board["period_s"])
    value = board["watts"] * board["period_s"] * 1000 * steps
    quantum = board.get("quantum_mj", 1)
    return int(value // quantum * quantum) + int(board.get("offset_mj", 0))


def nvmlDeviceGetPowerUsage(handle: str) -> int:
    board = _board(handle, "power")
    return int(1000 * float(board.get("sampled_w", board["watts"])))


def nvmlDeviceGetFieldValues(handle: str, asked: list[tuple[int, int]]) -> list[Any]:
    board = _board(handle, "fields")
    found = []
    for field, scope in asked:
        watts = board.get("memory_w") if scope == 2 else board.get("sampled_w", board["watts"])
        if field == NVML_FI_DEV_POWER_INSTANT and board.get("averaged"):
            watts = None
        found.append(
            SimpleNamespace(
                nvmlReturn=3 if watts is None else 0, value=SimpleNamespace(uiVal=int(1000 * float(watts or 0)))
            )
        )
    return found


def nvmlDeviceGetCurrentClocksEventReasons(handle: str) -> int:
    return int(_board(handle, "reasons").get("reasons", 0))


def nvmlDeviceGetClockInfo(handle: str, kind: int) -> int:
    return int(_board(handle, "clock").get("clock_mhz", 1500))


def nvmlDeviceGetTemperature(handle: str, kind: int) -> int:
    return int(_board(handle, "temperature").get("temperature_c", 50))


def nvmlDeviceGetEnforcedPowerLimit(handle: str) -> int:
    return int(1000 * float(_board(handle, "limit").get("limit_w", 700)))


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=0) for pid in _board(handle, "processes").get("pids", [])]
