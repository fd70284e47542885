"""Steps behind marks: counters of known truth, polled by a clock that stumbles, in simulated time."""

import math
import random
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from autogreen.errors import MeterError
from autogreen.meters.steps import Mark, Steps, beat, locate, together


@dataclass(frozen=True, kw_only=True)
class Board:
    """A counter that steps at phase_s + k * period_s, each up to wander_s late, and how it is polled.

    read_s: what a read takes, from..to; its value is that of some moment meanwhile. stall_s: what the poller sleeps
    through now and then, at most. rest_s: what it sleeps through after each step that it saw happen, as the sidecar.
    """

    period_s: float = 0.1
    phase_s: float = 0.0
    watts: float = 300.0
    wander_s: float = 0.0
    quantum_mj: int = 1
    read_s: tuple[float, float] = (0.003, 0.005)
    rest_s: float = 0.0
    stall_s: float = 0.0
    backwards_mj: int = 0

    def step_s(self, number: int) -> float:
        return self.phase_s + number * self.period_s + self.wander_s * random.Random(number).random()

    def number(self, time_s: float) -> int:
        """Of the last step until then."""
        near = math.floor((time_s - self.phase_s) / self.period_s) + 1
        return next(number for number in range(near, near - 3, -1) if self.step_s(number) <= time_s)

    def joules(self, number: int) -> float:
        """The counter after a step: it counts to the step what was spent until then."""
        return self.watts * (self.step_s(number) - self.phase_s) + 1000

    def read_mj(self, time_s: float) -> int:
        number = self.number(time_s)
        value = int(1000 * self.joules(number) // self.quantum_mj * self.quantum_mj)
        return value - (self.backwards_mj if number % 3 else 0)

    def polled(self, chance: random.Random, began_s: float, ended_s: float) -> list[Mark]:
        """Marks as the sidecar makes them."""
        marks: list[Mark] = []
        now_s, old_s, last_mj = began_s, began_s, self.read_mj(began_s)
        while now_s < ended_s:
            asked_s = now_s
            answered_s = asked_s + chance.uniform(*self.read_s)
            value_mj = self.read_mj(chance.uniform(asked_s, answered_s))
            now_s = answered_s + 0.001
            if value_mj > last_mj:
                marks.append((old_s, asked_s, answered_s, value_mj))
                last_mj = value_mj
                if answered_s - old_s < self.period_s / 4:
                    now_s += self.rest_s
            if chance.random() < (now_s - asked_s) / self.period_s / 5:  # once in five periods or so
                now_s += chance.uniform(0, self.stall_s)
            old_s = asked_s
        return marks


def found(board: Board, chance: random.Random, seconds: float = 2.0) -> tuple[float, Steps]:
    """Period and steps, from a calibration of 2 s or more and from a window thereafter."""
    began_s = chance.uniform(3, 4)  # a calibration as short as that of the meter, or of as many steps
    calibrated_s = began_s + max(2.0, 20 * board.period_s)
    period_s = beat(replace(board, rest_s=0.0).polled(chance, began_s, calibrated_s))
    return period_s, locate(board.polled(chance, calibrated_s, calibrated_s + seconds), period_s)


def true(board: Board, steps: Steps) -> list[int]:
    """Which steps they are by their energy, told from the truth."""
    return [round((joules - 1000) / (board.watts * board.period_s)) for joules in steps.energies_j]


# --- a counter that keeps a beat --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_the_time_between_steps_is_exact_however_the_clock_stumbles(seed: int) -> None:
    chance = random.Random(seed)
    period_s = chance.choice([0.02, 0.05, 0.1, 0.1, 0.5])
    board = Board(
        period_s=period_s,
        phase_s=chance.uniform(0, period_s),
        watts=chance.uniform(60, 1000),
        read_s=(0.0002, 0.0005) if period_s < 0.1 else (0.003, 0.005),
        rest_s=chance.choice([0.0, 0.85 * period_s]),
        stall_s=chance.choice([0.0, 3 * period_s]),
    )
    learnt_s, steps = found(board, chance, seconds=20 * period_s)
    assert learnt_s == period_s and steps.regular
    for (one_s, two_s), (one, two) in zip(pairwise(steps.times_s), pairwise(true(board, steps)), strict=True):
        assert two_s - one_s == pytest.approx((two - one) * period_s) and two > one  # a step may be missed, never moved
    for time_s, number in zip(steps.times_s, true(board, steps), strict=True):
        assert time_s == pytest.approx(board.step_s(number), abs=0.006)
    (duration_s, energy_j) = together([steps])[-1]
    assert energy_j == pytest.approx(board.watts * duration_s, rel=1e-4)


@pytest.mark.parametrize("seed", range(10))
def test_a_period_of_broken_milliseconds(seed: int) -> None:
    chance = random.Random(seed)
    board = Board(period_s=1 / 60, phase_s=0.004, read_s=(0.0002, 0.0005))
    period_s, steps = found(board, chance)
    assert period_s == pytest.approx(1 / 60, rel=2e-3)
    duration_s, energy_j = together([steps])[-1]
    assert energy_j == pytest.approx(board.watts * duration_s, rel=2e-3)


@pytest.mark.parametrize("seed", range(10))
def test_half_a_minute_of_steps(seed: int) -> None:
    chance = random.Random(seed)
    board = Board(rest_s=0.08, stall_s=0.3, period_s=0.1 * (1 + chance.uniform(-2e-5, 2e-5)))  # quartz
    _, steps = found(board, chance, seconds=30)
    assert steps.regular
    duration_s, energy_j = together([steps])[-1]
    assert duration_s > 29 and energy_j == pytest.approx(board.watts * duration_s, rel=1e-4)


# --- a counter that does not ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_without_a_beat_steps_are_timed_by_polling(seed: int) -> None:
    chance = random.Random(seed)
    board = Board(wander_s=chance.uniform(0.03, 0.05), stall_s=chance.choice([0.0, 0.2]))
    period_s, steps = found(board, chance, seconds=4)
    assert not steps.regular and period_s == pytest.approx(0.1, rel=0.25)
    duration_s, energy_j = together([steps])[-1]
    assert energy_j == pytest.approx(board.watts * duration_s, abs=board.watts * 0.011)  # half a mark at either end


def test_marks_too_wide_to_have_seen_anything_leave_no_steps() -> None:
    late = [(0.1 * number, 0.1 * number + 0.09, 0.1 * number + 0.095, 1000 * number) for number in range(1, 6)]
    assert locate(late, 0.1) == Steps(times_s=(), energies_j=(), regular=False)
    with pytest.raises(MeterError, match=r"stepped 0 time\(s\)"):
        together([locate(late, 0.1)])


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_steps_have_no_period(count: int) -> None:
    with pytest.raises(MeterError, match=rf"{count} step\(s\) of a counter have no period"):
        beat([(0.0, 0.004, 0.008, 1000)] * count)


# --- what counters do -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("watts", [300.0, 61.7, 13.0])
def test_whole_joules(watts: float, seed: int) -> None:
    """A joule is a step of 100 ms at 10 W: each step shows, and the two ends are known to a joule."""
    board = Board(watts=watts, quantum_mj=1000)
    _, steps = found(board, random.Random(seed))
    duration_s, energy_j = together([steps])[-1]
    assert energy_j == round(energy_j) and abs(energy_j - watts * duration_s) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_whole_joules_that_most_steps_do_not_fill(seed: int) -> None:
    board = Board(watts=3.7, quantum_mj=1000)  # every third step shows, now and then the second
    _, steps = found(board, random.Random(seed), seconds=5)
    duration_s, energy_j = together([steps])[-1]
    assert energy_j > 0 and abs(energy_j - 3.7 * duration_s) <= 1.1


@pytest.mark.parametrize("seed", range(5))
def test_a_millijoule_backwards_and_forwards(seed: int) -> None:
    board = Board(backwards_mj=1)
    period_s, steps = found(board, random.Random(seed))
    assert period_s == 0.1 and steps.regular
    duration_s, energy_j = together([steps])[-1]
    assert energy_j == pytest.approx(board.watts * duration_s, abs=0.0021)


@pytest.mark.parametrize("lower_mj", [0, 29_999])
def test_a_fall_is_an_error_and_no_negative_number(lower_mj: int) -> None:
    marks = [(0.0, 0.004, 0.008, 0), (0.1, 0.104, 0.108, 30_000), (0.2, 0.204, 0.208, lower_mj)]
    with pytest.raises(MeterError, match=rf"fell from 30.000 J to {lower_mj / 1000:.3f} J"):
        locate(marks, 0.1)


def test_half_a_second_from_step_to_step() -> None:
    chance = random.Random(1)
    board = Board(period_s=0.5, phase_s=0.123, rest_s=0.45)
    period_s, steps = found(board, chance, seconds=3)
    assert period_s == 0.5 and len(steps.times_s) == 6
    assert together([steps])[-1] == pytest.approx((2.5, 750), rel=1e-4)


def test_a_late_mark_counts_where_the_beat_leaves_no_doubt() -> None:
    seen = [(0.1 * number, 0.1 * number + 0.003, 0.1 * number + 0.006, 30_000 * number) for number in range(4)]
    clear, doubtful = (0.35, 0.44, 0.45, 120_000), (0.45, 0.49, 0.51, 150_000)
    assert locate([*seen, clear], 0.1).energies_j == (0, 30, 60, 90, 120)
    assert locate([*seen, doubtful], 0.1).energies_j == (0, 30, 60, 90)
    assert locate([*seen, clear], 0.1).times_s[-1] == pytest.approx(0.403)


# --- windows ----------------------------------------------------------------------------------------------------------


def test_only_steps_inside_a_window_count() -> None:
    steps = Steps(times_s=(0.0, 0.1, 0.2, 0.3), energies_j=(0.0, 1.0, 3.0, 6.0), regular=True)
    assert steps.within(0.05, 0.25).energies_j == (1.0, 3.0)
    assert steps.within(0.1, 0.2).times_s == (0.1, 0.2)
    with pytest.raises(MeterError, match=r"stepped 1 time\(s\)"):  # shorter than two periods
        together([steps.within(0.05, 0.15)])


def test_power_that_changes_is_read_at_the_steps() -> None:
    steps = Steps(times_s=(0.0, 0.1, 0.2), energies_j=(10.0, 20.0, 50.0), regular=True)
    assert together([steps]) == ((0.0, 0.0), (0.1, 10.0), (0.2, 40.0))
    assert steps.at(0.15) == pytest.approx(35.0)


# --- several boards ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_boards_of_different_phase_are_summed_over_the_same_time(seed: int) -> None:
    chance = random.Random(seed)
    boards = [
        Board(
            period_s=chance.choice([0.1, 0.1, 0.02]),
            phase_s=chance.uniform(0, 0.1),
            watts=chance.uniform(60, 1000),
            read_s=(0.0002, 0.0005),
            stall_s=chance.choice([0.0, 0.2]),
        )
        for _ in range(chance.randint(2, 8))
    ]
    run = together([found(board, random.Random(seed))[1] for board in boards])
    duration_s, energy_j = run[-1]
    assert energy_j == pytest.approx(sum(board.watts for board in boards) * duration_s, rel=2e-3)
    assert run[0] == (0, 0) and all(a < c and b < d for (a, b), (c, d) in pairwise(run))


def test_between_steps_a_board_runs_evenly() -> None:
    one = Steps(times_s=(0.0, 0.1, 0.2, 0.3), energies_j=(0.0, 10.0, 20.0, 30.0), regular=True)
    two = Steps(times_s=(0.05, 0.15, 0.25), energies_j=(500.0, 505.0, 525.0), regular=True)
    # the one 20 J from 0.05 to 0.25; the other half of 5 J until 0.1, then half of 5 and half of 20, then half of 20
    expected = [(0.0, 0.0), (0.05, 7.5), (0.15, 30.0), (0.2, 45.0)]
    assert [pytest.approx(point) for point in expected] == list(together([one, two]))


def test_boards_without_a_time_in_common() -> None:
    early = Steps(times_s=(0.0, 0.1), energies_j=(0.0, 1.0), regular=True)
    late = Steps(times_s=(0.1, 0.2), energies_j=(0.0, 1.0), regular=True)
    with pytest.raises(MeterError, match="no time in common"):
        together([early, late])
    with pytest.raises(MeterError, match=r"stepped 1 time\(s\)"):
        together([early, late.within(0.15, 0.3)])


def test_the_marks_of_an_h200_polled_beside_another_keep_its_beat() -> None:
    """As recorded, in milliseconds; both boards stepped at once, and each read that met a step took 12 to 15 ms."""
    recorded = [
        *((0.0, 21.6, 33.5), (98.0, 119.4, 134.2), (198.1, 218.5, 233.4), (300.3, 319.2, 333.9), (398.1, 418.5, 433.1)),
        *((500.4, 519.5, 533.7), (598.3, 618.9, 633.3), (700.5, 719.3, 734.2), (798.3, 819.3, 833.5)),
        *((898.2, 919.0, 934.1), (998.2, 1018.7, 1033.5), (1100.4, 1118.9, 1134.1), (1198.2, 1218.7, 1233.2)),
    ]
    marks = [(low / 1e3, asked / 1e3, high / 1e3, 1000 * place) for place, (low, asked, high) in enumerate(recorded)]
    assert beat(marks) == pytest.approx(0.1, rel=0.002)
