"""Protocol -> Measurement: joules per item and seconds per call, with intervals, every reading kept.

    warm-up           windows until four    windows                                       result
    calls, timed  ->  in a row are      ->  [start, n calls, synchronise, stop]  ->  ...  mean, 95 % interval
    n is fixed        steady                nothing but the calls inside                  warnings with advice
                      those before are      bad ones are kept, not used (`gates`)
                      kept, not used        looked at after min_windows, twice as many ..., max_windows: narrow enough?

    energy per item = energy_j / duration_s  x  seconds per call  /  items per call
                      (the power, by the meter's clock)

Power times time, because a stepping counter reports on a part of the window (between its own steps) while the calls
fill all of it. Where the meter covers the whole window, this is simply energy over items.

Two things are compared by interleaving them, A B, B A, A B ...: what drifts slowly moves both.

Under a load (`stream`) a window is a stretch of requests that come by themselves, and what is paid for between them is
in it.
"""

import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from autogreen import gates
from autogreen.errors import MeterError
from autogreen.intervals import interval, looks, steady
from autogreen.measurement import Beside, Interval, Measurement, Protocol, Window
from autogreen.meters import Meter, Reading
from autogreen.queueing import Load
from autogreen.stream import Stream
from autogreen.windows import WINDOW_STEPS, Side

__all__ = [
    "Beside",
    "Interval",
    "Measurement",
    "Protocol",
    "Window",
    "interval",
    "lease",
    "lease_is_held",
    "measure",
    "measure_beside",
    "rest",
    "rest_w",
]

REST_S = 2.0  # of rest, in which its power is read

# Relative: two pairs of windows that differ by less are steady, however quiet the meter. A power that nears its lasting
# value within some 2 s is then less than 1 % off in the mean (experiments/coverage.py); what takes longer is drift.
STEADY_WITHIN = 0.003

OVERLOADED_WINDOWS = 4  # of a server that cannot answer what it is asked for


def rest(
    meter: Meter,
    *,
    seconds: float,
    synchronize: Callable[[], object] = lambda: None,
    sleep: Callable[[float], object] = time.sleep,
) -> Reading:
    """Energy of the device with nothing of ours running. What the program holds there (context, memory) stays: so it
    is what a device that waits costs.

    Args:
        seconds: above 0; at least 3 steps of the meter in any case.
        synchronize: as for `measure`: waits until the device has done what was queued.

    Raises:
        MeterError: the meter is unusable, or the reading is not to be trusted.
    """
    synchronize()
    meter.start()
    try:
        sleep(max(seconds, WINDOW_STEPS * meter.resolution_s))
    except BaseException:
        with suppress(MeterError):
            meter.stop()
        raise
    reading = meter.stop()
    reason = gates.against(reading, None)
    if reason is not None:
        raise MeterError(f"the power at rest cannot be told: {reason}. Try again.")
    return reading


def rest_w(meter: Meter, protocol: Protocol, synchronize: Callable[[], object]) -> float | None:
    """Power of the device at rest, what is to be measured being loaded. None where it would be a guess: from an
    estimate, which assumes it, or with other programs about, which may be gone when ours are measured."""
    if meter.tier == "estimated":
        return None
    try:
        reading = rest(meter, seconds=REST_S, synchronize=synchronize)
    except MeterError:  # a meter that fails for good says so in the first windows
        return None
    if reading.guests or (reading.foreign_busy_s or 0.0) > protocol.foreign_limit * reading.duration_s:
        return None
    return reading.energy_j / reading.duration_s


def measure(
    call: Callable[[], object],
    *,
    items: int,
    load: Load | None = None,
    meter: Meter,
    protocol: Protocol,
    synchronize: Callable[[], object] = lambda: None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
    idle_w: float | None = None,
) -> Measurement:
    """Measure `call`, which treats one batch of `items` items.

    Args:
        load: requests that come by themselves and are answered by `call` in batches; `items` are then those of one
            request. None: call after call, as fast as possible.
        synchronize: waits until the device has done all queued work (`torch.cuda.synchronize`).
        seed: of the random phase between the windows and the meter's steps, and of the requests.
        clock: monotonic seconds. sleep: waits for so many of them.
        idle_w: power of the device at rest (see `rest`), if known: less than that is no reading.

    Raises:
        MeterError: the meter is unusable, or too many windows had to be discarded; the reasons are named.
        Exception: whatever `call` raises; no window stays open.
    """
    chance = random.Random(seed)
    side = _side(load, seed, sleep, call, items, meter, protocol, synchronize, clock, chance, idle_w)
    side.warm(protocol.warmup_s)
    protocol = _brief(protocol) if side.overloaded else protocol
    warnings = _steadied(
        side.sample,
        side.forget,
        spent_s=lambda: side.spent_s,
        tolerance=lambda values: STEADY_WITHIN * fmean(values),
        protocol=protocol,
    )
    half = math.inf
    for windows in looks(protocol.min_windows, protocol.max_windows):
        while len(side.used) < windows:
            side.sample()
        found = interval(side.values())
        half = (found.high - found.mean) / found.mean
        if half <= protocol.target_relative:
            break
    return side.measurement((*warnings, *_capped("energy", half, len(side.used), protocol)))


def measure_beside(
    call: Callable[[], object],
    reference: Callable[[], object],
    *,
    items: int,
    reference_items: int | None = None,
    load: Load | None = None,
    reference_load: Load | None = None,
    meter: Meter,
    reference_meter: Meter | None = None,
    protocol: Protocol,
    synchronize: Callable[[], object] = lambda: None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
    warm: bool = True,
    idle_w: float | None = None,
    reference_idle_w: float | None = None,
) -> Beside:
    """Measure `call` and `reference` in turns, A B, B A, A B ..., until the ratio's interval is narrow enough.

    `reference` treats `reference_items` items a call, by default as many as `call`. The protocol's numbers of windows
    count pairs; what has to be steady is the ratio. With `warm` False the warm-up is left out (both just ran); each is
    still called once, to be timed. Under `load` and `reference_load`, of one rate, both answer the same requests in
    windows of a pair. reference_meter, reference_idle_w: of the devices of the reference, where those are others. Else
    as `measure`.
    """
    chance = random.Random(seed)
    count = items if reference_items is None else reference_items
    theirs = (meter, idle_w) if reference_meter is None else (reference_meter, reference_idle_w)
    candidate, other = (
        _side(under, seed, sleep, one, of_one, of, protocol, synchronize, clock, chance, rest, 1)
        for one, of_one, under, (of, rest) in (
            (call, items, load, (meter, idle_w)),
            (reference, count, reference_load, theirs),
        )
    )
    for side in (other, candidate):
        side.warm(protocol.warmup_s if warm else 0.0)
    protocol = _brief(protocol) if candidate.overloaded else protocol
    candidate_first = chance.random() < 0.5

    def pair() -> float:
        """Logarithm of the ratio of the next two windows; whoever came first comes second in the next pair."""
        nonlocal candidate_first
        if candidate_first:
            candidate_j, other_j = candidate.sample(), other.sample()
        else:
            other_j, candidate_j = other.sample(), candidate.sample()
        candidate_first = not candidate_first
        return math.log(candidate_j / other_j)

    def forget() -> None:
        candidate.forget()
        other.forget()

    warnings = _steadied(
        pair,
        forget,
        spent_s=lambda: candidate.spent_s + other.spent_s,
        tolerance=lambda _: STEADY_WITHIN,
        protocol=protocol,
    )
    half = math.inf
    # Only an even number of pairs cancels a drift: A B alone favours whoever comes when it is cool.
    for pairs in looks(
        min(protocol.min_windows + protocol.min_windows % 2, protocol.max_windows), protocol.max_windows
    ):
        while len(candidate.used) < pairs:
            pair()
        found = interval([ours - theirs for ours, theirs in zip(candidate.logs(), other.logs(), strict=True)])
        half = math.expm1(found.high - found.mean)
        if half <= protocol.target_relative:
            break
    return Beside(
        candidate=candidate.measurement(()),
        reference=other.measurement(()),
        ratio=Interval(mean=math.exp(found.mean), low=math.exp(found.low), high=math.exp(found.high)),
        warnings=(*warnings, *_capped("ratio", half, len(candidate.used), protocol)),
    )


@contextmanager
def lease() -> Iterator[None]:
    """Hold the right to measure: one process of this user on this machine at a time. Training of others goes on, and
    is seen as foreign load."""
    import fcntl

    with _lease_file().open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def lease_is_held() -> bool:
    """Whether somebody measures now: work that can wait asks, so as not to be load beside it."""
    import fcntl

    with suppress(FileNotFoundError), _lease_file().open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lease_file() -> Path:
    return Path(tempfile.gettempdir()) / f"autogreen-measuring-{os.getuid()}.lock"


def _side(load: Load | None, seed: int, sleep: Callable[[float], object], *common: Any) -> Side:
    """What is called again and again, or answers requests as they come; `common`: what both are told."""
    return Side(*common) if load is None else Stream(*common, load=load, seed=seed, sleep=sleep)


def _brief(protocol: Protocol) -> Protocol:
    """For a server that is asked for more than it can answer: how much more is seen at once, and nothing will make it
    steady."""
    few = min(OVERLOADED_WINDOWS, protocol.max_windows)
    return replace(protocol, preheat_s=0.0, min_windows=few, max_windows=few, target_relative=1.0)


def _capped(what: str, half: float, windows: int, protocol: Protocol) -> tuple[str, ...]:
    if half <= protocol.target_relative:
        return ()
    return (
        f"the 95 % interval of the {what} is still ±{half:.1%} after {windows} windows (wanted "
        f"±{protocol.target_relative:.1%}): quiet the machine, or raise window_s or max_windows.",
    )


def _steadied(
    sample: Callable[[], float],
    forget: Callable[[], None],
    *,
    spent_s: Callable[[], float],
    tolerance: Callable[[list[float]], float],
    protocol: Protocol,
) -> tuple[str, ...]:
    """Sample until four in a row are steady, or the time for it is up; only these four count then. Return warnings.

    forget: discards the first sample that still counts. spent_s: seconds in windows so far, from which a recording
    decides the same again; what passes between windows is little.
    """
    if protocol.preheat_s == 0 or protocol.max_windows < 4:
        return ()
    values = [sample() for _ in range(4)]
    while not steady(values, tolerance(values)):
        if spent_s() >= protocol.preheat_s:
            return (
                f"it was not steady after {protocol.preheat_s:g} s of windows, and was measured all the same: warm up "
                "longer (warmup_s, preheat_s), and keep other programs away.",
            )
        forget()
        values = [*values[1:], sample()]
    return ()
