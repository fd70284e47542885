"""Which machine this is: stated with every number, and part of a study's fingerprint."""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any


def describe(device: str) -> dict[str, Any]:
    """Name of the device, cores, driver and the versions that decide which kernels run."""
    import torch

    found: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        import pynvml

        pynvml.nvmlInit()
        found |= {"gpu": torch.cuda.get_device_name(device), "driver": str(pynvml.nvmlSystemGetDriverVersion())}
    return found


def name(hardware: dict[str, Any]) -> str:
    """One short line."""
    if "gpu" in hardware:
        return str(hardware["gpu"])
    return f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['cpu_capability']}"


def identity(described: Mapping[str, Any]) -> dict[str, str]:
    """What figures that outlive a study belong to, of `describe`: machine, driver and PyTorch."""
    return {
        "machine": name(dict(described)),
        "driver": str(described.get("driver", "none")),
        "torch": str(described["torch"]),
    }


def kept_file(folder: Path, of: Mapping[str, Any]) -> Path:
    """Where figures of one machine, driver, PyTorch, tier and boundary are kept; what else `of` holds says nothing."""
    told = {key: of[key] for key in ("machine", "driver", "torch", "tier", "boundary")}
    return folder / f"{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]}.json"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def synchronizer(device: str) -> Callable[[], object]:
    """What waits until this device has done all queued work. Of several boards this one, which need not be PyTorch's
    current one; a CPU queues nothing."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return partial(torch.cuda.synchronize, device)
