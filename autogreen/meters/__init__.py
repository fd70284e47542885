"""How joules are read: the contract, the table of meters, and the choice of the best one for a device.

    tier         what stands behind the number                          ranked
    measured     a hardware energy counter                              best
    integrated   hardware power samples, integrated over time
    estimated    a time model; a range rather than a number             last resort, never compared with the others

A fault is a `MeterError`, never 0 J. A member of the family is a keyword-only frozen dataclass with a `device` field;
its other fields are its YAML keys. Its class also answers `diagnose(device) -> Diagnosis`, without opening a window.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, get_args

from autogreen.errors import ConfigError, MeterError
from autogreen.registry import Table, nearest

Tier = Literal["measured", "integrated", "estimated"]
TIERS: tuple[Tier, ...] = get_args(Tier)  # best first

# What can hold a device's clocks down. A power cap is normal at full load; the other three make a reading worthless.
LIMITS = ("power cap", "thermal slowdown", "hardware slowdown", "power brake")

METERS = Table(
    "meter",
    {
        "nvml": "autogreen.meters.nvml:NvmlMeter",
        "nvml_power": "autogreen.meters.nvml_power:PowerMeter",
        "rapl": "autogreen.meters.rapl:RaplMeter",
        "estimate": "autogreen.meters.estimate:EstimateMeter",
        "replay": "autogreen.meters.replay:ReplayMeter",
    },
)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was spent between a start and a stop.

    `energy_j` belongs to `duration_s`. A counter that moves in steps reports both between two of its steps, inside
    the window, so their quotient is the power of the work even when the window is a little longer.

    Attributes:
        energy_j: joules, above 0.
        low_j, high_j: the meter's own systematic range, low_j <= energy_j <= high_j. It is common to all windows:
            repeating does not narrow it, and it cancels in a ratio taken on the same device.
        duration_s: seconds on a monotonic clock, above 0.
        busy_s: core-seconds of this process and its reaped children; None where the meter does not look.
        foreign_busy_s: core-seconds of everyone else on the machine; None where the meter does not look.
        steps: (seconds, joules) since the first step of the counter, for each step seen; the last is
            (duration_s, energy_j). Empty where the meter has no steps or was not asked often enough to see them.
        sampled_w: mean of the power samples taken meanwhile, a second look at energy_j / duration_s; None: none taken.
        memory_w: mean power of the board's memory, part of the energy; None: not told.
        limit_w: the power limit in force; None: not told.
        limited: what held the clocks down at some time, of `LIMITS`.
        clock_hz: least and greatest clock seen.
        temperature_c: greatest temperature seen.
        guests: other programs that were on the device all the time, in words.
        disturbed: why the reading must not count, in words (a program came or left, the power limit was moved); None:
            nothing was seen.
    """

    energy_j: float
    low_j: float
    high_j: float
    duration_s: float
    busy_s: float | None = None
    foreign_busy_s: float | None = None
    steps: tuple[tuple[float, float], ...] = ()
    sampled_w: float | None = None
    memory_w: float | None = None
    limit_w: float | None = None
    limited: tuple[str, ...] = ()
    clock_hz: tuple[float, float] | None = None
    temperature_c: float | None = None
    guests: tuple[str, ...] = ()
    disturbed: str | None = None


class Meter(Protocol):
    """One meter on one device. One instance holds one window at a time; nested windows need one instance each."""

    @property
    def tier(self) -> Tier: ...

    @property
    def resolution_s(self) -> float:
        """Seconds between two steps of what is read. A window should hold several."""
        ...

    @property
    def boundary(self) -> str:
        """What is inside the number, in words."""
        ...

    def start(self) -> None:
        """Open a window.

        Raises:
            MeterError: a window is open already, or the meter cannot be read.
        """
        ...

    def stop(self) -> Reading:
        """Close the window, also when this raises.

        Raises:
            MeterError: no window is open, or the reading is not to be trusted (a counter that fell, froze, vanished).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a meter with counters learnt of them before its first window.

    Attributes:
        periods_s: seconds between two steps of each counter.
        regular: whether every counter keeps its beat, so that a read at any time tells which step it shows.
        step_j: mean size of a step at the power of that time.
        latency_s: median time of one read.
        power_w: power by the counters meanwhile, at rest or not.
        slope: that over the mean of the power samples, which should be 1; None: no power is told.
        notes: what is wrong, and what to do about it.
    """

    periods_s: tuple[float, ...]
    regular: bool
    step_j: float
    latency_s: float
    power_w: float
    slope: float | None
    notes: tuple[str, ...] = ()

    @property
    def period_s(self) -> float:
        """Of the slowest counter."""
        return max(self.periods_s)


class Unusable(MeterError):
    """A `MeterError` whose reason and advice `diagnose` shows apart."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}. {advice}.")
        self.reason, self.advice = reason, advice


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Whether one meter can be used for one device: if not, the `reason` and, as `advice`, what to do about it."""

    name: str
    available: bool
    tier: Tier
    reason: str
    advice: str


def diagnose(device: str) -> tuple[Diagnosis, ...]:
    """Ask every meter in the table whether it can read `device` ("cpu", "cuda", "cuda:1"), best tier first."""
    found: list[Diagnosis] = [METERS[name].diagnose(device) for name in METERS]
    return tuple(sorted(found, key=lambda diagnosis: TIERS.index(diagnosis.tier)))


def choose(device: str, name: str = "auto", **settings: Any) -> Meter:
    """Return the best available meter for `device`, or the named one.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        name: an entry of `METERS`, or "auto" for the best tier that works here.
        settings: fields of the meter (for example `watts_per_core`). With "auto", each meter takes those it knows.

    Raises:
        UnknownNameError: no meter of that name.
        ConfigError: a setting that no such meter has, or a value that it refuses.
        MeterError: the meter, or with "auto" every meter, is unavailable here; each with its reason and advice.
    """
    keys = {member: _keys(METERS[member]) for member in (METERS if name == "auto" else (name,))}
    known = sorted({key for member_keys in keys.values() for key in member_keys})
    for key in settings:
        if key not in known:
            whose = "no meter has a" if name == "auto" else f"meter {name!r} has no"
            raise ConfigError(f"{whose} setting {key!r}.{nearest(key, known)} Allowed: {', '.join(known)}.")
    diagnoses = diagnose(device) if name == "auto" else (METERS[name].diagnose(device),)
    for diagnosis in diagnoses:
        if diagnosis.available:
            taken = {key: value for key, value in settings.items() if key in keys[diagnosis.name]}
            meter: Meter = METERS[diagnosis.name](device=device, **taken)
            return meter
    causes = " ".join(f"{d.name}: {d.reason}. {d.advice}." for d in diagnoses)
    raise MeterError(f"the energy of {device!r} cannot be read here. {causes}")


def _keys(member: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(member) if field.init and field.name != "device")
