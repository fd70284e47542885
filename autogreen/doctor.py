"""What this machine can measure and run, what it costs at rest and at best, and what would disturb measuring now.

Every part says what is so, and what to do about it. Nothing here is needed for measuring: what cannot be read is told
as not readable, with the reason.
"""

import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogreen import floor, hardware
from autogreen.engines import ENGINES
from autogreen.errors import MeterError
from autogreen.experiment import pick_device
from autogreen.measure import REST_S, rest
from autogreen.meters import Diagnosis, Meter, Tier, choose, diagnose
from autogreen.surroundings import NOTHING, Device, Finding, Load, governor, gpus, load_average

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Power of the device with nothing of ours running, read for about 2 s by the meter that a sweep would take.

    power_w with low_w and high_w, the meter's own range, in watts; None where the meter could not read, which `note`
    explains. resolution_s: seconds between two steps of the meter, None where it could not tell.
    """

    tier: Tier
    boundary: str
    resolution_s: float | None
    power_w: float | None = None
    low_w: float | None = None
    high_w: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Counter:
    """What a meter learnt of its counter. period_s, step_j: between two of its steps. latency_s: of a read. slope: its
    power over that of power samples; None: no samples. notes: what is wrong with it, and what to do."""

    period_s: float
    step_j: float
    latency_s: float
    slope: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Attributes:
    devices: the processor and every NVIDIA GPU of the machine, the ones hidden from PyTorch too.
    meters: best tier first; the first available one is what a sweep takes.
    counter: of the meter that a sweep takes; None where it has none or could not look.
    idle: None where no meter is available.
    costs: unit costs, where they have been measured; else `costs_note` says why not.
    disturbances: what stands in the way of quiet measuring now.
    schemes: for every quantization scheme the engines with a real kernel for it, or why there is none.
    """

    hardware: dict[str, Any]
    devices: tuple[Device, ...]
    meters: tuple[Diagnosis, ...]
    counter: Counter | None
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
        if self.counter is not None:
            table.add_row("counter", *_counter_cells(self.counter))
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
    before = Load()
    idle = None if meter is None else _rest(meter, rest_s)
    if meter is None:
        time.sleep(rest_s)
    boards, on_boards = gpus()
    disturbances = (before.finding(), load_average(), governor(), *on_boards)
    costs, note = _costs(device, described, meter, cache, measure_floor)
    return Examination(
        hardware=described,
        devices=(_processor(described), *boards),
        meters=meters,
        counter=None if meter is None else _counter(meter),
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
    boundary, resolution_s = "", None
    try:
        boundary, resolution_s = meter.boundary, meter.resolution_s
        reading = rest(meter, seconds=seconds)
    except MeterError as error:
        return Idle(tier=meter.tier, boundary=boundary, resolution_s=resolution_s, note=str(error))
    return Idle(
        tier=meter.tier,
        boundary=boundary,
        resolution_s=resolution_s,
        power_w=reading.energy_j / reading.duration_s,
        low_w=reading.low_j / reading.duration_s,
        high_w=reading.high_j / reading.duration_s,
    )


def _counter(meter: Meter) -> Counter | None:
    """After a first window, when it is known anyway."""
    try:
        found = getattr(meter, "calibration", None)
    except MeterError:  # the row of idle power says why
        return None
    if found is None:
        return None
    return Counter(**{field.name: getattr(found, field.name) for field in fields(Counter)})


def _counter_cells(counter: Counter) -> tuple[str, str, str]:
    step = f"a step of {counter.step_j:.3g} J every {counter.period_s * 1000:.4g} ms"
    here = f"{step}, read in {counter.latency_s * 1000:.2g} ms"
    agrees = "" if counter.slope is None else f"its power is {counter.slope:.3g} times that of the power samples"
    return here, agrees, "\n".join(counter.notes) or NOTHING


def _idle_cells(idle: Idle) -> tuple[str, str, str]:
    here = idle.boundary
    if idle.resolution_s is not None:
        here += f"; a step every {idle.resolution_s * 1000:.3g} ms"
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
        costs = None if cache is None else floor.kept(described, meter, cache)
    except (MeterError, OSError) as error:
        return None, f"not readable: {error}"
    if costs is None:
        return (
            None,
            "not measured yet with this meter: autogreen doctor --floor does it in 10 to 20 s, when it is quiet",
        )
    return costs, ""


def _cost_cells(costs: floor.UnitCosts | None, note: str) -> tuple[str, str, str]:
    if costs is None:
        return "none", "the least energy that work can cost here; a measurement below it is broken", note
    lines = [f"{dtype} {cost.mean:.3g} pJ/FLOP" for dtype, cost in costs.flop_pj.items()]
    lines += [f"memory {costs.byte_pj.mean:.3g} pJ/byte", f"({costs.tier}, {costs.measured})"]
    return "\n".join(lines), "\n".join(f"{dtype}: {why}" for dtype, why in costs.left_out.items()), note or NOTHING


def _schemes(device: str) -> dict[str, str]:
    from autogreen.techniques.quantization.schemes import SCHEMES, missing_kernel

    schemes = {}
    for scheme in SCHEMES:
        reasons = {
            engine: ENGINES[engine].missing(device) or missing_kernel(scheme, device=device, engine=engine)
            for engine in ENGINES
        }
        working = [engine for engine, reason in reasons.items() if reason is None]
        schemes[scheme] = f"engine: {', '.join(working)}" if working else str(next(iter(reasons.values())))
    return schemes


def _processor(described: dict[str, Any]) -> Device:
    what = f"{described['cpu']}, {described['cores']} cores, {described['cpu_capability']}, {described['system']}"
    return Device(name="cpu", what=what)
