"""Protocol -> Measurement: joules per item and seconds per call, with intervals, every reading kept.

    warm-up           window                                       window                        result
    calls, timed  ->  [start, n calls, synchronise, stop]  ->  ...  until narrow, or the cap  ->  mean, 95 % interval
    n is fixed        nothing but the calls inside                 bad ones: kept, not used       warnings with advice
                      looked at after min_windows, twice, four times as many ..., max_windows

    energy per item = energy_j / duration_s  x  seconds per call  /  items per call
                      (the power, by the meter's clock)

Power times time, because a stepping counter reports on a part of the window (between its own steps) while the calls
fill all of it. Where the meter covers the whole window, this is simply energy over items.

Two things are compared by interleaving them, A B, B A, A B ...: what drifts slowly moves both.
"""

import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path

from autogreen.errors import ConfigError, MeterError
from autogreen.intervals import interval, looks
from autogreen.measurement import Beside, Interval, Measurement, Protocol, Window
from autogreen.meters import Meter

__all__ = ["Beside", "Interval", "Measurement", "Protocol", "Window", "interval", "lease", "measure", "measure_beside"]

WINDOW_STEPS = 5  # a window holds at least so many steps of the meter
SPINNING = 1.5  # processor time per call, against the least of any window, that is no longer the work's own


def measure(
    call: Callable[[], object],
    *,
    items: int,
    meter: Meter,
    protocol: Protocol,
    synchronize: Callable[[], object] = lambda: None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Measure `call`, which treats one batch of `items` items.

    Args:
        synchronize: waits until the device has done all queued work (`torch.cuda.synchronize`).
        seed: of the random phase between the windows and the meter's steps.
        clock: monotonic seconds.

    Raises:
        MeterError: the meter is unusable, or too many windows had to be discarded; the reasons are named.
        Exception: whatever `call` raises; no window stays open.
    """
    side = _Side(call, items, meter, protocol, synchronize, clock, random.Random(seed))
    side.warm(protocol.warmup_s)
    values: list[float] = []
    half = math.inf
    for windows in looks(protocol.min_windows, protocol.max_windows):
        while len(values) < windows:
            values.append(side.sample())
        found = interval(values)
        half = (found.high - found.mean) / found.mean
        if half <= protocol.target_relative:
            break
    return side.measurement(_capped("energy", half, len(values), protocol))


def measure_beside(
    call: Callable[[], object],
    reference: Callable[[], object],
    *,
    items: int,
    reference_items: int | None = None,
    meter: Meter,
    protocol: Protocol,
    synchronize: Callable[[], object] = lambda: None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = True,
) -> Beside:
    """Measure `call` and `reference` in turns, A B, B A, A B ..., until the ratio's interval is narrow enough.

    `reference` treats `reference_items` items a call, by default as many as `call`. The protocol's numbers of windows
    count pairs. With `warm` False the warm-up is left out (both just ran); each is still called once, to be timed. Else
    as `measure`.
    """
    chance = random.Random(seed)
    candidate, other = (
        _Side(one, count, meter, protocol, synchronize, clock, chance, lead=1)
        for one, count in ((call, items), (reference, items if reference_items is None else reference_items))
    )
    for side in (other, candidate):
        side.warm(protocol.warmup_s if warm else 0.0)
    first = chance.random() < 0.5
    logs: list[float] = []
    half = math.inf
    # Only an even number of pairs cancels a drift: A B alone favours whoever comes when it is cool.
    for pairs in looks(
        min(protocol.min_windows + protocol.min_windows % 2, protocol.max_windows), protocol.max_windows
    ):
        while len(logs) < pairs:
            if first == (len(logs) % 2 == 0):
                candidate_j, other_j = candidate.sample(), other.sample()
            else:
                other_j, candidate_j = other.sample(), candidate.sample()
            logs.append(math.log(candidate_j / other_j))
        found = interval(logs)
        half = math.expm1(found.high - found.mean)
        if half <= protocol.target_relative:
            break
    return Beside(
        candidate=candidate.measurement(()),
        reference=other.measurement(()),
        ratio=Interval(mean=math.exp(found.mean), low=math.exp(found.low), high=math.exp(found.high)),
        warnings=_capped("ratio", half, len(logs), protocol),
    )


@contextmanager
def lease() -> Iterator[None]:
    """Hold the right to measure: one process of this user on this machine at a time. Training of others goes on, and
    is seen as foreign load."""
    import fcntl

    with (Path(tempfile.gettempdir()) / f"autogreen-measuring-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Side:
    """One callable on its way to a measurement."""

    def __init__(
        self,
        call: Callable[[], object],
        items: int,
        meter: Meter,
        protocol: Protocol,
        synchronize: Callable[[], object],
        clock: Callable[[], float],
        chance: random.Random,
        lead: int = 0,
    ) -> None:
        if isinstance(items, bool) or not isinstance(items, int) or items < 1:
            raise ConfigError(f"items is {items!r}; allowed: a whole number of items per call, 1 or more.")
        self.call, self.items, self.meter, self.protocol = call, items, meter, protocol
        self.synchronize, self.clock, self.chance, self.lead = synchronize, clock, chance, lead
        self.windows: list[Window] = []
        self.call_s = math.inf  # the least seconds per call seen: decides how many calls fill a window
        self.foreign = self.failed = 0

    def _run(self, calls: int) -> float:
        """Seconds that `calls` calls take, synchronised at both ends."""
        self.synchronize()
        began = self.clock()
        for _ in repeat(None, calls):
            self.call()
        self.synchronize()
        return self.clock() - began

    def warm(self, seconds: float) -> None:
        """Call for so long, twice at least, in growing rounds. The first round compiles and allocates: not timed."""
        elapsed, calls, rounds = self._run(1), 1, 0
        while rounds == 0 or elapsed < seconds:
            took_s = self._run(calls)
            elapsed, rounds = elapsed + took_s, rounds + 1
            if took_s > 0:
                self.call_s = min(self.call_s, took_s / calls)
                calls = max(1, min(2 * calls, math.ceil((seconds - elapsed) / self.call_s)))
            elif rounds > 40:
                break
            else:
                calls *= 2
        if not math.isfinite(self.call_s):
            raise MeterError("the clock stood still during the warm-up: there is no time to measure energy over.")

    def sample(self) -> float:
        """Joules per item of the next window that can be used."""
        while True:
            window = self._window()
            self.windows.append(window)
            self.call_s = min(self.call_s, window.duration_s / window.calls if window.duration_s > 0 else math.inf)
            if window.used:
                return window.energy_per_call_j / self.items
            if self.failed > self.protocol.min_windows:
                reasons = "; ".join(dict.fromkeys(bad.reason for bad in self.windows if bad.reason))
                raise MeterError(f"{self.failed} windows had to be discarded, too many to trust the rest: {reasons}")

    def _window(self) -> Window:
        meter = self.meter
        # Whole calls of random number shift the phase against the meter's steps and keep the device as warm as before.
        shift = int(self.chance.random() * meter.resolution_s / self.call_s)
        for _ in repeat(None, self.lead + shift):
            self.call()
        calls = max(1, math.ceil(max(self.protocol.window_s, WINDOW_STEPS * meter.resolution_s) / self.call_s))
        self.synchronize()
        meter.start()
        try:
            duration_s = self._run(calls)
        except BaseException:
            with suppress(MeterError):
                meter.stop()
            raise
        try:
            reading = meter.stop()
        except MeterError as error:
            self.failed += 1
            return Window(reading=None, calls=calls, duration_s=duration_s, used=False, reason=str(error))
        numbers = (reading.energy_j, reading.duration_s, duration_s)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            self.failed += 1
            reason = f"the meter read {reading.energy_j} J in {reading.duration_s} s"
            return Window(reading=None, calls=calls, duration_s=duration_s, used=False, reason=reason)
        used = True
        doubt: str | None = None
        foreign_cores = (reading.foreign_busy_s or 0.0) / reading.duration_s
        if foreign_cores > self.protocol.foreign_limit:
            doubt = f"{foreign_cores:.2f} foreign busy cores (limit {self.protocol.foreign_limit})"
            used = self.foreign >= self.protocol.min_windows
            self.foreign += not used
        return Window(reading=reading, calls=calls, duration_s=duration_s, used=used, reason=doubt)

    def measurement(self, warnings: tuple[str, ...]) -> Measurement:
        used = [window for window in self.windows if window.used]
        energy = interval([window.energy_per_call_j / self.items for window in used])
        return Measurement(
            energy_per_item_j=Interval(mean=energy.mean, low=max(0.0, energy.low), high=energy.high),
            latency_s=interval([window.duration_s / window.calls for window in used]),
            items_per_call=self.items,
            tier=self.meter.tier,
            boundary=self.meter.boundary,
            windows=tuple(self.windows),
            warnings=(*warnings, *_foreign_load(self.windows, used), *_spinning(used)),
        )


def _capped(what: str, half: float, windows: int, protocol: Protocol) -> tuple[str, ...]:
    if half <= protocol.target_relative:
        return ()
    return (
        f"the 95 % interval of the {what} is still ±{half:.1%} after {windows} windows (wanted "
        f"±{protocol.target_relative:.1%}): quiet the machine, or raise window_s or max_windows.",
    )


def _foreign_load(windows: Sequence[Window], used: Sequence[Window]) -> tuple[str, ...]:
    loaded = sum(window.reason is not None for window in used)
    if loaded:
        return (
            f"{loaded} of {len(used)} windows ran beside other programs ({used[-1].reason or 'gone since'}), which "
            "can change processor time several-fold: stop them and measure again, or compare interleaved only.",
        )
    if len(windows) > len(used):
        return (f"{len(windows) - len(used)} of {len(windows)} windows were discarded; each one's reason is kept.",)
    return ()


def _spinning(used: Sequence[Window]) -> tuple[str, ...]:
    """OpenMP threads that wait by spinning count as busy: processor time grows while the work does not."""
    busy = [(w.reading.busy_s, w.reading.duration_s, w.calls) for w in used if w.reading and w.reading.busy_s]
    if not busy:
        return ()
    advice = "set OMP_WAIT_POLICY=passive before Python starts, and keep other programs away."
    per_call_s = [seconds / calls for seconds, _, calls in busy]
    worst = max(per_call_s) / min(per_call_s)
    if worst > SPINNING:
        return (f"processor time per call grew {worst:.1f}-fold between windows, as when threads spin: {advice}",)
    torch = sys.modules.get("torch")  # asked only where somebody has loaded it
    cores = max(seconds / duration_s for seconds, duration_s, _ in busy)
    if torch is not None and cores > torch.get_num_threads() + 0.5:
        threads = torch.get_num_threads()
        return (f"{cores:.1f} cores were busy although torch has {threads} thread(s): end other threads, or {advice}",)
    return ()
