"""Finding NVIDIA boards in NVML and opening their counters; every way that can fail, with its reason."""

import os
import time
from collections.abc import Callable
from typing import Any

from autogreen.meters import Unusable

RETRY_S = 0.001  # before the second try of a read that failed


_initialised_in = 0  # the process id: NVML does not survive a fork


def load_nvml() -> Any:
    """The pynvml module, initialised in this very process."""
    global _initialised_in
    try:
        import pynvml
    except ImportError as error:
        raise Unusable(f"pynvml cannot be imported ({error})", "Install it: pip install nvidia-ml-py") from error
    if _initialised_in != os.getpid():
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise Unusable(
                f"NVML does not start ({error})",
                "Install the NVIDIA driver (in a container, pass the GPU through), or run on cpu",
            ) from error
        _initialised_in = os.getpid()
    return pynvml


def lost(uuid: str, error: Exception) -> Unusable:
    return Unusable(f"{uuid} cannot be read ({error})", "Look at it with nvidia-smi; a lost board wants a reboot")


def open_counter(uuid: str) -> float:
    """Read the energy counter of one board once, in joules.

    Raises:
        Unusable: there is none, it counts for others too, or it cannot be read.
    """
    nvml, handle = _open(uuid)
    try:
        return float(_twice(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))) / 1000
    except nvml.NVMLError as error:
        if getattr(error, "value", None) == nvml.NVML_ERROR_NOT_SUPPORTED:
            raise Unusable(
                f"{uuid} has no energy counter ({error}; boards before Volta have none)",
                "Its power samples can be integrated: meter nvml_power",
            ) from error
        raise lost(uuid, error) from error


def open_power(uuid: str) -> float:
    """Read the power of one board once, in watts.

    Raises:
        Unusable: it is not told, is that of others too, or cannot be read.
    """
    nvml, handle = _open(uuid)
    try:
        return float(_twice(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle))) / 1000
    except nvml.NVMLError as error:
        if getattr(error, "value", None) == nvml.NVML_ERROR_NOT_SUPPORTED:
            raise Unusable(f"{uuid} tells no power ({error})", "Measure on another board") from error
        raise lost(uuid, error) from error


def instant_power(uuid: str) -> bool:
    """Whether a board tells its power at an instant, and not an average only."""
    nvml, handle = _open(uuid)
    try:
        found = nvml.nvmlDeviceGetFieldValues(handle, [(nvml.NVML_FI_DEV_POWER_INSTANT, 0)])[0]
    except nvml.NVMLError:
        return False
    return bool(found.nvmlReturn == 0)


def describe(uuids: tuple[str, ...]) -> str:
    """The boards in words, as the boundary of a measurement."""
    nvml, told = load_nvml(), []
    for uuid in uuids:
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            told.append(f"GPU {nvml.nvmlDeviceGetIndex(handle)} ({nvml.nvmlDeviceGetName(handle)}, {uuid})")
        except nvml.NVMLError as error:
            raise lost(uuid, error) from error
    return " + ".join(told)


def _open(uuid: str) -> tuple[Any, Any]:
    """pynvml, and the handle of a board whose joules are the measured program's alone."""
    nvml = load_nvml()
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        raise lost(uuid, error) from error
    if _told(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0]):
        raise Unusable(
            f"{uuid} is split by MIG and its counter counts all slices together",
            "Switch MIG off for this board, or measure on another one",
        )
    shared = {
        nvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU: "is a virtual GPU: its joules are those of a board shared with others",
        nvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU: "hosts virtual GPUs and its counter counts all of them together",
        nvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VSGA: "is shared between virtual machines",
    }
    if (mode := _told(nvml, lambda: nvml.nvmlDeviceGetVirtualizationMode(handle))) in shared:
        raise Unusable(f"{uuid} {shared[mode]}", "Measure on a whole board, or on one passed through")
    return nvml, handle


def _told(nvml: Any, ask: Callable[[], Any]) -> Any:
    """What boards of other kinds answer with NOT_SUPPORTED, then None."""
    try:
        return ask()
    except nvml.NVMLError:
        return None


def _twice(nvml: Any, ask: Callable[[], Any]) -> Any:
    """One failing read is tried again once."""
    try:
        return ask()
    except nvml.NVMLError:
        time.sleep(RETRY_S)
    return ask()


def find_uuids(device: str) -> tuple[str, ...]:
    """The NVML UUIDs of one or several PyTorch devices: "cuda", "cuda:1", "cuda:0,cuda:1".

    Raises:
        Unusable: one of them is no NVIDIA GPU, not here, not to be told apart, or named twice.
    """
    uuids = tuple(_find(one.strip()) for one in device.split(","))
    if len(set(uuids)) < len(uuids):
        raise Unusable(f"{device!r} names a GPU twice", "Name each once")
    return uuids


def _find(device: str) -> str:
    """The NVML UUID of a PyTorch device, whatever CUDA_VISIBLE_DEVICES holds: indices, UUIDs, in any order.

    PyTorch itself is asked where it sees a GPU. Else the variable is read, and an index is believed only where NVML
    and CUDA are bound to count alike.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdecimal() or device == "cuda"):
        raise Unusable(f"NVML reads NVIDIA GPUs, and the device is {device!r}", "Run on cuda to measure a GPU")
    index = int(number or 0)
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [entry.strip() for entry in (variable or "").split(",") if entry.strip()]
    if any(entry.startswith("MIG-") for entry in visible):
        raise Unusable(
            "CUDA_VISIBLE_DEVICES names a MIG slice, and the counter counts all slices of a board together",
            "Switch MIG off for this board, or measure on another one",
        )
    nvml = load_nvml()
    if (cuda := _cuda()) is not None:
        if index >= cuda.device_count():
            raise Unusable(f"there is no {device!r}, only {cuda.device_count()} GPU(s)", "Correct the device")
        if not number:
            index = cuda.current_device()
        return f"GPU-{str(cuda.get_device_properties(index).uuid).removeprefix('GPU-')}"
    try:
        boards = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        uuids = [str(nvml.nvmlDeviceGetUUID(board)) for board in boards]
    except nvml.NVMLError as error:
        raise lost("a GPU", error) from error
    entries = [str(i) for i in range(len(uuids))] if variable is None else visible
    if index >= len(entries):
        raise Unusable(f"there is no {device!r}, only {len(entries)} GPU(s) are visible", "Correct the device")
    entry = entries[index]
    if not entry.isdecimal():
        matching = [uuid for uuid in uuids if uuid.startswith(entry)]  # CUDA takes an unambiguous beginning
    elif len(uuids) == 1 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        matching = uuids[int(entry) : int(entry) + 1]
    else:
        raise Unusable(
            f"which board is {device!r}? CUDA may count {len(uuids)} boards in another order than NVML",
            "Install PyTorch with CUDA, or set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name UUIDs in CUDA_VISIBLE_DEVICES",
        )
    if len(matching) != 1:
        raise Unusable(f"{entry!r} in CUDA_VISIBLE_DEVICES fits {len(matching)} boards", f"There are: {uuids}")
    return matching[0]


def _cuda() -> Any:
    """`torch.cuda` where PyTorch sees a GPU, else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda if torch.cuda.is_available() else None
