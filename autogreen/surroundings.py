"""What stands in the way of quiet measuring now: foreign load, the frequency governor, other programs on GPUs.

Every finding says how it stands and what to do; what cannot be read is told as not readable, with the reason.
"""

import csv
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from autogreen.measurement import Protocol
from autogreen.meters.processor import machine_busy_s, own_busy_s

BUSY = Protocol.foreign_limit  # foreign busy cores from which windows are discarded
NOTICED = 0.05  # busy cores from which a process is named
NOTHING = "Nothing to do"


@dataclass(frozen=True, kw_only=True)
class Device:
    """name: "cpu" or "gpu 0", as the driver counts. uuid, limit_w (watts): of a GPU; None where not told."""

    name: str
    what: str
    uuid: str | None = None
    limit_w: float | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that can disturb a measurement: how it stands now, and what to do. number: the same as a number; None
    where it is in words only, or not readable."""

    name: str
    found: str
    advice: str
    number: float | None = None


# --- the processor ----------------------------------------------------------------------------------------------------


class Load:
    """Busy cores of everyone else between its making and `finding`."""

    def __init__(self) -> None:
        self.began, self.busy, self.processes = time.monotonic(), _busy_s(), _process_times()

    def finding(self) -> Finding:
        seconds = time.monotonic() - self.began
        busy = None if self.busy is None else _busy_s()
        if self.busy is None or busy is None:
            return _unreadable("foreign load", "the system tells no processor times")
        cores = max(0.0, busy - self.busy) / seconds
        now, names = _process_times(), []
        for pid, (name, spent_s) in now.items():
            share = (spent_s - self.processes.get(pid, (name, spent_s))[1]) / seconds
            if share >= NOTICED:
                names.append((share, f"{name} (pid {pid}) {share:.2f}"))
        who = f": {', '.join(told for _, told in sorted(names, reverse=True)[:4])}" if names else ""
        advice = NOTHING
        if cores > BUSY:
            advice = "Stop them before measuring: beside other programs processor time grows up to 20-fold"
        return Finding(name="foreign load", found=f"{cores:.2f} busy cores{who}", advice=advice, number=cores)


def _busy_s() -> float | None:
    """Busy core-seconds of the machine less our own; None where the system does not tell."""
    try:
        return machine_busy_s() - own_busy_s()
    except (OSError, RuntimeError):
        return None


def _process_times() -> dict[int, tuple[str, float]]:
    """Name and core-seconds of every other process that may be looked at."""
    import psutil

    found = {}
    try:
        for process in psutil.process_iter(["name", "cpu_times"]):
            times = process.info["cpu_times"]
            if times is not None and process.pid != os.getpid():
                found[process.pid] = (process.info["name"] or "?", times.user + times.system)
    except (OSError, RuntimeError, psutil.Error):  # their names only explain the load
        return {}
    return found


def load_average() -> Finding:
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError) as error:
        return _unreadable("load", f"the system tells no load average ({error})")
    cores = os.cpu_count() or 1
    return Finding(
        name="load",
        found=f"{load:.2f} in the last minute, on {cores} cores",
        advice=NOTHING if load < cores else "Wait until it falls: more is waiting to run than there are cores",
        number=load,
    )


def governor(folder: Path = Path("/sys/devices/system/cpu")) -> Finding:
    """Which rule sets the processor's frequency."""
    name = "frequency governor"
    try:
        found = {path.read_text().strip() for path in folder.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    except OSError as error:
        return _unreadable(name, str(error))
    if not found:
        return _unreadable(name, f"no cpufreq in {folder} (a virtual machine, a container, or not Linux)")
    advice = NOTHING
    if found != {"performance"}:
        advice = "For steadier numbers: sudo cpupower frequency-set -g performance"
    return Finding(name=name, found=", ".join(sorted(found)), advice=advice)


def _gpu_processes() -> Finding:
    name = "processes on GPUs"
    try:
        rows = _ask_driver("--query-compute-apps=gpu_uuid,pid,process_name,used_memory")
    except OSError as error:
        return _unreadable(name, str(error))
    others = [row for row in rows if row[1] != str(os.getpid())]
    told = "; ".join(f"{row[2]} (pid {row[1]}) on {row[0]}, {row[3]} MiB" for row in others) or "none"
    advice = "Stop them before measuring: the counter counts the whole board" if others else NOTHING
    return Finding(name=name, found=told, advice=advice, number=float(len(others)))


def _unreadable(name: str, why: str) -> Finding:
    return Finding(name=name, found=f"not readable: {why}", advice="")


# --- GPUs -------------------------------------------------------------------------------------------------------------


def gpus() -> tuple[tuple[Device, ...], tuple[Finding, ...]]:
    """Every GPU that the driver knows, and what runs on them; nothing of both where there is no driver."""
    try:
        rows = _ask_driver("--query-gpu=index,uuid,name,power.limit")
    except FileNotFoundError:
        return (), ()
    except OSError as error:
        return (), (_unreadable("GPUs", str(error)),)
    boards = tuple(
        Device(name=f"gpu {index}", what=what, uuid=uuid, limit_w=_number(limit)) for index, uuid, what, limit in rows
    )
    return boards, (_gpu_processes(),)


def _ask_driver(question: str) -> list[list[str]]:
    """Rows that nvidia-smi, which comes with the driver, answers.

    Raises:
        FileNotFoundError: it is not here.
        OSError: it failed; the message says how.
    """
    command = ["nvidia-smi", question, "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError("nvidia-smi did not answer within 20 s") from error
    if told.returncode:
        reason = (told.stdout + told.stderr).strip().splitlines()
        raise OSError(f"nvidia-smi failed: {reason[0] if reason else f'exit code {told.returncode}'}")
    return [row for row in csv.reader(told.stdout.splitlines(), skipinitialspace=True) if row]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None
