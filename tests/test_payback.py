"""When a search stops paying: against areas that can be counted by hand."""

from dataclasses import replace

import pytest

from autogreen.payback import Payback, mean_ratio
from autogreen.testing import scripted_results

NOTHING = (0.09, 0.99)  # a policy that adds next to nothing


def test_the_mean_over_tolerated_losses_is_the_area_under_the_staircase() -> None:
    """Floor 0.1: 1.0 up to 0.02, then 0.6 up to 0.05, then 0.3."""
    results = scripted_results([(0.02, 0.6), (0.05, 0.3), (0.06, 0.5), (0.2, 0.1)])
    assert mean_ratio(results, results.trials[:3]) == pytest.approx(0.2 * 1.0 + 0.3 * 0.6 + 0.5 * 0.3)
    assert mean_ratio(results, results.trials[:0]) is None


def test_a_policy_better_than_the_baseline_counts_from_no_loss_on() -> None:
    results = scripted_results([(-0.01, 0.5)])
    assert mean_ratio(results, results.trials) == pytest.approx(0.5)


def test_gain_and_cost_of_a_trial() -> None:
    """Ten trials at 0.9 everywhere, then ten of which one is at 0.5: 0.4 of 1 mJ in ten trials of 10 J."""
    results = scripted_results([(0.0, 0.9)] * 10 + [(0.0, 0.5)] + [(0.0, 0.9)] * 9)
    found = Payback.of(results)
    assert found is not None
    assert (found.trials, found.gain_per_item_j, found.trial_j) == (10, pytest.approx(0.4e-4), pytest.approx(10.0))
    assert found.against(1e6) is None  # 40 J
    assert "costs 10.0 J and is expected to save 4.00 J over 1e+05 items" in str(found.against(1e5))


def test_few_trials_and_none_feasible_tell_nothing() -> None:
    assert Payback.of(scripted_results([NOTHING] * 19)) is None
    results = scripted_results([NOTHING] * 30)
    hopeless = replace(results, trials=tuple(replace(trial, feasible=False) for trial in results.trials))
    assert Payback.of(hopeless) is None


def test_gated_trials_cost_and_gain_nothing() -> None:
    results = scripted_results([(0.0, 0.9)] * 30)
    gated = [
        replace(trial, state="gated", feasible=False) if number >= 20 else trial
        for number, trial in enumerate(results.trials)
    ]
    found = Payback.of(replace(results, trials=tuple(gated)))
    assert found is not None and found.gain_per_item_j == 0.0 and found.trial_j == pytest.approx(10.0)
