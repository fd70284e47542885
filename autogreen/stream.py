"""A server and the windows it is measured in: stretches of a stream of requests, whose batches are one program's calls.

    requests   |  |||   | ||   |      |  | |  ||| |   |    due by the clock (`queueing`)
    batches      [===][===] [===] [===]   [===][===][===]
    window     <------------------------------------->     energy of all of it, idle power between batches too

    joules per request  =  joules of all windows  /  requests answered in all windows

How many requests a window holds is chance, so the mean of the windows' own quotients would be too high by a share of
one over the requests of a window. The quotient of the sums is not; what each window adds to its error is linear in the
window's energy and requests (a ratio estimator: Cochran, Sampling Techniques, 1977, chapter 6).

Each window goes on where the last one ended, with other requests, so that an interval holds the luck of the stream.
Of two servers that are compared, both windows of a pair get the same requests: their luck cancels (common random
numbers: Law, Simulation Modeling and Analysis, chapter 11). One that was discarded is taken again with the same ones.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autogreen.measurement import WARMING_UP, Interval, Measurement, Served
from autogreen.queueing import Load, Queue, Replica, Replicated, Resident, Stretch
from autogreen.windows import Side, Work

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

RESAMPLES = 1000
SHARES = (0.50, 0.95)  # of the requests, within whose latency they are answered
TIMED = 3  # batches before the first request, by which it is known whether the stream is too much


class Stream(Side):
    """One server on its way to a measurement. `call` answers a batch of requests; `items` are those of one request."""

    def __init__(
        self,
        *common: Any,
        load: Load,
        seed: int,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Args:
        common: as of `Side`. seed: of the requests.
        """
        super().__init__(*common)
        self.load, self.seed = load, seed
        self.replicas: Sequence[Replica] = (Resident(self.call, self.synchronize),)
        if isinstance(self.call, Replicated):
            self.replicas, sleep = self.call.replicas, self.call.wait
        self.queue = Queue(self.replicas, load, clock=self.clock, sleep=sleep)
        self.stretches: list[Stretch] = []  # one a window
        self.batch_s = math.inf  # the least that a batch took

    @property
    def overloaded(self) -> bool:  # type: ignore[override]
        """More is asked for than full batches can answer, at the best that was seen of one."""
        return self._utilization(self.batch_s) >= 1

    def warm(self, seconds: float) -> None:
        """A few batches, which tell how long one takes; then requests for so long, since a device that rests between
        batches comes to a temperature and clock of its own."""
        super().warm(0.0)
        self.batch_s = min(self.call_s, *(self._run(1) for _ in range(TIMED)))
        if seconds > 0:
            self.queue.serve(self.load.arrivals(-1, seconds, self.seed), seconds)

    def values(self) -> list[float]:
        joules = self._per_item_j
        return [joules * (1 + part) for part in self._parts(joules)]

    def logs(self) -> list[float]:
        joules = self._per_item_j
        return [math.log(joules) + part for part in self._parts(joules)]

    def measurement(self, warnings: tuple[str, ...]) -> Measurement:
        served, latency_s = self._served()
        if not served.stable:
            told = (
                f"the queue grows without bound: {self.load.rate_per_s:g} requests a second are "
                f"{served.utilization:.3g} times what it can answer (batches of {self.load.batch}, "
                f"{served.batch_s:.3g} s each), so energy and latency are those of a server that is never done. Larger "
                "batches, a faster engine or a lower rate_per_s would mend it."
            )
            warnings = (told, *warnings)
        return replace(super().measurement(warnings), latency_s=latency_s, served=served)

    def _approach(self) -> None:
        """The stream itself shifts the phase against the meter's steps; a call brings the program back."""
        self._repeat(self.lead)

    def _work(self) -> Work:
        """The next stretch of the stream, which is as long whatever the server does."""
        number = sum(window.used or window.reason == WARMING_UP or window.calls == 0 for window in self.windows)
        seconds = self.load.stretch_s(self.least_s)
        seen = self.queue.serve(self.load.arrivals(number, seconds, self.seed), seconds, self.least_s)
        self.stretches.append(seen)
        return Work(calls=len(seen.latencies_s), duration_s=seen.duration_s, batches=seen.batches)

    @property
    def _per_item_j(self) -> float:
        used = self.used
        return math.fsum(w.energy_per_call_j * w.calls for w in used) / (self.items * sum(w.calls for w in used))

    def _parts(self, joules: float) -> list[float]:
        """By how much each window alone would move the quotient of the sums, relative and times their number; 0 on
        average."""
        used = self.used
        mean_calls = sum(window.calls for window in used) / len(used)
        return [(w.energy_per_call_j / (self.items * joules) - 1) * w.calls / mean_calls for w in used]

    def _utilization(self, batch_s: float) -> float:
        return self.load.rate_per_s * batch_s / (self.load.batch * len(self.replicas))

    def _served(self) -> tuple[Served, Interval]:
        """What windows that count tell of the requests, and the mean latency."""
        seen = [stretch for stretch, window in zip(self.stretches, self.windows, strict=True) if window.used]
        batches = sum(stretch.batches for stretch in seen)
        requests = sum(len(stretch.latencies_s) for stretch in seen)
        batch_s = math.fsum(stretch.busy_s for stretch in seen) / batches
        mean, p50, p95 = latencies([stretch.latencies_s for stretch in seen])
        served = Served(
            rate_per_s=self.load.rate_per_s,
            requests=requests,
            p50_s=p50,
            p95_s=p95,
            fill=requests / batches,
            batch_s=batch_s,
            utilization=self._utilization(batch_s),
        )
        return served, mean


def latencies(windows: Sequence[Sequence[float]]) -> tuple[Interval, Interval, Interval]:
    """Mean, median and 95th percentile (nearest rank) of latencies in seconds, with 95 % intervals: a percentile
    bootstrap over windows, for requests that waited in one queue resemble each other (clusters: Cameron, Gelbach and
    Miller, "Bootstrap-based improvements for inference with clustered errors", 2008).

    Args:
        windows: of each, one latency or more.
    """
    import numpy as np

    values = np.concatenate([np.asarray(window, dtype=np.float64) for window in windows])
    whose = np.repeat(np.arange(len(windows)), [len(window) for window in windows])
    order = np.argsort(values, kind="stable")
    values, whose, chance = values[order], whose[order], np.random.default_rng(0)

    def of(times: "Array") -> tuple[float, ...]:
        """Where each window counts so many times."""
        weights = times[whose]
        below = np.cumsum(weights)
        ranks = (int(np.searchsorted(below, share * below[-1])) for share in SHARES)
        return float(weights @ values / below[-1]), *(float(values[rank]) for rank in ranks)

    found = of(np.ones(len(windows)))
    drawn = chance.multinomial(len(windows), [1 / len(windows)] * len(windows), RESAMPLES)
    low, high = np.quantile([of(times) for times in drawn], (0.025, 0.975), axis=0)
    mean, p50, p95 = (
        Interval(mean=value, low=min(value, float(down)), high=max(value, float(up)))
        for value, down, up in zip(found, low, high, strict=True)
    )
    return mean, p50, p95
