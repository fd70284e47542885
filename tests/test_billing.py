"""The bill against closed forms: windows as read, time between them at their mean power, caps, meters that fail."""

from collections.abc import Iterator

import pytest

from autogreen import billing
from autogreen.billing import Watch
from autogreen.errors import EvaluationError, MeterError
from autogreen.testing import ScriptedClock, ScriptedMeter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedClock]:
    clock = ScriptedClock()
    monkeypatch.setattr(billing.time, "monotonic", clock)
    yield clock


def test_phases_and_joules(clock: ScriptedClock) -> None:
    with Watch(ScriptedMeter(watts=10.0, clock=clock)) as watch:
        for _ in range(2):
            with watch.phase("training"):
                clock.advance(3.0)
        clock.advance(4.0)
        assert watch.spent_j() == pytest.approx(100)
    assert watch.seconds == {"training": 6.0} and watch.joules == pytest.approx({"training": 60.0})


def test_measuring_is_billed_as_it_was_read(clock: ScriptedClock) -> None:
    """2 s at 10 W before; windows of 1 s at 40 W and 3 s at 80 W and 4 s between them, at their mean of 70 W."""
    meter = ScriptedMeter(watts=[10.0, 40.0, 80.0, 10.0], clock=clock)
    with Watch(meter) as watch:
        clock.advance(2.0)
        with watch.measuring() as lent:
            for seconds in (1.0, 3.0):
                lent.start()
                clock.advance(seconds)
                lent.stop()
                clock.advance(2.0)
        assert watch.spent_j() == pytest.approx(20 + 8 * 70)
    assert watch.seconds == {"measuring": 8.0} and watch.joules == pytest.approx({"measuring": 560.0})
    assert (lent.tier, lent.boundary, lent.resolution_s) == (meter.tier, meter.boundary, meter.resolution_s)


def test_a_measurement_that_fails_leaves_the_bill_open(clock: ScriptedClock) -> None:
    meter = ScriptedMeter(watts=[10.0, MeterError("gone"), 10.0], clock=clock)
    with Watch(meter) as watch:
        clock.advance(2.0)
        with pytest.raises(MeterError, match="gone"), watch.measuring() as lent:
            lent.start()
            clock.advance(5.0)
            lent.stop()
        clock.advance(1.0)
        assert watch.spent_j() == pytest.approx(80)  # what could not be read, at the last known power
    with pytest.raises(MeterError, match="no window is open"):
        meter.stop()  # nothing was left open


@pytest.mark.parametrize(
    ("limits", "told"), [({"limit_s": 5.0}, "time limit of 5 s"), ({"limit_j": 30.0}, "energy limit of 30 J")]
)
def test_caps_are_hard(clock: ScriptedClock, limits: dict[str, float], told: str) -> None:
    with Watch(ScriptedMeter(watts=10.0, clock=clock), **limits) as watch:
        clock.advance(2.0)
        watch.check()
        clock.advance(4.0)
        with pytest.raises(EvaluationError, match=told), watch.phase("training"):
            raise AssertionError("nothing begins after a cap was passed")
