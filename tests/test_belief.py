"""What trials teach: against the closed form, and against the truth of a simulator."""

import numpy as np
import pytest

from autogreen.strategies.belief import DOUBTS, Belief
from autogreen.strategies.forecast import interactions
from autogreen.testing import Simulator

SIMULATOR = Simulator(layers=12, widths=4, interaction=0.5, probe_error=0.3, seed=1)


def told(count: int, seed: int = 0, simulator: Simulator = SIMULATOR):
    rng = np.random.default_rng(seed)
    picks = rng.integers(simulator.widths, size=(count, simulator.layers))
    losses = simulator.true.loss(picks) + 0.003 * rng.standard_normal(count)
    costs = simulator.true.cost(picks) + 0.01 * rng.standard_normal(count)
    return picks, losses, np.full(count, 0.003), costs, np.full(count, 0.01)


def test_the_posterior_mean_is_that_of_bayesian_linear_regression():
    belief, (picks, losses, noise, *_) = Belief.of(SIMULATOR.forecast), told(30)
    belief.loss.learn(picks, losses, noise)
    terms = belief.loss.terms(picks)
    rest = losses - belief.loss.prior(picks)
    precision = terms.T @ (terms / noise[:, None] ** 2) + np.eye(terms.shape[1])  # weights have variance 1
    weights = np.linalg.solve(precision, terms.T @ (rest / noise**2))
    assert belief.loss.weights == pytest.approx(weights, abs=1e-6)


def test_draws_have_the_posterior_as_their_mean_and_spread():
    belief, (picks, losses, noise, *_) = Belief.of(SIMULATOR.forecast), told(30)
    belief.loss.learn(picks, losses, noise)
    rng, terms = np.random.default_rng(0), belief.loss.terms(picks)
    draws = np.array([belief.loss.drawn(rng) for _ in range(4000)])
    covariance = np.linalg.inv(terms.T @ (terms / noise[:, None] ** 2) + np.eye(terms.shape[1]))
    spread = np.sqrt(np.diag(covariance))
    assert np.abs(draws.mean(0) - belief.loss.weights).max() < 5 * spread.max() / np.sqrt(4000)
    assert draws.std(0) == pytest.approx(spread, rel=0.1)


def test_before_any_trial_the_forecast_is_believed():
    belief = Belief.of(SIMULATOR.forecast)
    picks = told(5)[0]
    assert belief.loss.placed(picks, None) == pytest.approx(SIMULATOR.forecast.chain.loss(picks))
    assert belief.cost.placed(picks, None) == pytest.approx(SIMULATOR.forecast.chain.cost(picks))


def test_the_corrected_knapsack_says_what_the_belief_says_but_for_the_bend():
    belief, given = Belief.of(SIMULATOR.forecast), told(30)
    belief.loss.learn(*given[:3])
    belief.cost.learn(given[0], *given[3:])
    chain, picks = belief.chain((belief.loss.weights, belief.cost.weights)), told(20, seed=5)[0]
    for side, summed in ((belief.loss, chain.loss(picks)), (belief.cost, chain.cost(picks))):
        bend = side.terms(picks)[:, -1] * side.weights[-1]
        assert list(DOUBTS)[-1] == "bend"
        assert summed == pytest.approx(side.placed(picks, side.weights) - bend)


@pytest.mark.parametrize("interaction", [0.0, 2.0])
def test_trials_make_predictions_better(interaction):
    simulator = Simulator(layers=12, widths=4, interaction=interaction, probe_error=0.3, pairs=False, seed=1)
    belief, (unseen, *_) = Belief.of(simulator.forecast), told(200, seed=9, simulator=simulator)
    true = simulator.true.loss(unseen)
    before = np.abs(belief.loss.placed(unseen, None) - true).mean()
    belief.loss.learn(*told(80, simulator=simulator)[:3])
    after = np.abs(belief.loss.placed(unseen, belief.loss.weights) - true).mean()
    assert after < 0.2 * before


def test_probes_of_neighbours_tell_their_interactions_as_far_as_they_can() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.lognormal(0.0, 1.5, (2, 400))  # most neighbours hurt very unequally
    true = 0.3 * rng.exponential(1.0, 400)
    both = one + other + true * np.sqrt(one * other)
    assert interactions(one, other, both, 1e-9) == pytest.approx(true, rel=1e-6)
    noisy = both * rng.lognormal(0.0, 0.1, 400)
    raw = (noisy - one - other) / np.sqrt(one * other)
    found = interactions(one, other, noisy, 0.1)
    assert np.square(found - true).mean() < 0.6 * np.square(raw - true).mean()


def test_neighbours_that_do_nothing_together_are_said_to_do_nothing() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.lognormal(0.0, 1.0, (2, 400))
    found = interactions(one, other, (one + other) * rng.lognormal(0.0, 0.1, 400), 0.1)
    assert np.abs(found).mean() < 0.05
