"""One callable and the windows it is measured in: warmed up, opened, closed, judged, kept."""

import math
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Protocol as Contract
from typing import runtime_checkable

from autogreen import gates
from autogreen.errors import ConfigError, MeterError
from autogreen.intervals import interval
from autogreen.measurement import WARMING_UP, Interval, Measurement, Protocol, Window
from autogreen.meters import Meter, Reading

WINDOW_STEPS = 3  # a window holds at least so many steps of the meter
TOLD = 6  # different reasons that an error lists


@runtime_checkable
class Repeating(Contract):
    """A call that knows by itself how to be made many times: work in other processes is not told of each."""

    def __call__(self) -> object: ...

    def repeat(self, calls: int) -> object:
        """Make so many calls; return when they are done."""
        ...


@dataclass(frozen=True, kw_only=True)
class Work:
    """What was done in a window: see `Window`."""

    calls: int
    duration_s: float
    batches: int | None = None


class Side:
    """One callable on its way to a measurement."""

    overloaded = False  # asked for more than it can do; what is called again and again never is

    def __init__(
        self,
        call: Callable[[], object],
        items: int,
        meter: Meter,
        protocol: Protocol,
        synchronize: Callable[[], object],
        clock: Callable[[], float],
        chance: random.Random,
        idle_w: float | None,
        lead: int = 0,
    ) -> None:
        if isinstance(items, bool) or not isinstance(items, int) or items < 1:
            raise ConfigError(f"items is {items!r}; allowed: a whole number of items per call, 1 or more.")
        self.call, self.items, self.meter, self.protocol = call, items, meter, protocol
        self.synchronize, self.clock, self.chance = synchronize, clock, chance
        self.idle_w, self.lead = idle_w, lead
        self.windows: list[Window] = []
        self.call_s = math.inf  # the least seconds per call seen: decides how many calls fill a window
        self.spent_s = 0.0  # in windows
        self.foreign = self.failed = 0

    def _run(self, calls: int) -> float:
        """Seconds that `calls` calls take, synchronised at both ends."""
        self.synchronize()
        began = self.clock()
        self._repeat(calls)
        self.synchronize()
        return self.clock() - began

    def _repeat(self, calls: int) -> None:
        if isinstance(self.call, Repeating):
            self.call.repeat(calls)
        else:
            for _ in repeat(None, calls):
                self.call()

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
            self.spent_s += window.duration_s
            if window.duration_s > 0 and window.calls > 0:
                self.call_s = min(self.call_s, window.duration_s / window.calls)
            if window.used:
                return window.energy_per_call_j / self.items
            if self.failed > self.protocol.min_windows:
                raise MeterError(
                    f"{self.failed} windows had to be discarded, too many to trust the rest: {self._reasons()}"
                )

    def _reasons(self) -> str:
        bad = dict.fromkeys(w.reason for w in self.windows if not w.used and w.reason and w.reason != WARMING_UP)
        more = f"; and {len(bad) - TOLD} more" if len(bad) > TOLD else ""
        return "; ".join(list(bad)[:TOLD]) + more

    def forget(self) -> None:
        """The first window that counted was of the warm-up."""
        place = next(place for place, window in enumerate(self.windows) if window.used)
        self.windows[place] = replace(self.windows[place], used=False, reason=WARMING_UP)

    @property
    def least_s(self) -> float:
        """Of a window."""
        return max(self.protocol.window_s, WINDOW_STEPS * self.meter.resolution_s)

    @property
    def used(self) -> list[Window]:
        """The windows that count."""
        return [window for window in self.windows if window.used]

    def values(self) -> list[float]:
        """Joules per item of each window that counts; their mean is what is measured."""
        return [window.energy_per_call_j / self.items for window in self.used]

    def logs(self) -> list[float]:
        """The same on the logarithmic scale, for ratios."""
        return [math.log(value) for value in self.values()]

    def _approach(self) -> None:
        """Whole calls of random number before a window shift the phase against the meter's steps and keep the device as
        warm as before."""
        shift = int(self.chance.random() * self.meter.resolution_s / self.call_s)
        self._repeat(self.lead + shift)

    def _work(self) -> Work:
        """What a window is about."""
        calls = max(1, math.ceil(self.least_s / self.call_s))
        return Work(calls=calls, duration_s=self._run(calls))

    def _window(self) -> Window:
        self._approach()
        self.synchronize()
        self.meter.start()
        try:
            work = self._work()
        except BaseException:
            with suppress(MeterError):
                self.meter.stop()
            raise
        reading, reason = self._stop()
        if work.duration_s <= 0:
            reason = f"the clock stood still: {work.calls} calls in {work.duration_s} s"
        elif work.calls == 0:
            reason = "no request came"
        used = reason is None
        if not used:
            self.failed += 1
        elif reading is not None:
            foreign_cores = (reading.foreign_busy_s or 0.0) / reading.duration_s
            if foreign_cores > self.protocol.foreign_limit:
                reason = f"{foreign_cores:.2f} foreign busy cores (limit {self.protocol.foreign_limit:g})"
                used = self.foreign >= self.protocol.min_windows
                self.foreign += not used
        return Window(
            reading=reading,
            calls=work.calls,
            duration_s=work.duration_s,
            used=used,
            reason=reason,
            batches=work.batches,
        )

    def _stop(self) -> tuple[Reading | None, str | None]:
        """The reading, if there is one, and why it must not count."""
        try:
            reading = self.meter.stop()
        except MeterError as error:
            return None, str(error)
        readable = all(math.isfinite(number) and number > 0 for number in (reading.energy_j, reading.duration_s))
        return (reading if readable else None), gates.against(reading, self.idle_w)

    def measurement(self, warnings: tuple[str, ...]) -> Measurement:
        energy = interval(self.values())
        return Measurement(
            energy_per_item_j=Interval(mean=energy.mean, low=max(0.0, energy.low), high=energy.high),
            latency_s=interval([window.duration_s / window.calls for window in self.used]),
            items_per_call=self.items,
            tier=self.meter.tier,
            boundary=self.meter.boundary,
            windows=tuple(self.windows),
            warnings=(*warnings, *gates.warnings(self.windows)),
            idle_w=self.idle_w,
        )
