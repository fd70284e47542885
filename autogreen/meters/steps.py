"""When a counter stepped, and what it counted between two steps.

    polled     |  |  | |               |  |  |  |            |  |  | |               a read takes time, and comes late
    mark             [ ]                      [  ]                [ ]                the step was in here
    beat          ---|-----------T-----------|-----------T-------|---               one rhythm that fits every mark

The counter of a board is written by its firmware on a timer: on an H200 every 100.00 ms, always in step, under load
and at rest. A mark that saw its step happen tells the time to 7 to 15 ms; a few of them together, with the period
known, leave a phase of some milliseconds, and it is the same for the first step and the last. So the time between them
is a whole number of periods, without any error of polling. Where marks do not fit one beat, their middles are taken.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from autogreen.errors import MeterError

Mark = tuple[float, float, float, int]  # not before, asked, answered (seconds, monotonic), millijoules

SEEN = 0.4  # of a period: a mark that is wider did not see its step happen
LATE = 2  # times the usual width: a mark that is wider came late
FINE = 8  # periods are tried so much closer than a mark's width tells them apart
SLACK_S = 0.001  # by which marks may miss a beat that is taken for theirs
DRIFT = 1e-4  # by which the board's clock and ours may differ, relative: far more than quartz does


@dataclass(frozen=True, kw_only=True)
class Steps:
    """times_s: of each step, ascending; energies_j: the counter after it; regular: whether all kept one beat."""

    times_s: tuple[float, ...]
    energies_j: tuple[float, ...]
    regular: bool

    def at(self, time_s: float) -> float:
        """The counter at a time between the first step and the last, as if it ran evenly from step to step."""
        place = min(max(bisect_left(self.times_s, time_s), 1), len(self.times_s) - 1)
        before_s, after_s = self.times_s[place - 1 : place + 1]
        before_j, after_j = self.energies_j[place - 1 : place + 1]
        return before_j + (after_j - before_j) * (time_s - before_s) / (after_s - before_s)

    def within(self, began_s: float, ended_s: float) -> "Steps":
        """Those between two times."""
        first, last = bisect_left(self.times_s, began_s), bisect_right(self.times_s, ended_s)
        return Steps(times_s=self.times_s[first:last], energies_j=self.energies_j[first:last], regular=self.regular)


def beat(marks: Sequence[Mark]) -> float:
    """The period of a counter in seconds, from marks of at least 2 steps.

    The marks that are nearest to each other are taken for one period apart, which bounds the period; within the bounds
    it is the beat that every mark fits, however many steps were missed between, with the most room for its phase. Marks
    that came late are left out. Of the periods about it that fit too, the one that is a whole number of milliseconds is
    taken, as firmware timers are, if there is just one; else the middle of the range; and the median distance of
    neighbours if none fits.

    Raises:
        MeterError: fewer than 2 steps.
    """
    if len(marks) < 2:
        raise MeterError(f"{len(marks)} step(s) of a counter have no period.")
    usual_s = LATE * median(mark[2] - mark[0] for mark in marks)
    prompt = [mark for mark in marks if mark[2] - mark[0] <= usual_s]
    if len(prompt) < 2:
        prompt = list(marks)
    early, late = min(pairwise(prompt), key=_distance)
    least_s, most_s = late[0] - early[2], late[2] - early[0]
    if least_s <= 0:
        return (least_s + most_s) / 2
    span_s = _distance((prompt[0], prompt[-1]))
    stride_s = min(mark[2] - mark[0] for mark in prompt) * least_s / span_s / FINE
    tried_s = [least_s + count * stride_s for count in range(math.ceil((most_s - least_s) / stride_s) + 1)]
    rooms_s = [latest_s - earliest_s for earliest_s, latest_s in (_phase(prompt, period_s) for period_s in tried_s)]
    first = last = max(range(len(tried_s)), key=rooms_s.__getitem__)
    if rooms_s[first] < 0:
        return median(map(_distance, pairwise(prompt)))
    while first > 0 and rooms_s[first - 1] >= 0:
        first -= 1
    while last < len(rooms_s) - 1 and rooms_s[last + 1] >= 0:
        last += 1
    whole_ms = range(math.ceil(tried_s[first] * 1000), math.floor(tried_s[last] * 1000) + 1)
    return whole_ms[0] / 1000 if len(whole_ms) == 1 else (tried_s[first] + tried_s[last]) / 2


def locate(marks: Sequence[Mark], period_s: float, edges: Sequence[Mark] = ()) -> Steps:
    """The steps behind the marks, by the beat of `period_s` if they keep it.

    A mark that came late counts too, where the beat leaves no doubt which step it shows. `edges` are marks that saw
    their steps happen, of the same time or shortly before: they tell the phase where the marks themselves do not.

    Raises:
        MeterError: the counter fell.
    """
    for (*_, earlier), (*_, later) in pairwise(marks):
        if later < earlier:
            raise MeterError(f"the energy counter fell from {earlier / 1000:.3f} J to {later / 1000:.3f} J.")
    seen = [mark for mark in marks if mark[2] - mark[0] < SEEN * period_s]
    polled = Steps(
        times_s=tuple(_middle(mark) for mark in seen),
        energies_j=tuple(mark[3] / 1000 for mark in seen),
        regular=False,
    )
    known = [*edges, *seen]
    if not known or not marks:
        return polled
    earliest_s, latest_s = _phase(known, period_s)
    slack_s = SLACK_S + DRIFT * (marks[-1][2] - min(known[0][0], marks[0][0]))
    if earliest_s > latest_s + slack_s:
        return polled
    found: dict[int, float] = {}
    for before_s, asked_s, answered_s, value_mj in marks:
        if answered_s - before_s < SEEN * period_s:
            place = round(((before_s + answered_s - earliest_s - latest_s) / 2) / period_s)
        else:
            place = math.floor((asked_s - max(earliest_s, latest_s)) / period_s)
            if place != math.floor((answered_s - min(earliest_s, latest_s)) / period_s):
                continue
        found[place] = value_mj / 1000
    phase_s = (earliest_s + latest_s) / 2
    return Steps(
        times_s=tuple(phase_s + place * period_s for place in found), energies_j=tuple(found.values()), regular=True
    )


def _phase(marks: Sequence[Mark], period_s: float) -> tuple[float, float]:
    """Between what times the first mark's step came, if all are of one beat of this period: if not, the first of the
    two is the later one."""
    places = [round(_distance((marks[0], mark)) / period_s) for mark in marks]
    earliest_s = max(mark[0] - place * period_s for mark, place in zip(marks, places, strict=True))
    latest_s = min(mark[2] - place * period_s for mark, place in zip(marks, places, strict=True))
    return earliest_s, latest_s


def _middle(mark: Mark) -> float:
    return (mark[0] + mark[2]) / 2


def _distance(marks: tuple[Mark, Mark]) -> float:
    return _middle(marks[1]) - _middle(marks[0])


def together(boards: Sequence[Steps]) -> tuple[tuple[float, float], ...]:
    """(seconds, joules) since the first time at which all boards are known, summed over them.

    The boards step each in its own time: the sum is taken at the steps of the first one, and at the two ends, from the
    last of the first steps to the first of the last ones. Between its steps a board is taken to have run evenly.

    Raises:
        MeterError: fewer than 2 steps of a board, or no time at which all are known.
    """
    if any(len(board.times_s) < 2 for board in boards):
        raise MeterError(f"the energy counter stepped {min(len(board.times_s) for board in boards)} time(s)")
    first_s = max(board.times_s[0] for board in boards)
    last_s = min(board.times_s[-1] for board in boards)
    if last_s <= first_s:
        raise MeterError("the energy counters of the boards have no time in common")
    times_s = [first_s, *(time_s for time_s in boards[0].times_s if first_s < time_s < last_s), last_s]
    start_j = sum(board.at(first_s) for board in boards)
    return tuple((time_s - first_s, sum(board.at(time_s) for board in boards) - start_j) for time_s in times_s)
