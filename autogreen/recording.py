"""Recordings: every window of a measurement in the order it was taken, saved, and measured once more without the
machine. What a file holds is told in `autogreen/meters/replay.py`."""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autogreen import hardware
from autogreen.errors import ConfigError, MeterError
from autogreen.files import whole
from autogreen.measure import measure_beside
from autogreen.measurement import Beside, Measurement, Protocol, Window
from autogreen.meters import METERS, Meter, Reading, Tier
from autogreen.schema import build
from autogreen.windows import WINDOW_STEPS

SIDES = ("candidate", "reference")
HAIR = 1e-9  # relative: so that rounding does not add a call to a window


class Tape:
    """One side's meter, which notes in an order that both sides share whose each window was."""

    def __init__(self, meter: Meter, side: str, order: list[str]) -> None:
        self.meter, self.side, self.order = meter, side, order

    @property
    def tier(self) -> Tier:
        return self.meter.tier

    @property
    def resolution_s(self) -> float:
        return self.meter.resolution_s

    @property
    def boundary(self) -> str:
        return self.meter.boundary

    def start(self) -> None:
        self.meter.start()

    def stop(self) -> Reading:
        try:
            return self.meter.stop()
        finally:
            self.order.append(self.side)


def recorded(
    sides: Mapping[str, Measurement],
    *,
    order: Iterable[str],
    names: Mapping[str, str],
    resolution_s: float,
    protocol: Protocol,
    hardware: Mapping[str, Any],
    item: str,
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """The recording of what was measured under a protocol, as plain data.

    Args:
        sides: `candidate` and `reference` of a comparison, or one of them. names: what each is, in words.
        order: whose each window was, as `Tape` noted it.
    """
    import autogreen

    # Any number in the range that a call was expected to take gives the recorded number of calls again; this is its
    # least, and as the least wins over what later windows took, those come out as recorded too.
    least_s = max(protocol.window_s, WINDOW_STEPS * resolution_s) * (1 + HAIR)
    left = {side: iter(measurement.windows) for side, measurement in sides.items()}
    some = next(iter(sides.values()))
    return {
        "format": METERS["replay"].FORMAT,
        "autogreen": autogreen.__version__,
        "hardware": dict(hardware),
        "item": item,
        "notes": list(notes),
        "tier": some.tier,
        "boundary": some.boundary,
        "resolution_s": resolution_s,
        "idle_w": some.idle_w,
        # JSON has no infinity
        "protocol": asdict(replace(protocol, foreign_limit=min(protocol.foreign_limit, sys.float_info.max))),
        "sides": {
            side: {
                "name": names[side],
                "items_per_call": measurement.items_per_call,
                "call_s": least_s / measurement.windows[0].calls,
            }
            for side, measurement in sides.items()
        },
        "windows": [_plain(side, next(left[side])) for side in order],
    }


def save(recording: Mapping[str, Any], path: Path) -> None:
    """Write a recording, all of it or nothing.

    Raises:
        ConfigError: the file exists, or cannot be written.
    """
    check_new(path)
    try:
        with whole(path) as partial:
            partial.write_text(json.dumps(recording, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the recording {path} cannot be written: {error.strerror}. Name another file.") from error


def check_new(path: Path) -> None:
    """Refuse a file that exists, or whose folder does not, before anything is measured for it.

    Raises:
        ConfigError: says which.
    """
    if path.exists():
        raise ConfigError(f"{path} exists and would be lost. Name a new file for the recording.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: its folder does not exist. Make it, or name another file.")


def replay(path: Path, changes: Mapping[str, Any] | None = None) -> tuple[Beside, Any]:
    """Measure a recorded comparison once more; return it with the recording (`meters.replay.Recording`).

    Under its own protocol it gives the numbers of the recording. What a warning can tell only from inside the process
    that measured (threads that spin) is not seen again.

    Args:
        changes: of the protocol: how many windows, how narrow, how much foreign load. Windows are as long as they were.

    Raises:
        MeterError: the recording is damaged, holds no comparison, or holds fewer windows than the protocol asks for.
        ConfigError: a change that no protocol takes.
    """
    meter = METERS["replay"](readings=path)
    recording, changes = meter.recording, dict(changes or {})
    if set(recording.sides) != set(SIDES):
        raise MeterError(f"{path} is no comparison: its sides are {', '.join(recording.sides) or 'none'}.")
    if fixed := changes.keys() & {"window_s", "warmup_s"}:
        raise ConfigError(f"{min(fixed)} cannot be changed afterwards: the windows of {path} are as they were taken.")
    try:
        hardware.name(dict(recording.hardware))
        build(Protocol, recording.protocol, "protocol")
    except (KeyError, ConfigError) as error:
        raise MeterError(f"{path} is damaged: hardware or protocol are none ({error}). Record again.") from error
    protocol = build(Protocol, {**recording.protocol, **changes}, "protocol")
    beside = measure_beside(
        meter.call("candidate"),
        meter.call("reference"),
        items=recording.sides["candidate"].items_per_call,
        reference_items=recording.sides["reference"].items_per_call,
        meter=meter,
        protocol=protocol,
        clock=meter.clock,
        warm=False,
        idle_w=recording.idle_w,
    )
    return beside, recording


def _plain(side: str, window: Window) -> dict[str, Any]:
    data = asdict(window)
    return {"side": side, **{key: data[key] for key in ("calls", "duration_s", "reading", "reason")}}
