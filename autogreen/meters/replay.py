"""Windows of the past, played back: the same readings again, without the machine that gave them.

A recording is one JSON object; `autogreen compare --record FILE` writes it:

    format, autogreen, hardware     what wrote it, and where
    item, notes                     what is counted; what is to be known about it
    tier, boundary, resolution_s    the meter's own words
    idle_w                          watts of the device at rest, or null
    protocol                        under which it was measured
    sides     {NAME: {name, items_per_call, call_s}}                        candidate and reference, or one alone
    windows   [{side, calls, duration_s, reading | null, reason | null}]    in the order they were taken

Measuring again on a recording takes the meter's own `call` and `clock` in place of work and time.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

from autogreen.errors import MeterError
from autogreen.meters import LIMITS, TIERS, Diagnosis, Reading, Tier

# What a file asks for beyond is never done replaying; nothing that was measured is near.
MOST_CALLS = 10_000_000  # in a window
LEAST_CALL_S = 1e-9
MOST_RESOLUTION_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of those that were measured. name: in words. call_s: seconds a call was expected to take when the first
    window was opened."""

    name: str
    items_per_call: int
    call_s: float


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One window: whose, calls made, seconds they took; a reading, or the reason why there is none."""

    side: str
    calls: int
    duration_s: float
    reading: Reading | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a file holds, checked. See the head of this module."""

    autogreen: str
    hardware: Mapping[str, Any]
    item: str
    notes: tuple[str, ...]
    tier: Tier
    boundary: str
    resolution_s: float
    idle_w: float | None
    protocol: Mapping[str, Any]
    sides: Mapping[str, Side]
    windows: tuple[Taken, ...]


@dataclass(frozen=True, kw_only=True)
class ReplayMeter:
    """Plays a saved recording back: `start` and `stop` give its readings, in their order.

        meter = ReplayMeter(readings=FILE)
        a, b = meter.call("candidate"), meter.call("reference")
        measure_beside(a, b, ..., meter=meter, clock=meter.clock)

    measures once more what was measured then: under the recording's own protocol the same numbers, bit by bit; under
    one that takes fewer windows what would have come out. A window of as many calls as were recorded lasts as long as
    it did; of another number, in proportion. Tier and boundary are those of the recording.

    Attributes:
        readings: path of the recording.
    """

    readings: Path
    device: str = "cpu"

    FORMAT: ClassVar[int] = 2  # of the file; 1 held less of each reading

    def __post_init__(self) -> None:
        _ = self.recording  # a damaged one is refused before anything is measured

    @staticmethod
    def diagnose(device: str) -> Diagnosis:
        return Diagnosis(
            name="replay",
            available=False,
            tier="estimated",
            reason=f"plays a recording back and reads nothing of {device!r}",
            advice="Use `autogreen compare --replay FILE`, or ReplayMeter(readings=FILE) from Python",
        )

    @cached_property
    def recording(self) -> Recording:
        path = Path(self.readings)
        try:
            data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except OSError as error:
            raise MeterError(
                f"the recording {path} cannot be read: {error.strerror}. Name an existing file."
            ) from error
        except (ValueError, RecursionError) as error:
            raise MeterError(
                f"{path} is no recording, or was cut off ({str(error) or 'nested too deeply'}). Record again with "
                "`autogreen compare A B --record FILE`, or copy the file again."
            ) from None
        return _recording(_Part(data, str(path)))

    @property
    def tier(self) -> Tier:
        return self.recording.tier

    @property
    def resolution_s(self) -> float:
        return self.recording.resolution_s

    @property
    def boundary(self) -> str:
        return f"{self.recording.boundary}, replayed"

    @cached_property
    def _state(self) -> "_State":
        return _State(left=list(self.recording.windows))

    def start(self) -> None:
        state = self._state
        if state.open:
            raise MeterError("a window is open already: stop it first.")
        if state.next() is None:
            raise self._ran_out()
        state.open, state.calls = True, 0

    def stop(self) -> Reading:
        state = self._state
        if not state.open:
            raise MeterError("no window is open: call start first.")
        state.open, state.calls = False, 0
        window = state.next()
        if window is None:
            raise self._ran_out()
        state.left.remove(window)
        state.idle_s = 0.0
        if window.reading is None:
            raise MeterError(str(window.reason))
        return window.reading

    def call(self, side: str) -> Callable[[], None]:
        """What stands for one call of a side: it does nothing, and `clock` moves on by what it took.

        Raises:
            MeterError: no such side was recorded.
        """
        if side not in self.recording.sides:
            raise MeterError(f"{self.readings} has no side {side!r}; it has {', '.join(self.recording.sides)}.")
        state, call_s = self._state, self.recording.sides[side].call_s
        most = 10 * max((window.calls for window in self.recording.windows if window.side == side), default=0) + 1000

        def call() -> None:
            state.side = side
            state.calls += 1
            state.idle_s += call_s
            if state.calls > most:
                raise MeterError(
                    f"{self.readings}: sides.{side}.call_s is {call_s!r}, so short that over {most} calls would fill a "
                    f"window; none was recorded with more than {most // 10}. The recording is damaged: record again."
                )

        return call

    def clock(self) -> float:
        """Seconds since the window was opened, or, between windows, since the last one was closed.

        It starts at 0 in every window, so that what it shows at the end is the recorded duration to the last bit.
        """
        state = self._state
        if not state.open:
            return state.idle_s
        window = state.next()
        if window is None or state.calls == 0:
            return 0.0
        # the first form is exact, the second rounds
        return window.duration_s if state.calls == window.calls else window.duration_s * state.calls / window.calls

    def _ran_out(self) -> MeterError:
        whose = f" of the {self._state.side}" if self._state.side else ""
        return MeterError(
            f"the recording {self.readings} has no more windows{whose}; it holds {len(self.recording.windows)} in all. "
            "Ask for fewer windows or a wider target, or measure again."
        )


@dataclass(kw_only=True)
class _State:
    """How far the tape has run. side: whose call was the last; None before any. calls: in the open window, or since
    the last one was closed."""

    left: list[Taken]
    side: str | None = None
    open: bool = False
    calls: int = 0
    idle_s: float = 0.0

    def next(self) -> Taken | None:
        return next((window for window in self.left if self.side in (None, window.side)), None)


class _Part:
    """One mapping of the file, asked key by key."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise MeterError(f"{where} is no mapping but {str(data)[:40]!r}: the recording is damaged. Record again.")
        self.data, self.where = data, where

    def get(self, key: str, kind: type) -> Any:
        if key not in self.data:
            raise MeterError(f"{self.where} lacks {key!r}: it is no recording, or it is damaged. Record again.")
        if not isinstance(self.data[key], kind):
            raise self.refused(key, _WORDS[kind])
        return self.data[key]

    def number(self, key: str, *, above: float | None = None) -> float:
        """A finite number of 0 or more, or above `above`."""
        value = self.get(key, object)
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number < 0 or (above is not None and number <= above):
            raise self.refused(key, "a number of 0 or more" if above is None else f"a number above {above:g}")
        return number

    def optional(self, key: str) -> float | None:
        """A number of 0 or more, or null."""
        return None if self.get(key, object) is None else self.number(key)

    def count(self, key: str) -> int:
        value = self.get(key, object)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_CALLS:
            raise self.refused(key, f"a whole number from 1 to {MOST_CALLS:,}")
        return value

    def texts(self, key: str, allowed: tuple[str, ...] | None = None) -> tuple[str, ...]:
        if not all(isinstance(text, str) and (allowed is None or text in allowed) for text in self.get(key, list)):
            raise self.refused(key, f"a list of {'texts' if allowed is None else ', '.join(allowed)}")
        return tuple(self.data[key])

    def pair(self, key: str) -> tuple[float, float]:
        """Two finite numbers of 0 or more."""
        value = self.get(key, list)
        if len(value) != 2:
            raise self.refused(key, "two numbers")
        one, two = (_Part({key: number}, self.where).number(key) for number in value)
        return one, two

    def only(self, cls: Any, *more: str) -> None:
        """Refuse keys that are neither a field of `cls` nor among `more`."""
        if extra := sorted(self.data.keys() - {*more, *(field.name for field in fields(cls))}):
            raise MeterError(f"{self.where} has unknown keys: {', '.join(map(repr, extra))}. Record again.")

    def refused(self, key: str, allowed: str) -> MeterError:
        value = str(self.data[key])[:40]
        return MeterError(
            f"{self.where}: {key} is {value!r}; allowed: {allowed}. The recording is damaged: record again."
        )


def _recording(part: _Part) -> Recording:
    if (found := part.get("format", object)) != ReplayMeter.FORMAT:
        known = ReplayMeter.FORMAT
        raise MeterError(
            f"{part.where} has format {found!r}; this autogreen reads format {known} only. Record again, or use the "
            "autogreen that wrote it."
        )
    part.only(Recording, "format")
    if part.get("tier", str) not in TIERS:
        raise part.refused("tier", f"one of {', '.join(TIERS)}")
    if part.number("resolution_s", above=0.0) > MOST_RESOLUTION_S:
        raise part.refused("resolution_s", f"a number up to {MOST_RESOLUTION_S:g}")
    sides = {name: _side(_Part(side, f"{part.where}: sides.{name}")) for name, side in part.get("sides", dict).items()}
    windows = tuple(
        _taken(_Part(window, f"{part.where}: windows[{place}]"), tuple(sides))
        for place, window in enumerate(part.get("windows", list))
    )
    return Recording(
        autogreen=part.get("autogreen", str),
        hardware=part.get("hardware", dict),
        item=part.get("item", str),
        notes=part.texts("notes"),
        tier=cast(Tier, part.data["tier"]),
        boundary=part.get("boundary", str),
        resolution_s=part.number("resolution_s", above=0.0),
        idle_w=part.optional("idle_w"),
        protocol=part.get("protocol", dict),
        sides=sides,
        windows=windows,
    )


_WORDS: dict[type, str] = {str: "text", dict: "a mapping", list: "a list"}


_OPTIONAL = ("busy_s", "foreign_busy_s", "sampled_w", "memory_w", "limit_w", "temperature_c")


def _side(part: _Part) -> Side:
    part.only(Side)
    return Side(
        name=part.get("name", str),
        items_per_call=part.count("items_per_call"),
        call_s=part.number("call_s", above=LEAST_CALL_S),
    )


def _taken(part: _Part, sides: tuple[str, ...]) -> Taken:
    part.only(Taken)
    if part.get("side", str) not in sides:
        raise part.refused("side", f"one of {', '.join(sides) or 'none'}")
    reading, reason = part.get("reading", object), part.get("reason", object)
    if reason is not None and not isinstance(reason, str):
        raise part.refused("reason", "text or null")
    if reading is None and not reason:
        raise part.refused("reading", "a reading, or null with a reason")
    return Taken(
        side=part.data["side"],
        calls=part.count("calls"),
        duration_s=part.number("duration_s"),
        reading=None if reading is None else _reading(_Part(reading, f"{part.where}.reading")),
        reason=reason,
    )


def _reading(part: _Part) -> Reading:
    part.only(Reading)
    energy_j, low_j, high_j, duration_s = (
        part.number(key, above=0.0 if key != "low_j" else None) for key in ("energy_j", "low_j", "high_j", "duration_s")
    )
    if not low_j <= energy_j <= high_j:
        raise part.refused("energy_j", f"a number from low_j ({low_j:g}) to high_j ({high_j:g})")
    disturbed = part.get("disturbed", object)
    if disturbed is not None and not isinstance(disturbed, str):
        raise part.refused("disturbed", "text or null")
    steps = [
        _Part({"steps": step}, f"{part.where}: steps[{place}]").pair("steps")
        for place, step in enumerate(part.get("steps", list))
    ]
    return Reading(
        energy_j=energy_j,
        low_j=low_j,
        high_j=high_j,
        duration_s=duration_s,
        steps=tuple(steps),
        limited=part.texts("limited", LIMITS),
        clock_hz=None if part.get("clock_hz", object) is None else part.pair("clock_hz"),
        guests=part.texts("guests"),
        disturbed=disturbed,
        **{key: part.optional(key) for key in _OPTIONAL},
    )


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no finite number")
