"""Intervals hold what they promise: against brute force, and on scripted counters that drift."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import integrate, stats

from autogreen.intervals import interval, looks
from autogreen.measurement import Protocol

REPEATS = 200


def script() -> ModuleType:
    """experiments/coverage.py, of which the tests below are the small version."""
    path = Path(__file__).parents[1] / "experiments" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_experiment", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


coverage = script()


# --- the interval -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[3.0, 4.5, 5.5, 4.0, 3.5], [1.0, 1.1, 1.2, 1.4, 1.3, 1.6], [2.0, 3.0]])
def test_the_interval_holds_95_percent_of_the_posterior_by_brute_force(values: list[float]) -> None:
    """Dense matrices, and the mean on a grid: only the spread is integrated out in closed form."""
    found, x, n = interval(values), np.array(values), len(values)
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    reach = np.sinh(np.linspace(-14, 14, 400_001)) * (found.high - found.mean)
    density = np.zeros_like(reach)
    for rho in np.linspace(-0.95, 0.95, 39):
        matrix = np.where(lags == 0, 1.0, rho**lags)
        inverse = np.linalg.inv(matrix)
        rest = (x - found.mean) @ inverse @ (x - found.mean)
        square = rest - 2 * reach * (inverse @ (x - found.mean)).sum() + reach**2 * inverse.sum()
        density += np.linalg.det(matrix) ** -0.5 * square ** (-n / 2)
    inside = np.abs(reach) <= found.high - found.mean
    held = integrate.trapezoid(density[inside], reach[inside]) / integrate.trapezoid(density, reach)
    assert held == pytest.approx(0.95, abs=2e-4)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.high - found.mean == pytest.approx(found.mean - found.low)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_drawn_from_its_own_assumptions_it_holds_the_truth_in_95_of_100(n: int) -> None:
    random, held = np.random.default_rng(n), 0
    for _ in range(500):
        rho = random.choice(np.linspace(-0.95, 0.95, 39))
        found = interval(coverage.series(random, rho, 1.0, (1, n))[0].tolist())
        held += found.low <= 0 <= found.high
    assert stats.binom.ppf(0.001, 500, 0.95) <= held <= stats.binom.ppf(0.999, 500, 0.95)


def test_many_independent_values_come_near_students() -> None:
    ratios = []
    for seed in range(20):
        values = np.random.default_rng(seed).standard_normal(400)
        found = interval(values.tolist())
        ratios.append((found.high - found.low) / 2 / (stats.t.ppf(0.975, 399) * stats.sem(values)))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.03)


def test_it_is_wider_where_neighbours_resemble_each_other() -> None:
    up, mixed = interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), interval([1.0, 6.0, 3.0, 4.0, 2.0, 5.0])
    assert up.mean == mixed.mean
    assert up.high - up.low > 2 * (mixed.high - mixed.low)


def test_it_scales_shifts_and_reverses_with_its_values() -> None:
    values = [3.0, 4.5, 5.5, 4.0, 3.5, 5.0]
    found, other = interval(values), interval([10 + 1e-9 * value for value in reversed(values)])
    assert other.mean == pytest.approx(10 + 1e-9 * found.mean)
    assert (other.high - other.low) / (found.high - found.low) == pytest.approx(1e-9, rel=1e-4)
    tiny = interval([1e-200 * value for value in values])
    assert tiny.high == pytest.approx(1e-200 * found.high)


def test_equal_values_have_no_width_and_one_value_no_interval() -> None:
    found = interval([0.1] * 7)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    with pytest.raises(ValueError, match="at least 2"):
        interval([1.0])


def test_looks_double_and_end_at_the_cap() -> None:
    assert list(looks(6, 16)) == [6, 12, 16]
    assert list(looks(8, 16)) == [8, 16]
    assert list(looks(20, 1000)) == [20, 40, 80, 160, 320, 640, 1000]
    assert list(looks(4, 4)) == [4]


# --- coverage through the real rule -----------------------------------------------------------------------------------


def between(held: float, low: float, high: float) -> bool:
    """Whether so many of REPEATS go with a true share from low to high, at one in a thousand each way."""
    return bool(stats.binom.ppf(0.001, REPEATS, low) <= held * REPEATS <= stats.binom.ppf(0.999, REPEATS, high))


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("rule", ["SCREENING", "FINAL"])
def test_a_measurement_holds_the_truth_in_93_to_97_of_100(rule: str, rho: float) -> None:
    found = coverage.ours(coverage.Case(what="alone", protocol=getattr(coverage, rule), cv=0.02, rho=rho), REPEATS)
    assert between(found.held, 0.93, 0.97)


@pytest.mark.parametrize("what", ["own", "shared"])
@pytest.mark.parametrize("rule", ["SCREENING", "FINAL"])
def test_a_ratio_holds_the_truth_in_93_to_97_of_100(rule: str, what: str) -> None:
    found = coverage.ours(coverage.Case(what=what, protocol=getattr(coverage, rule), cv=0.02, rho=0.6), REPEATS)
    assert between(found.held, 0.93, 0.97)


def test_at_the_cap_the_interval_is_wide_told_and_true() -> None:
    found = coverage.ours(coverage.Case(what="own", protocol=coverage.FINAL, cv=0.08, rho=0.3), REPEATS)
    assert found.warned > 0.99 and found.half > 2 * 0.01
    assert between(found.held, 0.93, 0.97)


def test_a_quiet_counter_is_done_after_the_least_number_of_windows() -> None:
    found = coverage.ours(coverage.Case(what="alone", protocol=coverage.FINAL, cv=0.002, rho=0.3), REPEATS)
    assert 40 <= found.windows < 40.5 and found.warned == 0
    assert between(found.held, 0.93, 0.97)


def test_the_naive_rule_fails_where_neighbours_resemble_each_other() -> None:
    quiet, drifting = (coverage.Case(what="alone", protocol=coverage.SCREENING, cv=0.02, rho=rho) for rho in (0.0, 0.6))
    assert coverage.naive(quiet, 4000).held == pytest.approx(0.945, abs=0.012)
    assert coverage.naive(drifting, 4000).held < 0.8


@pytest.mark.parametrize(("rise", "tau_s"), [(0.1, 0.5), (0.1, 2.0), (0.2, 1.0)])
def test_a_counter_that_warms_up_is_off_by_less_than_one_percent(rise: float, tau_s: float) -> None:
    error, _ = coverage.heated(rise, tau_s, Protocol())
    assert abs(error) < 0.01
