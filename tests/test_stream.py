"""A server measured: closed forms on a scripted clock, idle power between batches, the limit, and what overloads it."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import pytest

from autogreen import gates
from autogreen.evaluation import Evaluation
from autogreen.measure import measure, measure_beside
from autogreen.measurement import Beside, Measurement, Protocol
from autogreen.meters import Reading, choose
from autogreen.queueing import Load
from autogreen.stream import latencies
from autogreen.testing import ScriptedClock, ScriptedMeter, scripted_evaluation
from autogreen.workload import Workload

QUICK = Protocol(warmup_s=0.5, preheat_s=0.0, window_s=0.5, min_windows=20, max_windows=20, target_relative=1.0)
IDLE_W, BUSY_W = 10.0, 30.0  # of the board at rest; what a running batch adds


class Board(ScriptedMeter):
    """Takes IDLE_W at all times, and BUSY_W more while a batch runs; `watts` are not used."""

    busy_s = 0.0

    def program(self, service_s: float) -> Callable[[], None]:
        def call() -> None:
            self.clock.advance(service_s)  # type: ignore[attr-defined]
            self.busy_s += service_s

        return call

    def start(self) -> None:
        super().start()
        self._busy_before_s = self.busy_s

    def stop(self) -> Reading:
        reading = super().stop()
        energy_j = IDLE_W * reading.duration_s + BUSY_W * (self.busy_s - self._busy_before_s)
        return replace(reading, energy_j=energy_j, low_j=energy_j, high_j=energy_j)


def load(**changes: Any) -> Load:
    return Load(**{"rate_per_s": 40.0, "p95_s": 0.1, "batch": 1, **changes})


def measured(service_s: float, protocol: Protocol = QUICK, items: int = 1, **changes: Any) -> Measurement:
    clock = ScriptedClock()
    board = Board(clock=clock)
    return measure(
        board.program(service_s),
        items=items,
        load=load(**changes),
        meter=board,
        protocol=protocol,
        clock=clock,
        sleep=clock.advance,
    )


# --- joules -----------------------------------------------------------------------------------------------------------


def test_a_request_pays_for_its_batch_and_for_its_share_of_the_idle_time() -> None:
    found = measured(0.01)
    expected = IDLE_W / 40 + BUSY_W * 0.01
    energy = found.energy_per_item_j
    assert energy.low < expected < energy.high and energy.mean == pytest.approx(expected, rel=0.05)
    assert found.call_s == pytest.approx(1 / 40, rel=0.06)
    assert found.power_w == pytest.approx(energy.mean / found.call_s)
    assert (found.items_per_call, found.tier, found.warnings) == (1, "measured", ())
    assert measured(0.01, items=4).energy_per_item_j.mean == pytest.approx(energy.mean / 4)


def test_net_joules_leave_out_what_the_board_takes_at_rest_all_the_time() -> None:
    found = replace(measured(0.01), idle_w=IDLE_W)
    net = found.net_energy_per_item_j
    assert net is not None and net.mean == pytest.approx(BUSY_W * 0.01, rel=1e-6)


def test_a_batch_that_is_filled_costs_less_a_request_and_takes_longer() -> None:
    greedy, filled = measured(0.02, batch=4), measured(0.02, batch=4, batch_delay_s=0.08)
    assert greedy.served is not None and filled.served is not None
    for found in (greedy, filled):
        assert found.served is not None
        expected = (
            IDLE_W / 40 + BUSY_W * 0.02 / found.served.fill
        )  # a batch that is not full costs what a full one does
        assert found.energy_per_item_j.mean == pytest.approx(expected, rel=0.05)
        assert found.served.batch_s == pytest.approx(0.02) and found.served.utilization == pytest.approx(0.2)
    assert filled.served.fill > 1.5 * greedy.served.fill > 1.5
    assert filled.energy_per_item_j.mean < greedy.energy_per_item_j.mean
    assert filled.served.p50_s.mean > greedy.served.p50_s.mean


def test_the_estimate_bills_idle_watts_while_nothing_is_done() -> None:
    """The real clock and meter: of this second next to nothing is spent working."""
    meter = choose("cpu", name="estimate", watts_per_core=5.0, idle_watts=2.0)
    protocol = Protocol(warmup_s=0, preheat_s=0, window_s=0.05, min_windows=2, max_windows=2, foreign_limit=math.inf)
    found = measure(lambda: None, items=1, load=load(rate_per_s=200, p95_s=0.02), meter=meter, protocol=protocol)
    assert found.tier == "estimated" and found.served is not None
    per_s = sum(w.reading.energy_j for w in found.windows if w.reading) / sum(w.duration_s for w in found.windows)
    assert 2.0 * 0.99 < per_s < 2.0 + 5.0 * 0.5  # a loop that looks at the clock would take a whole core: 7 W
    assert found.energy_per_item_j.mean == pytest.approx(0.72 * per_s / found.served.requests, rel=0.2)  # 2 x 0.36 s
    assert 0 <= found.served.p50_s.mean < 0.02


# --- latency ----------------------------------------------------------------------------------------------------------


def test_latencies_are_those_of_theory() -> None:
    """One at a time and alike: mean by Pollaczek and Khinchine, and the median by Erlang."""
    service_s, rate, utilization = 0.0175, 40, 0.7
    found = measured(service_s, replace(QUICK, min_windows=1000, max_windows=1000))
    served = found.served
    assert served is not None and served.utilization == pytest.approx(utilization)
    expected = service_s + utilization * service_s / (2 * (1 - utilization))
    assert found.latency_s.mean == pytest.approx(expected, rel=0.05)
    assert found.latency_s.low < expected < found.latency_s.high
    assert served.requests == sum(window.calls for window in found.windows)
    # P(wait <= t) of M/D/1 is (1 - utilization) exp(rate t) for t up to one service (Erlang, 1909)
    median_s = service_s + math.log(0.5 / (1 - utilization)) / rate
    assert served.p50_s.mean == pytest.approx(median_s, rel=0.03)
    assert served.p95_s.low < served.p95_s.mean < served.p95_s.high


def test_latencies_by_hand() -> None:
    mean, p50, p95 = latencies([[0.1] * 10, [0.2] * 9 + [0.9]])
    assert mean.mean == pytest.approx((1.0 + 1.8 + 0.9) / 20)
    assert (p50.mean, p95.mean) == (0.1, 0.2)  # nearest rank: the 10th and the 19th of 20
    assert (p50.low, p50.high) == (0.1, 0.2) and p95.low == 0.1 and p95.high == 0.9
    mean, p50, p95 = latencies([[0.3], [0.3, 0.3]])
    assert mean.low == pytest.approx(0.3) and (p50.low, p95.high) == (0.3, 0.3)


def test_the_interval_of_a_percentile_holds_it_in_about_95_of_100_cases() -> None:
    """Windows of exponential latencies whose scale differs from window to window, as under a drifting load."""
    chance, held = random.Random(5), 0
    draws = sorted(chance.expovariate(1) * chance.lognormvariate(0, 0.3) for _ in range(200_000))
    truth = draws[190_000]
    for _ in range(100):
        windows = []
        for _ in range(30):
            scale = chance.lognormvariate(0, 0.3)
            windows.append([chance.expovariate(1) * scale for _ in range(40)])
        _, _, p95 = latencies(windows)
        held += p95.low <= truth <= p95.high
    assert held >= 87


# --- beside each other ------------------------------------------------------------------------------------------------


def test_two_servers_get_the_same_requests_and_their_luck_cancels() -> None:
    clock = ScriptedClock()
    board = Board(clock=clock)
    found = measure_beside(
        board.program(0.005),
        board.program(0.01),
        items=1,
        load=load(),
        reference_load=load(),
        meter=board,
        protocol=QUICK,
        clock=clock,
        sleep=clock.advance,
    )
    expected = (IDLE_W / 40 + BUSY_W * 0.005) / (IDLE_W / 40 + BUSY_W * 0.01)
    assert found.ratio.low <= expected <= found.ratio.high
    assert found.ratio.mean == pytest.approx(expected, rel=0.01)
    alone = found.candidate.energy_per_item_j
    assert (found.ratio.high / found.ratio.low - 1) < 0.5 * (alone.high / alone.low - 1)
    for ours, theirs in zip(found.candidate.windows, found.reference.windows, strict=True):
        assert abs(ours.calls - theirs.calls) <= 2 and abs(ours.duration_s - theirs.duration_s) < 0.02


def test_a_window_that_was_discarded_is_taken_again_with_the_same_requests() -> None:
    clock = ScriptedClock()
    busy = [0.0] * 7 + [0.9] + [0.0] * 100
    board = Board(clock=clock, foreign_cores=busy)
    found = measure_beside(
        board.program(0.005),
        board.program(0.005),
        items=1,
        load=load(),
        reference_load=load(),
        meter=board,
        protocol=QUICK,
        clock=clock,
        sleep=clock.advance,
    )
    sides = (found.candidate, found.reference)
    ours, theirs = ([window.calls for window in side.windows if window.used] for side in sides)
    assert sum(not window.used for side in sides for window in side.windows) == 1
    assert max(abs(mine - other) for mine, other in zip(ours, theirs, strict=True)) <= 1
    assert len(set(ours)) > 5  # every pair has requests of its own


def test_a_window_without_a_request_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    come = Load.arrivals

    def arrivals(self: Load, number: int, seconds: float, seed: int) -> list[float]:
        return come(self, number, seconds, seed) if number != 3 else []

    monkeypatch.setattr(Load, "arrivals", arrivals)
    found = measured(0.01)
    (empty,) = (window for window in found.windows if not window.used)
    assert empty is found.windows[3] and (empty.calls, empty.reason) == (0, "no request came")
    assert found.energy_per_item_j.mean == pytest.approx(IDLE_W / 40 + BUSY_W * 0.01, rel=0.05)


def test_the_ratio_is_of_sums_and_not_of_quotients() -> None:
    """Idle power alone, few requests a window: the mean of joules over requests would be 1/32 too high."""
    found = measured(1e-6, replace(QUICK, window_s=0.01, min_windows=600, max_windows=600), p95_s=1e-3)
    quotients = fmean(window.energy_per_call_j for window in found.windows if window.used)
    assert found.energy_per_item_j.mean == pytest.approx(IDLE_W / 40, rel=0.015)
    assert quotients > 1.015 * found.energy_per_item_j.mean


# --- too much ---------------------------------------------------------------------------------------------------------


def test_a_server_that_is_asked_for_too_much_is_told_soon_and_by_how_much() -> None:
    found = measured(0.05, protocol=replace(QUICK, preheat_s=30.0))  # 40 a second, and it can answer 20
    served = found.served
    assert served is not None and not served.stable and served.utilization == pytest.approx(2.0)
    assert len(found.windows) == 4
    assert "grows without bound" in found.warnings[0] and "40 requests a second are 2 times" in found.warnings[0]
    assert found.energy_per_item_j.mean == pytest.approx((IDLE_W + BUSY_W) * 0.05, rel=1e-3)  # never idle
    excess = Workload(kind="server", rate_per_s=40, p95_s=0.1).excess(found)["p95_s"]
    assert excess == pytest.approx(served.p95_s.mean - 0.1) and excess > 0.1


def test_the_worse_it_is_overloaded_the_more_the_limit_is_missed() -> None:
    workload = Workload(kind="server", rate_per_s=40, p95_s=0.1)
    missed = [workload.excess(measured(seconds))["p95_s"] for seconds in (0.01, 0.02, 0.03, 0.1, 10.0)]
    assert missed == sorted(missed) and missed[0] < 0 < missed[2]


def test_an_unstable_queue_misses_a_limit_that_nobody_waited_long_enough_to_miss() -> None:
    found = measured(0.0251, p95_s=0.1)
    assert found.served is not None and not found.served.stable
    within = replace(found, served=replace(found.served, p95_s=replace(found.served.p95_s, mean=0.05)))
    assert Workload(kind="server", rate_per_s=40, p95_s=0.1).excess(within)["p95_s"] > 0


def test_a_reference_that_is_overloaded_does_not_cut_the_comparison_short() -> None:
    clock = ScriptedClock()
    board = Board(clock=clock)
    found = measure_beside(
        board.program(0.005),
        board.program(0.05),
        items=1,
        load=load(),
        reference_load=load(),
        meter=board,
        protocol=QUICK,
        clock=clock,
        sleep=clock.advance,
    )
    assert len(found.candidate.windows) == 20 and found.candidate.warnings == ()
    assert "grows without bound" in found.reference.warnings[0]


# --- kept and judged --------------------------------------------------------------------------------------------------


def test_json_round_trip_is_exact_and_old_records_load() -> None:
    found = measured(0.01)
    assert Measurement.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    old = found.to_json()
    del old["served"]
    for window in old["windows"]:
        del window["batches"]
    read = Measurement.from_json(old)
    assert read.served is None and all(window.batches is None for window in read.windows)
    clock = ScriptedClock()
    both = measure_beside(
        lambda: clock.advance(0.01),
        lambda: clock.advance(0.01),
        items=1,
        load=load(),
        reference_load=load(),
        meter=ScriptedMeter(clock=clock),
        protocol=QUICK,
        clock=clock,
        sleep=clock.advance,
    )
    assert Beside.from_json(json.loads(json.dumps(both.to_json(), allow_nan=False))) == both


def test_power_that_comes_and_goes_is_a_servers_nature() -> None:
    found = measured(0.01)
    bent = [
        replace(window, reading=replace(window.reading, steps=((0.1, 0.5 * window.reading.energy_j),)))
        for window in found.windows
        if window.reading is not None
    ]
    assert not any("unsteady" in told for told in gates.warnings(bent))
    assert any("unsteady" in told for told in gates.warnings([replace(window, batches=None) for window in bent]))


def test_the_limit_is_a_constraint_of_its_own() -> None:
    workload, evaluation = Workload(kind="server", rate_per_s=40, p95_s=0.05), scripted_evaluation(0.0, 1.0)
    assert workload.excess(None) == {} and workload.excess(evaluation.measurement) == {}
    found = replace(evaluation, measurement=measured(0.01))
    assert workload.excess(found.measurement)["p95_s"] < 0
    assert Workload().excess(found.measurement) == {}
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert asdict(found)["measurement"]["served"]["rate_per_s"] == 40
