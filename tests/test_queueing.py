"""The queue: its schedule against hand-made cases, closed forms and a second, shorter program; and the stream."""

import heapq
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest

from autogreen.queueing import Load, Queue, Resident, Stretch
from autogreen.testing import ScriptedClock


def load(**changes: Any) -> Load:
    return Load(**{"rate_per_s": 40.0, "p95_s": 0.1, "batch": 1, **changes})


def resident(clock: ScriptedClock, seconds: float | Callable[[], float]) -> Resident:
    return Resident(lambda: clock.advance(seconds if isinstance(seconds, float) else seconds()), lambda: None)


def served(due: Sequence[float], service_s: float, seconds: float, **changes: Any) -> Stretch:
    """One stretch by one replica whose batches take so long."""
    clock = ScriptedClock()
    queue = Queue([resident(clock, service_s)], load(**changes), clock=clock, sleep=clock.advance)
    return queue.serve(due, seconds)


def schedule(due: Sequence[float], service_s: float, batch: int, delay_s: float) -> list[float]:
    """The same by recursion from batch to batch, all requests being known: latencies in the order of arrival."""
    free, place, found = 0.0, 0, list[float]()
    while place < len(due):
        full = due[place + batch - 1] if place + batch <= len(due) else math.inf
        began = max(free, min(full, due[place] + delay_s))
        taken = [at for at in due[place : place + batch] if at <= began]
        free, place = began + service_s, place + len(taken)
        found += [free - at for at in taken]
    return found


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_by_hand_greedy() -> None:
    # due:        0.00  0.01  0.05  0.06                  a batch of at most 2 takes 0.03
    # begun:      0.00 -> 0.03 (1)   0.03 -> 0.06 (1)     0.06 -> 0.09 (2)
    found = served([0.0, 0.01, 0.05, 0.06], 0.03, 1.0, batch=2)
    assert found.latencies_s == pytest.approx([0.03, 0.05, 0.04, 0.03])
    assert (found.batches, found.waiting) == (3, 0)
    assert found.busy_s == pytest.approx(0.09) and found.duration_s == pytest.approx(1.0)


def test_by_hand_a_batch_waits_to_be_filled_but_no_longer_than_its_oldest_may() -> None:
    # filled at 0.02; the third waits alone from 0.10 until 0.15
    found = served([0.0, 0.02, 0.10], 0.03, 1.0, batch=2, batch_delay_s=0.05)
    assert found.latencies_s == pytest.approx([0.05, 0.03, 0.08])
    assert found.batches == 2


@pytest.mark.parametrize(("batch", "delay_s"), [(1, 0.0), (4, 0.0), (4, 0.02), (16, 0.05)])
@pytest.mark.parametrize("service_s", [0.005, 0.02])
def test_the_schedule_is_that_of_an_independent_program(batch: int, delay_s: float, service_s: float) -> None:
    due = load().arrivals(0, 60.0, seed=3)
    found = served(due, service_s, 200.0, batch=batch, batch_delay_s=delay_s)
    assert found.latencies_s == pytest.approx(schedule(due, service_s, batch, delay_s), abs=1e-9)


@pytest.mark.parametrize("utilization", [0.3, 0.7])
def test_the_mean_wait_of_one_at_a_time_is_pollaczek_and_khinchines(utilization: float) -> None:
    service_s, seconds = utilization / 40, 2000.0
    found = served(load().arrivals(0, seconds, seed=1), service_s, seconds)
    expected = utilization * service_s / (2 * (1 - utilization))  # M/D/1
    assert fmean(found.latencies_s) - service_s == pytest.approx(expected, rel=0.05)
    assert found.busy_s / seconds == pytest.approx(utilization, rel=0.02)


class Apart:
    """A replica elsewhere: `start` returns at once."""

    def __init__(self, clock: ScriptedClock, service_s: float, answers: list[float]) -> None:
        self.clock, self.service_s, self.answers, self.ends = clock, service_s, answers, 0.0

    def start(self, count: int) -> None:
        assert self.done(), "it works on one batch at a time"
        self.ends = self.clock() + self.service_s
        self.answers.append(self.ends)

    def done(self) -> bool:
        return self.clock() >= self.ends


def test_replicas_that_answer_later_work_side_by_side() -> None:
    clock, answers = ScriptedClock(), list[float]()

    def sleep(seconds: float) -> None:
        """Or until somebody answers."""
        ends = [at for at in answers if at > clock()]
        clock.advance(min(clock() + seconds, *ends, math.inf) - clock())

    replicas = [Apart(clock, 0.06, answers) for _ in range(3)]
    due = load().arrivals(0, 60.0, seed=2)  # 40 a second, and three replicas answer 50
    found = Queue(replicas, load(), clock=clock, sleep=sleep).serve(due, 70.0)
    free, expected = [0.0] * 3, list[float]()
    for at in due:
        began = max(at, heapq.heappop(free))
        heapq.heappush(free, began + 0.06)
        expected.append(began + 0.06 - at)
    assert sorted(found.latencies_s) == pytest.approx(sorted(expected), abs=1e-9)


# --- what is easily got wrong -----------------------------------------------------------------------------------------


def test_a_stall_is_felt_by_everybody_who_came_meanwhile() -> None:
    """One batch hangs for a second: whoever waits for an answer before the next request would see one late one."""
    clock, calls = ScriptedClock(), iter([1.0])
    due = [0.1 * number for number in range(20)]
    queue = Queue([resident(clock, lambda: next(calls, 0.001))], load(rate_per_s=10), clock=clock, sleep=clock.advance)
    found = queue.serve(due, 3.0)
    late = [latency for latency in found.latencies_s if latency > 0.1]
    assert len(late) == 10  # due at 0.0, 0.1, ..., 0.9
    assert late == sorted(late, reverse=True) and late[0] == pytest.approx(1.0)


def test_what_cannot_be_answered_ends_all_the_same_and_is_told() -> None:
    found = served(load().arrivals(0, 2.0, seed=0), 0.1, 2.0)  # 40 a second, and 10 can be answered
    assert found.duration_s < 2.1 + 1e-9
    assert len(found.latencies_s) == found.batches == 20
    assert found.waiting == len(load().arrivals(0, 2.0, seed=0)) - found.batches
    assert found.latencies_s[-1] > 1.0


def test_a_batch_longer_than_a_stretch_is_answered_in_it() -> None:
    clock = ScriptedClock()
    queue = Queue([resident(clock, 5.0)], load(), clock=clock, sleep=clock.advance)
    for _ in range(3):
        found = queue.serve([0.0, 0.1, 0.2], 0.5, least_s=0.3)
        assert len(found.latencies_s) == 1 and found.duration_s == pytest.approx(5.0)


def test_time_stands_still_between_stretches_and_who_waits_goes_on_waiting() -> None:
    due = load().arrivals(0, 10.0, seed=4)
    whole = served(due, 0.02, 10.0)
    clock = ScriptedClock()
    queue = Queue([resident(clock, 0.02)], load(), clock=clock, sleep=clock.advance)
    parts = []
    for number in range(10):
        parts.append(queue.serve([at - number for at in due if number <= at < number + 1], 1.0))
        clock.advance(7.0)  # another is measured
    latencies = [latency for part in parts for latency in part.latencies_s]
    assert latencies == pytest.approx(whole.latencies_s, abs=1e-5)  # the shortest sleep is 1 µs
    assert math.fsum(part.duration_s for part in parts) == pytest.approx(whole.duration_s, abs=0.021)


def test_it_sleeps_until_something_is_due_and_never_looks_in_vain() -> None:
    clock, slept = ScriptedClock(), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds)

    queue = Queue([resident(clock, 0.01)], load(batch=4, batch_delay_s=0.05, rate_per_s=10), clock=clock, sleep=sleep)
    queue.serve([0.1, 0.4], 0.6)
    assert slept == pytest.approx([0.1, 0.05, 0.24, 0.05, 0.14])  # arrival, deadline, arrival, deadline, end


# --- the stream -------------------------------------------------------------------------------------------------------


def test_the_stream_is_a_poisson_process_and_the_same_for_everybody() -> None:
    stretches = [load().arrivals(number, 5.0, seed=0) for number in range(400)]
    counts = [len(due) for due in stretches]
    assert fmean(counts) == pytest.approx(200, abs=3)  # standard error 0.7
    assert fmean((count - 200) ** 2 for count in counts) == pytest.approx(200, rel=0.25)
    gaps = [later - earlier for due in stretches for earlier, later in pairwise(due)]
    assert fmean(gap > 1 / 40 for gap in gaps) == pytest.approx(math.exp(-1), abs=0.01)
    assert stretches[3] == load(batch=8, batch_delay_s=0.02).arrivals(3, 5.0, seed=0)
    assert stretches[3] != stretches[4] and stretches[3] != load().arrivals(3, 5.0, seed=1)


@pytest.mark.parametrize(
    ("changes", "least_s", "seconds"),
    [({}, 0.25, 1.8), ({"rate_per_s": 400.0}, 0.25, 1.25), ({"rate_per_s": 2.0, "p95_s": 1.0}, 0.25, 26.0)],
)
def test_a_stretch_holds_enough_requests_and_dwarfs_the_limit(
    changes: dict[str, Any], least_s: float, seconds: float
) -> None:
    assert load(**changes).stretch_s(least_s) == pytest.approx(seconds)
