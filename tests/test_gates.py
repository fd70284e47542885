"""What must not count, what counts with a warning, and what counts before the device is warm: on scripted readings."""

import json
import math
import time
from dataclasses import replace
from typing import Any

import pytest

from autogreen.errors import MeterError
from autogreen.intervals import steady
from autogreen.measure import Measurement, Protocol, measure, measure_beside, rest
from autogreen.meters import LIMITS, Reading
from autogreen.testing import ScriptedClock, ScriptedMeter, check_meter

QUICK = Protocol(warmup_s=0.1, window_s=0.5, min_windows=4, max_windows=10, target_relative=0.05)


def run(protocol: Protocol = QUICK, idle_w: float | None = None, **script: Any) -> Measurement:
    clock = ScriptedClock()
    meter = ScriptedMeter(**{"watts": 100.0, "clock": clock, **script})
    return measure(lambda: clock.advance(0.01), items=1, meter=meter, protocol=protocol, clock=clock, idle_w=idle_w)


def once(**told: Any) -> list[dict[str, Any]]:
    """Said of the second window alone."""
    return [{}, told, {}]


def steps(*joules: float) -> tuple[tuple[float, float], ...]:
    """Steps of a window of 0.51 s and 51 J, the last of them at its end."""
    return tuple((0.51 * place / (len(joules) - 1), each) for place, each in enumerate(joules))


# --- discarded --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"told": once(disturbed="python (pid 7) came")}, "python (pid 7) came"),
        ({"told": once(disturbed="the power limit was moved from 700 to 600 W")}, "the power limit was moved"),
        ({"told": once(limited=("power cap", "thermal slowdown"))}, "thermal slowdown, it was too hot: see to its"),
        ({"told": once(limited=("hardware slowdown",))}, "hardware slowdown, its hardware halved the clocks"),
        ({"told": once(limited=("power brake",))}, "power brake, the power supply asked"),
        (
            {"watts": [100, 121, 100], "told": {"limit_w": 109.0}},
            "121 W is more than the device can take (limit 109 W)",
        ),
        ({"watts": [100, 50, 100], "idle_w": 60.0}, "50 W is less than the device takes at rest (60 W)"),
    ],
)
def test_a_window_with_a_physical_fault_is_kept_with_its_reading_and_not_used(script: Any, reason: str) -> None:
    found = run(**script)
    assert [window.used for window in found.windows] == [True, False, True, True, True]
    assert found.energy_per_item_j.mean == pytest.approx(1.0)
    bad = found.windows[1]
    assert bad.reading is not None and bad.reason is not None and bad.reason.startswith(reason)
    assert found.warnings == (
        f"1 of 5 windows were discarded, the first because: {bad.reason}. Each one's reason is kept.",
    )


def test_power_just_inside_its_bounds_counts() -> None:
    found = run(watts=[100, 109, 91, 100], told={"limit_w": 100.0}, idle_w=100.0)
    assert all(window.used for window in found.windows)
    assert found.idle_w == 100.0 and found.net_energy_per_item_j is not None
    assert found.net_energy_per_item_j.mean == pytest.approx(found.energy_per_item_j.mean - 1.0)


def test_when_all_windows_are_bad_there_is_an_error_with_every_reason_and_no_number() -> None:
    watts: list[Any] = [MeterError("the counter fell"), 0.0, 400.0, 10.0, math.nan, 100.0]
    told = [{"limit_w": 300.0}] * 5 + [{"limited": ("thermal slowdown",), "temperature_c": 95.0}]
    with pytest.raises(MeterError) as caught:
        run(watts=watts, told=told, idle_w=50.0, protocol=Protocol(warmup_s=0, min_windows=5, max_windows=9))
    said = str(caught.value)
    assert said.startswith("6 windows had to be discarded, too many to trust the rest: the counter fell; ")
    for reason in ("read 0.0 J", "more than the device can take", "less than the device takes at rest", "read nan J"):
        assert reason in said
    assert "thermal slowdown, it was too hot" in said


def test_an_error_lists_six_reasons_and_counts_the_others() -> None:
    with pytest.raises(MeterError, match=r"21 windows had to be discarded.*read -5\.0 J.*; and 15 more$"):
        clock = ScriptedClock()
        watts = [-1.0 - place for place in range(40)]
        meter = ScriptedMeter(watts=watts, clock=clock)
        measure(lambda: clock.advance(1.0), items=1, meter=meter, protocol=Protocol(window_s=1.0), clock=clock)


# --- used, and told ---------------------------------------------------------------------------------------------------


def test_a_power_cap_is_normal_and_told() -> None:
    found = run(told=[{"limited": ("power cap",)}, {}])
    assert found.limited == ("power cap",) and found.warnings == ()
    assert run().limited == ()
    assert "power cap" in LIMITS


def test_guests_are_counted_in_with_one_warning() -> None:
    found = run(told=[{"guests": ("Xorg (pid 9)",)}, {"guests": ("Xorg (pid 9)", "other (pid 3)")}])
    assert all(window.used for window in found.windows)
    (warning,) = found.warnings
    assert "all the time (Xorg (pid 9), other (pid 3))" in warning and "Stop them" in warning


@pytest.mark.parametrize(("sampled_w", "warned"), [(96.0, False), (104.0, False), (94.0, True), (107.0, True)])
def test_counter_and_power_samples_are_compared_over_all_windows(sampled_w: float, warned: bool) -> None:
    found = run(told={"sampled_w": sampled_w})
    assert bool(found.warnings) == warned
    if warned:
        assert f"the energy counter says 100 W and the power samples {sampled_w:g} W" in found.warnings[0]
    one_off = run(told=[{"sampled_w": 110.0}, {"sampled_w": 99.0}])
    assert one_off.warnings == ()  # only the mean counts


@pytest.mark.parametrize(
    ("joules", "warned"),
    [((0, 17, 34, 51), False), ((0, 18.5, 36, 51), False), ((0, 25, 37, 51), True), ((0, 0, 51), True), ((), False)],
)
def test_power_that_swings_within_a_window_is_told(joules: tuple[float, ...], warned: bool) -> None:
    found = run(told=[{}, {}, {"steps": steps(*joules) if joules else ()}, {}])
    assert all(window.used for window in found.windows)
    assert bool(found.warnings) == warned
    if warned:
        assert "unsteady within windows" in found.warnings[0] and "longer than a step" in found.warnings[0]
    assert Measurement.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_the_contract_looks_at_what_a_reading_tells() -> None:
    clock = ScriptedClock()
    for told, message in (
        ({"limited": ("tiredness",)}, "not in LIMITS"),
        ({"sampled_w": math.nan}, "not a power"),
        ({"clock_hz": (2e9, 1e9)}, "no clocks"),
        ({"steps": ((0.0, 0.0), (0.5, 60.0), (1.0, 50.0))}, "energy falls"),
        ({"steps": ((0.0, 0.0), (0.5, 50.0))}, "not the end"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_meter(ScriptedMeter(clock=clock, told=told), lambda: clock.advance(1.0))
    good = {"steps": ((0.0, 0.0), (0.5, 50.0), (1.0, 100.0)), "limited": LIMITS, "clock_hz": (1e9, 2e9)}
    assert check_meter(ScriptedMeter(clock=clock, told=good), lambda: clock.advance(1.0)).limited == LIMITS


# --- steady -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 1.0, 1.01, 1.01], True),  # within the tolerance
        ([1.0, 1.0, 1.03, 1.03], False),
        ([1.0, 1.1, 1.2, 1.3], False),  # a straight slope
        ([1.0, 1.2, 1.0, 1.3], True),  # noise explains it
        ([0.5, 0.79, 0.91, 0.96], False),  # a steep start is no noise
        ([1.3, 1.2, 1.1, 1.0], False),
        ([1.0, 1.1, 0.9, 1.0], True),
    ],
)
def test_four_values_are_steady_or_not(values: list[float], expected: bool) -> None:
    assert steady(values, 0.015) is expected


@pytest.mark.parametrize(("rise", "tau_s"), [(0.1, 0.5), (0.3, 1.0), (0.1, 2.0), (0.5, 0.3)])
def test_a_power_that_warms_up_moves_the_mean_by_less_than_one_percent(rise: float, tau_s: float) -> None:
    watts = [heating(rise, tau_s, window) for window in range(200)]
    cold = Protocol(warmup_s=0.0, preheat_s=0.0, max_windows=20)
    found, before = (run(protocol, watts=watts) for protocol in (replace(cold, preheat_s=30.0), cold))
    error, error_before = (abs(each.energy_per_item_j.mean - 1.0) for each in (found, before))
    assert error < min(0.01, 0.65 * error_before)
    early = [window for window in found.windows if not window.used]
    assert early and all(window.reason == "warming up" and window.reading is not None for window in early)
    assert found.windows[: len(early)] == tuple(early)
    assert not any("steady" in warning or "discarded" in warning for warning in found.warnings)  # nothing went wrong


def heating(rise: float, tau_s: float, window: int) -> float:
    return 100 * (1 - rise * math.exp(-0.26 * window / tau_s))


def test_what_never_comes_to_rest_is_measured_all_the_same_with_a_warning() -> None:
    protocol = Protocol(warmup_s=0, preheat_s=5.0, window_s=0.5, min_windows=4, max_windows=4, target_relative=1.0)
    found = run(protocol, watts=[100 * 1.1**n for n in range(100)])
    early = sum(not window.used for window in found.windows)
    assert (early, len(found.windows)) == (6, 10)  # 10 windows of 0.51 s exceed 5 s
    assert any("not steady after 5 s of windows" in warning and "warmup_s" in warning for warning in found.warnings)


@pytest.mark.parametrize("protocol", [{"preheat_s": 0.0}, {"min_windows": 3, "max_windows": 3}])
def test_without_preheating_the_first_window_counts(protocol: dict[str, Any]) -> None:
    found = run(Protocol(**{"warmup_s": 0, "min_windows": 4, "max_windows": 4, **protocol}), watts=[50.0, 60.0, 100.0])
    assert all(window.used for window in found.windows)


def test_windows_of_the_warm_up_are_no_failures() -> None:
    found = run(watts=[10.0 * n for n in range(1, 11)] + [100.0] * 20)
    assert sum(window.reason == "warming up" for window in found.windows) > QUICK.min_windows


def test_beside_looks_at_the_ratio_and_discards_pairs() -> None:
    clock, windows = ScriptedClock(), {"a": 0, "b": 0}
    meter = ScriptedMeter(clock=clock)

    def work(name: str) -> Any:
        def call() -> None:
            if meter._began:  # a warms up, b does not
                meter.watts = 100.0 if name == "b" else heating(0.3, 1.0, windows[name])
                windows[name] += 1
            clock.advance(0.5)

        return call

    protocol = Protocol(warmup_s=0, window_s=0.5, min_windows=20, max_windows=20)
    found = measure_beside(work("a"), work("b"), items=1, meter=meter, protocol=protocol, clock=clock)
    assert found.ratio.mean == pytest.approx(1.0, abs=0.01)
    for side in (found.candidate, found.reference):
        early = [window.reason == "warming up" for window in side.windows]
        assert early == [True] * (len(early) - 20) + [False] * 20 and len(early) > 24
    assert found.warnings == ()


# --- rest, and time ---------------------------------------------------------------------------------------------------


def test_rest_reads_the_device_without_work() -> None:
    clock, waited = ScriptedClock(), []
    meter = ScriptedMeter(watts=[70.0, 71.0], clock=clock, resolution_s=0.5)
    reading = rest(meter, seconds=1.0, synchronize=lambda: waited.append(True), sleep=clock.advance)
    assert (reading.energy_j, reading.duration_s, waited) == (105.0, 1.5, [True])  # three steps at least
    assert rest(meter, seconds=2.0, sleep=clock.advance).energy_j == 142.0


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"watts": 0.0}, "the power at rest cannot be told: the meter read 0.0 J"),
        ({"told": {"disturbed": "another program came"}}, "another program came. Try again"),
        ({"watts": MeterError("the counter froze")}, "the counter froze"),
    ],
)
def test_rest_that_cannot_be_told(script: dict[str, Any], message: str) -> None:
    clock = ScriptedClock()
    with pytest.raises(MeterError, match=message):
        rest(ScriptedMeter(**{"clock": clock, **script}), seconds=1.0, sleep=clock.advance)


def test_rest_cut_short_leaves_no_window_open() -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    meter = ScriptedMeter(clock=ScriptedClock())
    with pytest.raises(KeyboardInterrupt):
        rest(meter, seconds=1.0, sleep=interrupted)
    meter.start()


def test_the_wall_clock_is_never_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def stepped() -> float:
        raise AssertionError("the wall clock may step while a window is open")

    for name in ("time", "time_ns", "localtime", "gmtime"):
        monkeypatch.setattr(time, name, stepped)
    assert run().energy_per_item_j.mean == pytest.approx(1.0)


def test_a_clock_that_stops_in_a_window_gives_no_number() -> None:
    ticks = iter([0.0, 1.0, 1.0, 2.0])  # for the warm-up; then it stands
    meter = ScriptedMeter(clock=ScriptedClock())
    meter.stop = lambda: (meter._began.clear(), Reading(energy_j=1.0, low_j=1.0, high_j=1.0, duration_s=1.0))[1]  # type: ignore[method-assign]
    protocol = Protocol(warmup_s=0, min_windows=2, max_windows=2)
    with pytest.raises(MeterError, match=r"3 windows had to be discarded.*the clock stood still: 1 calls in 0"):
        measure(lambda: None, items=1, meter=meter, protocol=protocol, clock=lambda: next(ticks, 2.0))
