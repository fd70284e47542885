"""Measuring: closed forms on a scripted clock, the order of what happens, and every window that must not count."""

import json
import math
import random
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from autogreen.errors import ConfigError, MeterError
from autogreen.measure import Beside, Measurement, Protocol, interval, measure, measure_beside, rest_w
from autogreen.meters import choose
from autogreen.testing import ScriptedClock, ScriptedMeter

QUICK = Protocol(warmup_s=0.1, window_s=0.5, min_windows=4, max_windows=10, target_relative=0.05)


def steady(clock: ScriptedClock, seconds: float = 0.01) -> Any:
    return lambda: clock.advance(seconds)


def noisy(cv: float, n: int, seed: int = 0) -> list[float | Exception]:
    chance = random.Random(seed)
    return [100 * (1 + cv * chance.gauss(0, 1)) for _ in range(n)]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_a_steady_load_gives_power_times_time_over_items() -> None:
    clock = ScriptedClock()
    found = measure(steady(clock), items=8, meter=ScriptedMeter(watts=100, clock=clock), protocol=QUICK, clock=clock)
    assert found.energy_per_item_j.mean == pytest.approx(100 * 0.01 / 8)
    assert found.energy_per_item_j.high == pytest.approx(found.energy_per_item_j.low)
    assert found.latency_s.mean == pytest.approx(0.01)
    assert (found.items_per_call, found.tier, found.boundary, found.warnings) == (8, "measured", "scripted", ())
    assert len(found.windows) == 4 and all(window.used and window.reason is None for window in found.windows)
    assert all(window.duration_s >= 0.5 - 1e-9 for window in found.windows)


def test_the_interval_is_over_windows_and_the_cap_is_said() -> None:
    clock, watts = ScriptedClock(), noisy(0.4, 10, seed=3)
    meter = ScriptedMeter(watts=watts, clock=clock)
    found = measure(steady(clock), items=1, meter=meter, protocol=QUICK, clock=clock)
    expected = interval([power * 0.01 for power in watts if not isinstance(power, Exception)])
    assert found.energy_per_item_j.mean == pytest.approx(expected.mean)
    assert found.energy_per_item_j.high == pytest.approx(expected.high)
    assert len(found.windows) == QUICK.max_windows
    assert any("after 10 windows (wanted ±5.0%)" in warning and "max_windows" in warning for warning in found.warnings)


def test_it_stops_when_the_interval_is_narrow() -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(watts=[100, 106, 100], clock=clock)
    found = measure(steady(clock), items=1, meter=meter, protocol=QUICK, clock=clock)
    energy = found.energy_per_item_j
    assert len(found.windows) == 8  # looked at after 4, 8, 10
    assert (energy.high - energy.low) / 2 <= 0.05 * energy.mean


def test_energy_is_never_below_zero() -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(watts=[1, 500], clock=clock)
    protocol = Protocol(warmup_s=0, min_windows=2, max_windows=2)
    assert measure(steady(clock), items=1, meter=meter, protocol=protocol, clock=clock).energy_per_item_j.low == 0.0


def test_the_meters_own_range_widens_the_interval() -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(watts=[100, 102], clock=clock, uncertainty=0.5, tier="estimated")
    found = measure(steady(clock), items=1, meter=meter, protocol=QUICK, clock=clock)
    assert found.range_per_item_j.low == pytest.approx(found.energy_per_item_j.low * 0.5)
    assert found.range_per_item_j.high == pytest.approx(found.energy_per_item_j.high * 1.5)


def test_a_stepping_meter_does_not_bias() -> None:
    """The meter covers only a part of the window, between its own steps: power times time still holds."""
    clock = ScriptedClock()

    class Stepping(ScriptedMeter):
        def stop(self) -> Any:
            reading = super().stop()
            part = 0.8
            return type(reading)(
                energy_j=reading.energy_j * part,
                low_j=reading.energy_j * part,
                high_j=reading.energy_j * part,
                duration_s=reading.duration_s * part,
            )

    meter = Stepping(watts=100, clock=clock, resolution_s=0.3)
    found = measure(steady(clock), items=2, meter=meter, protocol=QUICK, clock=clock)
    assert found.energy_per_item_j.mean == pytest.approx(0.5)
    assert all(window.duration_s >= 3 * 0.3 - 1e-9 for window in found.windows)  # several steps long


@pytest.mark.parametrize("seconds", [1e-4, 0.3, 7.0])
def test_short_and_long_calls_fill_a_window(seconds: float) -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(watts=10, clock=clock)
    found = measure(steady(clock, seconds), items=1, meter=meter, protocol=QUICK, clock=clock)
    assert found.energy_per_item_j.mean == pytest.approx(10 * seconds)
    calls = max(1, math.ceil(round(0.5 / seconds, 6)))
    assert all(calls <= window.calls <= calls + 1 for window in found.windows)  # the clock itself rounds


# --- order and faults -------------------------------------------------------------------------------------------------


def test_nothing_but_the_calls_runs_inside_a_window() -> None:
    clock, events = ScriptedClock(), []

    class Logged(ScriptedMeter):
        def start(self) -> None:
            events.append("start")
            super().start()

        def stop(self) -> Any:
            events.append("stop")
            return super().stop()

    def call() -> None:
        events.append("call")
        clock.advance(0.25)

    measure(
        call,
        items=1,
        meter=Logged(clock=clock),
        protocol=QUICK,
        synchronize=lambda: events.append("synchronize"),
        clock=clock,
    )
    first = events.index("start")
    assert events.index("call") < first  # warmed up before
    assert events[first - 1] == "synchronize"
    assert events[first : events.index("stop") + 1] == ["start", "synchronize", "call", "call", "synchronize", "stop"]
    assert events.count("start") == events.count("stop") == 4


def test_a_failing_call_leaves_no_window_open() -> None:
    clock, meter, calls = ScriptedClock(), ScriptedMeter(), iter(range(1000))
    meter.clock = clock

    def call() -> None:
        clock.advance(0.25)
        if next(calls) == 4:
            raise MemoryError("out of memory")

    with pytest.raises(MemoryError):
        measure(call, items=1, meter=meter, protocol=QUICK, clock=clock)
    assert meter.opened == 2
    meter.start()
    clock.advance(1)
    assert meter.stop().energy_j == 100


@pytest.mark.parametrize("bad", [MeterError("the counter fell"), 0.0, -5.0, math.nan, math.inf])
def test_a_bad_window_is_discarded_with_its_reason_never_counted(bad: float | Exception) -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(watts=[100, bad, 100], clock=clock)
    found = measure(steady(clock), items=1, meter=meter, protocol=QUICK, clock=clock)
    assert found.energy_per_item_j.mean == pytest.approx(1.0)
    assert [window.used for window in found.windows] == [True, False, True, True, True]
    discarded = found.windows[1]
    assert discarded.reading is None and discarded.reason
    with pytest.raises(ValueError, match="no energy was read"):
        _ = discarded.energy_per_call_j
    (warning,) = found.warnings
    assert (
        warning == f"1 of 5 windows were discarded, the first because: {discarded.reason}. Each one's reason is kept."
    )


def test_a_meter_that_keeps_failing_ends_in_an_error_with_the_reasons() -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(watts=[100, MeterError("GPU is lost.")], clock=clock)
    with pytest.raises(MeterError, match=r"5 windows had to be discarded.*GPU is lost"):
        measure(steady(clock), items=1, meter=meter, protocol=QUICK, clock=clock)


def test_a_clock_that_stands_still() -> None:
    with pytest.raises(MeterError, match="clock stood still"):
        measure(lambda: None, items=1, meter=ScriptedMeter(), protocol=Protocol(warmup_s=0), clock=lambda: 1.0)


def test_foreign_load_is_discarded_and_tried_again() -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(clock=clock, foreign_cores=[0.0, 0.9, 0.1])
    found = measure(steady(clock), items=1, meter=meter, protocol=QUICK, clock=clock)
    assert [window.used for window in found.windows] == [True, False, True, True, True]
    assert found.windows[1].reason == "0.90 foreign busy cores (limit 0.25)"
    assert found.windows[1].reading is not None


def test_foreign_load_that_stays_is_used_with_a_warning() -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(clock=clock, foreign_cores=1.5)
    found = measure(steady(clock), items=1, meter=meter, protocol=QUICK, clock=clock)
    assert [window.used for window in found.windows] == [False] * 4 + [True] * 4
    assert "4 of 4 windows ran beside other programs (1.50 foreign busy cores" in found.warnings[0]


def test_spinning_threads_are_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(clock=clock, busy_cores=[1.0, 1.0, 1.9, 1.0])
    found = measure(steady(clock), items=1, meter=meter, protocol=QUICK, clock=clock)
    assert "grew 1.9-fold" in found.warnings[0] and "OMP_WAIT_POLICY=passive" in found.warnings[0]
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 1))
    meter = ScriptedMeter(clock=clock, busy_cores=1.9)
    found = measure(steady(clock), items=1, meter=meter, protocol=QUICK, clock=clock)
    assert "1.9 cores were busy although torch has 1 thread" in found.warnings[0]


@pytest.mark.parametrize("items", [0, -1, 1.5, True])
def test_bad_items(items: Any) -> None:
    with pytest.raises(ConfigError, match="items is"):
        measure(lambda: None, items=items, meter=ScriptedMeter(), protocol=QUICK)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("warmup_s", -1),
        ("warmup_s", "1"),
        ("window_s", 0),
        ("window_s", math.nan),
        ("min_windows", 1),
        ("min_windows", 2.5),
        ("min_windows", True),
        ("max_windows", 3),
        ("target_relative", 0),
        ("target_relative", 1.1),
        ("preheat_s", -1),
        ("preheat_s", 4000),
        ("foreign_limit", -0.1),
    ],
)
def test_bad_protocols_name_key_value_and_what_is_allowed(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{key} is {value!r}; allowed: a (whole )?number"):
        Protocol(**{key: value})


# --- side by side -----------------------------------------------------------------------------------------------------


def test_beside_alternates_and_finds_the_ratio() -> None:
    clock, order = ScriptedClock(), []

    def work(name: str, seconds: float) -> Any:
        def call() -> None:
            order.append(name)
            clock.advance(seconds)

        return call

    found = measure_beside(
        work("a", 0.25), work("b", 0.5), items=4, meter=ScriptedMeter(clock=clock), protocol=QUICK, clock=clock
    )
    assert (found.ratio.mean, found.ratio.low, found.ratio.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.candidate.latency_s.mean == pytest.approx(0.25)
    assert found.reference.energy_per_item_j.mean == pytest.approx(100 * 0.5 / 4)
    assert len(found.candidate.windows) == len(found.reference.windows) == 4
    runs = "".join(order)
    while "aa" in runs or "bb" in runs:
        runs = runs.replace("aa", "a").replace("bb", "b")
    assert runs.endswith(("ababa", "babab"))  # A B B A: neighbours of one kind melted together above
    assert found.warnings == ()


def test_beside_is_per_item_when_batches_differ() -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(clock=clock)
    found = measure_beside(
        steady(clock), steady(clock), items=8, reference_items=2, meter=meter, protocol=QUICK, clock=clock
    )
    assert found.ratio.mean == pytest.approx(2 / 8)
    assert (found.candidate.items_per_call, found.reference.items_per_call) == (8, 2)
    with pytest.raises(ConfigError, match="items is 0"):
        measure_beside(steady(clock), steady(clock), items=8, reference_items=0, meter=meter, protocol=QUICK)


def test_a_linear_drift_cancels_in_the_ratio() -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(clock=clock, watts=[100 + 2 * n for n in range(40)])
    protocol = Protocol(warmup_s=0.1, min_windows=4, max_windows=8, target_relative=0.05)
    found = measure_beside(steady(clock), steady(clock), items=1, meter=meter, protocol=protocol, clock=clock)
    assert found.ratio.mean == pytest.approx(1.0, abs=0.002)
    assert found.ratio.low < 1 < found.ratio.high


@pytest.mark.parametrize(("least", "most", "pairs"), [(3, 9, 4), (5, 5, 5), (2, 2, 2)])
def test_beside_looks_at_even_numbers_of_pairs_below_the_cap(least: int, most: int, pairs: int) -> None:
    clock, protocol = ScriptedClock(), Protocol(warmup_s=0, min_windows=least, max_windows=most)
    meter = ScriptedMeter(clock=clock)
    found = measure_beside(steady(clock), steady(clock), items=1, meter=meter, protocol=protocol, clock=clock)
    assert len(found.candidate.windows) == len(found.reference.windows) == pairs


def test_beside_says_when_its_cap_was_hit() -> None:
    clock = ScriptedClock()
    meter = ScriptedMeter(clock=clock, watts=noisy(0.5, 40, seed=2))
    found = measure_beside(steady(clock), steady(clock), items=1, meter=meter, protocol=QUICK, clock=clock, warm=False)
    assert len(found.candidate.windows) == 10 and "of the ratio is still" in found.warnings[0]
    assert found.ratio.low > 0


# --- kept -------------------------------------------------------------------------------------------------------------


def test_json_round_trip_is_exact() -> None:
    clock = ScriptedClock()
    watts: list[float | Exception] = [*noisy(0.1, 3), MeterError("lost"), *noisy(0.1, 30, seed=1)]
    meter = ScriptedMeter(clock=clock, watts=watts, busy_cores=0.7, foreign_cores=[0.0, 1.0, 0.1])
    found = measure(steady(clock), items=3, meter=meter, protocol=QUICK, clock=clock)
    assert Measurement.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    both = measure_beside(steady(clock), steady(clock), items=3, meter=meter, protocol=QUICK, clock=clock)
    assert Beside.from_json(json.loads(json.dumps(both.to_json(), allow_nan=False))) == both


@pytest.mark.parametrize("data", [{}, {"windows": None}, {"energy_per_item_j": {"mean": 1.0}}, []])
def test_json_that_is_no_measurement(data: Any) -> None:
    with pytest.raises(ConfigError, match="not a stored measurement"):
        Measurement.from_json(data)
    with pytest.raises(ConfigError, match="not a stored comparison"):
        Beside.from_json({"reference": data})


# --- real meters ------------------------------------------------------------------------------------------------------


def test_the_estimate_end_to_end() -> None:
    meter = choose("cpu", watts_per_core=5.0, idle_watts=0.0)
    protocol = Protocol(warmup_s=0.05, window_s=0.05, min_windows=2, max_windows=3, foreign_limit=math.inf)
    found = measure(lambda: sum(range(20_000)), items=1, meter=meter, protocol=protocol)
    assert found.tier == "estimated"
    assert 0 < found.energy_per_item_j.mean <= 5.0 * found.latency_s.mean * 1.2
    assert found.range_per_item_j.low < found.energy_per_item_j.low


@pytest.mark.gpu
def test_on_a_gpu_two_equal_things_are_equal_and_half_the_work_is_half_the_energy() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)

    def work(times: int) -> Any:
        def call() -> None:
            for _ in range(times):
                a @ a

        return call

    meter, protocol = choose("cuda"), Protocol(warmup_s=2.0, min_windows=4, max_windows=6)
    wait = torch.cuda.synchronize
    found = measure_beside(work(20), work(40), items=1, meter=meter, protocol=protocol, synchronize=wait)
    assert found.ratio.mean == pytest.approx(0.5, rel=0.03)
    same = measure_beside(work(20), work(20), items=1, meter=meter, protocol=protocol, synchronize=wait, warm=False)
    assert same.ratio.mean == pytest.approx(1.0, rel=0.03)
    print(found.ratio, same.ratio, found.candidate.energy_per_item_j)  # noqa: T201


def test_rest_is_looked_at_where_a_counter_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autogreen.measure.rest", lambda meter, *, seconds, synchronize: meter.stop())
    protocol = Protocol(foreign_limit=0.25)

    def idle_w(**script: Any) -> float | None:
        clock = ScriptedClock()
        meter = ScriptedMeter(**{"watts": 70.0, "clock": clock, **script})
        meter.start()
        clock.advance(2.0)
        return rest_w(meter, protocol, lambda: None)

    assert idle_w() == 70.0
    assert idle_w(tier="estimated") is None
    assert idle_w(foreign_cores=0.5) is None and idle_w(told={"guests": ("Xorg",)}) is None
    assert idle_w(watts=MeterError("the counter froze")) is None
