"""What this machine can measure and run, what it costs at rest and at best, and what would disturb measuring now.

Every part says what is so, and what to do about it. Nothing here is needed for measuring: what cannot be read is told
as not readable, with the reason.
"""

import csv
import os
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from autogreen import floor, hardware
from autogreen.engines import ENGINES
from autogreen.errors import MeterError
from autogreen.experiment import pick_device
from autogreen.measurement import Protocol
from autogreen.meters import Diagnosis, Meter, Tier, choose, diagnose
from autogreen.meters.processor import machine_busy_s, own_busy_s

if TYPE_CHECKING:
    from rich.table import Table

REST_S = 2.0  # of rest, in which idle power and foreign load are looked at
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
class Idle:
    """Power of the device with nothing of ours running, read for about 2 s by the meter that a sweep would take.

    power_w with low_w and high_w, the meter's own range, in watts; None where the meter could not read, which `note`
    explains. resolution_s: seconds between two steps of the meter.
    """

    tier: Tier
    boundary: str
    resolution_s: float
    power_w: float | None = None
    low_w: float | None = None
    high_w: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that can disturb a measurement: how it stands now, and what to do. number: the same as a number; None
    where it is in words only, or not readable."""

    name: str
    found: str
    advice: str
    number: float | None = None


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Attributes:
    devices: the processor and every NVIDIA GPU of the machine, the ones hidden from PyTorch too.
    meters: best tier first; the first available one is what a sweep takes.
    idle: None where no meter is available.
    costs: unit costs, where they have been measured; else `costs_note` says why not.
    disturbances: what stands in the way of quiet measuring now.
    schemes: for every quantization scheme the engines with a real kernel for it, or why there is none.
    """

    hardware: dict[str, Any]
    devices: tuple[Device, ...]
    meters: tuple[Diagnosis, ...]
    idle: Idle | None
    costs: floor.UnitCosts | None
    costs_note: str
    disturbances: tuple[Finding, ...]
    schemes: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def table(self) -> "Table":
        """For a terminal."""
        from rich.table import Table

        table = Table(title=hardware.name(self.hardware), show_lines=True)
        for column in ("", "here", "why", "what to do"):
            table.add_column(column, overflow="fold")
        for device in self.devices:
            limit = "" if device.limit_w is None else f"limit {device.limit_w:.0f} W"
            table.add_row(f"device {device.name}", device.what, device.uuid or "", limit)
        for meter in self.meters:
            here = f"yes ({meter.tier})" if meter.available else "no"
            table.add_row(f"meter {meter.name}", here, meter.reason, meter.advice)
        if self.idle is not None:
            table.add_row("idle power now", *_idle_cells(self.idle))
        table.add_row("unit costs", *_cost_cells(self.costs, self.costs_note))
        for finding in self.disturbances:
            table.add_row(finding.name, finding.found, "", finding.advice)
        for scheme, told in self.schemes.items():
            table.add_row(f"scheme {scheme}", "yes" if told.startswith("engine") else "no", told, "")
        return table


def examine(
    device: str = "auto", *, cache: Path | None = None, measure_floor: bool = False, rest_s: float = REST_S
) -> Examination:
    """Look at everything; takes about `rest_s` seconds, 10 to 20 s more where the unit costs are to be measured.

    Args:
        device: "auto", "cpu" or "cuda:1".
        cache: where unit costs are kept; None: none are looked up or kept.
        measure_floor: measure the unit costs now, and keep them.

    Raises:
        ConfigError: no such device.
    """
    device = pick_device(device)
    described, meters = hardware.describe(device), diagnose(device)
    meter = _best(device)
    before = _Load()
    idle = None if meter is None else _rest(meter, rest_s)
    if meter is None:
        time.sleep(rest_s)
    boards, on_boards = gpus()
    disturbances = (before.finding(), _load_average(), governor(), *on_boards)
    costs, note = _costs(device, described, meter, cache, measure_floor)
    return Examination(
        hardware=described,
        devices=(_processor(described), *boards),
        meters=meters,
        idle=idle,
        costs=costs,
        costs_note=note,
        disturbances=disturbances,
        schemes=_schemes(device),
    )


# --- meters, idle power and unit costs --------------------------------------------------------------------------------


def _best(device: str) -> Meter | None:
    try:
        return choose(device)
    except MeterError:  # the diagnoses say why
        return None


def _rest(meter: Meter, seconds: float) -> Idle:
    boundary = ""
    try:
        boundary = meter.boundary
        meter.start()
        time.sleep(seconds)
        reading = meter.stop()
    except MeterError as error:
        return Idle(tier=meter.tier, boundary=boundary, resolution_s=meter.resolution_s, note=str(error))
    return Idle(
        tier=meter.tier,
        boundary=boundary,
        resolution_s=meter.resolution_s,
        power_w=reading.energy_j / reading.duration_s,
        low_w=reading.low_j / reading.duration_s,
        high_w=reading.high_j / reading.duration_s,
    )


def _idle_cells(idle: Idle) -> tuple[str, str, str]:
    here = f"{idle.boundary}; a step every {idle.resolution_s * 1000:.3g} ms"
    if idle.power_w is None:
        return "not readable", here, idle.note
    span = "" if idle.low_w == idle.high_w else f" ({idle.low_w:.3g} to {idle.high_w:.3g})"
    advice = "Assumed, not seen: a model has no eye for rest" if idle.tier == "estimated" else NOTHING
    return f"{idle.power_w:.3g} W{span}, {idle.tier}", here, advice


def _costs(
    device: str, described: dict[str, Any], meter: Meter | None, cache: Path | None, measure_now: bool
) -> tuple[floor.UnitCosts | None, str]:
    if meter is None:
        return None, "not measured: no meter is available"
    try:
        if measure_now:
            fresh = floor.measure_costs(device, meter)
            return fresh, "" if cache is None else f"kept in {floor.keep(fresh, cache)}"
        costs = None if cache is None else floor.kept(described, cache)
    except (MeterError, OSError) as error:
        return None, f"not readable: {error}"
    if costs is None:
        return None, "not measured yet: autogreen doctor --floor does it in 10 to 20 s, on a quiet machine"
    if not costs.fits(meter.tier, meter.boundary):
        return costs, "of another meter than today's: renew them with autogreen doctor --floor"
    return costs, ""


def _cost_cells(costs: floor.UnitCosts | None, note: str) -> tuple[str, str, str]:
    if costs is None:
        return "none", "the least energy that work can cost here; a measurement below it is broken", note
    lines = [f"{dtype} {cost.mean:.3g} pJ/FLOP" for dtype, cost in costs.flop_pj.items()]
    lines += [f"memory {costs.byte_pj.mean:.3g} pJ/byte", f"({costs.tier}, {costs.measured})"]
    return "\n".join(lines), "\n".join(f"{dtype}: {why}" for dtype, why in costs.left_out.items()), note or NOTHING


def _schemes(device: str) -> dict[str, str]:
    from autogreen.techniques.quantization import Scheme, missing_kernel

    schemes = {}
    for scheme in get_args(Scheme):
        reasons = {engine: missing_kernel(scheme, device=device, engine=engine) for engine in ENGINES}
        working = [engine for engine, reason in reasons.items() if reason is None]
        schemes[scheme] = f"engine: {', '.join(working)}" if working else str(next(iter(reasons.values())))
    return schemes


# --- what disturbs measuring ------------------------------------------------------------------------------------------


class _Load:
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


def _load_average() -> Finding:
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


# --- devices ----------------------------------------------------------------------------------------------------------


def _processor(described: dict[str, Any]) -> Device:
    what = f"{described['cpu']}, {described['cores']} cores, {described['cpu_capability']}, {described['system']}"
    return Device(name="cpu", what=what)


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
