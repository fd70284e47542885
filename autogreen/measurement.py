"""What measuring is told, and what it yields: frozen values, every reading beside its statistics, to JSON and back."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from autogreen.errors import ConfigError
from autogreen.meters import LIMITS, Reading, Tier

WARMING_UP = "warming up"  # the reason of windows that were taken before they were steady


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the ends of its 95 % interval. A spread that is unknown has no `Interval`; it is never 0."""

    mean: float
    low: float
    high: float

    @property
    def standard_error(self) -> float:
        """Of the mean, if its error is normal."""
        return (self.high - self.low) / (2 * 1.96)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How long and how often to measure.

    The interval is looked at after min_windows, twice, four times as many ..., max_windows; measuring ends at the first
    look that finds it narrow enough. It allows for windows that resemble their neighbours, and pays for that: with
    fewer than 16 windows it is half as wide again as Student's and holds the truth more often than it says. Short
    windows in large number are the cheaper way to a narrow one. The defaults are for screening; `final` for what is
    published.

    Attributes:
        warmup_s: seconds of calls before the first window, 0 to 3600.
        preheat_s: seconds of windows, 0 to 3600, that may be discarded after that until four in a row are steady;
            0: the first window counts, as it does with max_windows under 4.
        window_s: least seconds of a window, above 0, at most 3600; at least 3 steps of the meter in any case.
        min_windows, max_windows: used windows, 2 <= min_windows <= max_windows <= 1000.
        target_relative: half width of the 95 % interval over the mean that is narrow enough, above 0, at most 1.
        foreign_limit: foreign busy cores above which a window is discarded and tried again, 0 or more. After
            min_windows such discards the load is taken as the machine's lot: used, with a warning.
    """

    warmup_s: float = 1.0
    preheat_s: float = 30.0
    window_s: float = 0.25
    min_windows: int = 20
    max_windows: int = 40
    target_relative: float = 0.03
    foreign_limit: float = 0.25

    def final(self) -> "Protocol":
        """The same taken further, for what is published: to ±1 %, or to 80 windows and a warning where the machine is
        too noisy for that, or to four times as many windows as this one allows, if they are fewer. A look after 20
        would find it narrow by chance too often (experiments/coverage.py).
        """
        most = min(max(80, self.max_windows), 4 * self.max_windows)
        return replace(
            self,
            min_windows=min(max(40, self.min_windows), most),
            max_windows=most,
            target_relative=min(0.01, self.target_relative),
        )

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
            ("warmup_s", "a number from 0 to 3600 (seconds)", lambda value: 0 <= value <= 3600),
            ("preheat_s", "a number from 0 to 3600 (seconds)", lambda value: 0 <= value <= 3600),
            ("window_s", "a number above 0, at most 3600 (seconds)", lambda value: 0 < value <= 3600),
            ("min_windows", "a whole number from 2 to 1000", lambda value: 2 <= value <= 1000),
            ("max_windows", "a whole number from 2 to 1000", lambda value: 2 <= value <= 1000),
            ("target_relative", "a number above 0, at most 1", lambda value: 0 < value <= 1),
            ("foreign_limit", "a number of 0 or more (busy cores)", lambda value: value >= 0),
        )
        for key, allowed, valid in rules:
            value = getattr(self, key)
            kind = int if key.endswith("windows") else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or not valid(value):
                raise ConfigError(f"{key} is {value!r}; allowed: {allowed}.")
        if self.max_windows < self.min_windows:
            raise ConfigError(
                f"max_windows is {self.max_windows}; allowed: a whole number from min_windows ({self.min_windows}) up."
            )


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window, used or not.

    Attributes:
        reading: what the meter said; None if it failed.
        calls, duration_s: calls made and the seconds they took, synchronised at both ends; of a server the requests
            that were answered, and the seconds of the window, with those in which nothing was to be done.
        used: whether it counts in the statistics.
        reason: why it was discarded, or what speaks against it though it was used; None for a clean window.
        batches: of a server, begun in this window; None: calls followed one another without a pause.
    """

    reading: Reading | None
    calls: int
    duration_s: float
    used: bool
    reason: str | None = None
    batches: int | None = None

    @property
    def energy_per_call_j(self) -> float:
        """Joules per call: the power, by the meter's clock, times the seconds per call.

        Raises:
            ValueError: the meter failed in this window.
        """
        if self.reading is None:
            raise ValueError(f"no energy was read in this window: {self.reason}")
        return self.reading.energy_j / self.reading.duration_s * (self.duration_s / self.calls)


@dataclass(frozen=True, kw_only=True)
class Served:
    """How requests that came by themselves were answered, in the windows that count.

    Attributes:
        rate_per_s: requests a second, a Poisson process.
        requests: that were answered, on which the rest is based.
        p50_s, p95_s: seconds from when a request was due to its answer, within which 50 and 95 of 100 were answered;
            95 % interval.
        fill: requests in a batch, mean.
        batch_s: seconds that a batch took, mean.
        utilization: the share of what it can answer, all batches being full, that was asked for.
    """

    rate_per_s: float
    requests: int
    p50_s: Interval
    p95_s: Interval
    fill: float
    batch_s: float
    utilization: float

    @property
    def stable(self) -> bool:
        """Whether the queue stays bounded: requests come more slowly than full batches answer them."""
        return self.utilization < 1


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one call costs, with its origin. To a server a call is a request.

    Attributes:
        energy_per_item_j: joules per item; the 95 % interval of repeating, low not under 0.
        latency_s: seconds per call, calls following one another without a pause; of a server the mean seconds from
            when a request was due to its answer.
        items_per_call: items that one call treats.
        tier, boundary: the meter's own words; tiers are never ranked against each other.
        windows: every window in order, discarded ones too.
        warnings: what may be wrong and what to do about it.
        idle_w: power of the device at rest with the program loaded, so its context and memory held; None: not
            looked at.
        served: how requests were answered; None: calls followed one another.
    """

    energy_per_item_j: Interval
    latency_s: Interval
    items_per_call: int
    tier: Tier
    boundary: str
    windows: tuple[Window, ...]
    warnings: tuple[str, ...] = ()
    idle_w: float | None = None
    served: Served | None = None

    @property
    def judged_latency_s(self) -> Interval:
        """By which latency policies are compared: seconds per call; of a server the 95th percentile of its requests."""
        return self.latency_s if self.served is None else self.served.p95_s

    @property
    def call_s(self) -> float:
        """Seconds of the device's time for a call: of a server also those in which nothing was to be done."""
        if self.served is None:
            return self.latency_s.mean
        used = [window for window in self.windows if window.used]
        return sum(window.duration_s for window in used) / sum(window.calls for window in used)

    @property
    def items_per_batch(self) -> float:
        """Items that one run of the program treats; of a server the mean, its batches not being always full."""
        return self.items_per_call * (1.0 if self.served is None else self.served.fill)

    @property
    def net_energy_per_item_j(self) -> Interval | None:
        """Joules per item above those of a device at rest for as long; None where rest was not looked at.

        Policies are ranked by gross joules: a device that waits costs its static power all the same.
        """
        if self.idle_w is None:
            return None
        rest_j = self.idle_w * self.call_s / self.items_per_call
        energy = self.energy_per_item_j
        return Interval(mean=energy.mean - rest_j, low=energy.low - rest_j, high=energy.high - rest_j)

    @property
    def energy_delay_js(self) -> float:
        """Energy-delay product of one call, joule-seconds (Gonzalez and Horowitz, "Energy dissipation in general
        purpose microprocessors", IEEE Journal of Solid-State Circuits 31, 1996)."""
        return self.energy_per_item_j.mean * self.items_per_call * self.latency_s.mean

    @property
    def power_w(self) -> float:
        """Mean power while it ran."""
        return self.energy_per_item_j.mean * self.items_per_call / self.call_s

    @property
    def limited(self) -> tuple[str, ...]:
        """What held the clocks down in windows that count, of `meters.LIMITS`: a power cap is normal at full load."""
        readings = [window.reading for window in self.windows if window.used and window.reading is not None]
        return tuple(name for name in LIMITS if any(name in reading.limited for reading in readings))

    @property
    def range_per_item_j(self) -> Interval:
        """Joules per item where the truth may lie: the interval widened by the meter's own systematic range."""
        readings = [window.reading for window in self.windows if window.used and window.reading is not None]
        total_j = sum(reading.energy_j for reading in readings)
        energy = self.energy_per_item_j
        return Interval(
            mean=energy.mean,
            low=energy.low * sum(reading.low_j for reading in readings) / total_j,
            high=energy.high * sum(reading.high_j for reading in readings) / total_j,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes and `from_json` turns back into an equal measurement."""
        data = asdict(self)
        return data | {"windows": list(data["windows"]), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Measurement":
        """The inverse of `to_json`.

        Raises:
            ConfigError: the data is not a measurement.
        """
        try:
            return cls(
                **{
                    **data,
                    "energy_per_item_j": Interval(**data["energy_per_item_j"]),
                    "latency_s": Interval(**data["latency_s"]),
                    "windows": tuple(_window(window) for window in data["windows"]),
                    "served": None if data.get("served") is None else _served(data["served"]),
                    "warnings": tuple(data["warnings"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a stored measurement: {type(error).__name__}: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Two things measured in turns.

    Attributes:
        candidate, reference: each one's own measurement.
        ratio: energy per item of the candidate over the reference's: geometric mean and 95 % interval of the
            logarithm over pairs of neighbouring windows. Slow drift and the meter's gain cancel in it.
        warnings: about the ratio; each measurement has its own besides.
    """

    candidate: Measurement
    reference: Measurement
    ratio: Interval
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes and `from_json` turns back into an equal object."""
        return {
            "candidate": self.candidate.to_json(),
            "reference": self.reference.to_json(),
            "ratio": asdict(self.ratio),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Beside":
        """The inverse of `to_json`.

        Raises:
            ConfigError: the data is not a comparison.
        """
        try:
            return cls(
                candidate=Measurement.from_json(data["candidate"]),
                reference=Measurement.from_json(data["reference"]),
                ratio=Interval(**data["ratio"]),
                warnings=tuple(data["warnings"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a stored comparison: {type(error).__name__}: {error}.") from error


def _served(data: Mapping[str, Any]) -> Served:
    return Served(**{**data, "p50_s": Interval(**data["p50_s"]), "p95_s": Interval(**data["p95_s"])})


def _window(data: Mapping[str, Any]) -> Window:
    reading = data["reading"]
    return Window(**{**data, "reading": None if reading is None else _reading(reading)})


def _reading(data: Mapping[str, Any]) -> Reading:
    """JSON knows lists only."""
    clock_hz = data.get("clock_hz")
    return Reading(
        **{
            **data,
            "steps": tuple((seconds, joules) for seconds, joules in data.get("steps", ())),
            "limited": tuple(data.get("limited", ())),
            "clock_hz": None if clock_hz is None else tuple(clock_hz),
            "guests": tuple(data.get("guests", ())),
        }
    )
