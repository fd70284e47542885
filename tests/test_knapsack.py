"""The knapsack against brute force."""

import itertools

import numpy as np
import pytest

from autogreen.point import hypervolume
from autogreen.strategies.knapsack import Chain, solve, standing


def chain(seed: int, choices: int, options: int, pairs: bool) -> Chain:
    rng = np.random.default_rng(seed)
    joint = [rng.normal(scale=0.1, size=(options, options)) for _ in range(choices - 1)] if pairs else None
    casts = [rng.random((options, options)) * 0.1 for _ in range(choices - 1)] if pairs else None
    return Chain(
        losses=[np.sort(rng.lognormal(size=options)) for _ in range(choices)],
        costs=[-np.sort(rng.random(options)) for _ in range(choices)],
        pair_losses=joint,
        pair_costs=casts,
    )


def everything(found: Chain) -> np.ndarray:
    return np.array(list(itertools.product(*(range(len(values)) for values in found.losses))))


def places(found: Chain, picks: np.ndarray) -> np.ndarray:
    return np.stack([found.cost(picks), found.loss(picks)], axis=1)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_corner_of_the_front_is_found(seed, pairs):
    given = chain(seed, choices=6, options=3, pairs=pairs)
    true, found = places(given, everything(given)), places(given, solve(given))
    for price in np.geomspace(0.01, 100, 50):  # least loss + price x cost is a corner
        weights = np.array([price, 1.0])
        assert (found @ weights).min() == pytest.approx((true @ weights).min(), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_what_lies_between_corners_is_nearly_all_found(seed):
    given = chain(seed, choices=6, options=3, pairs=True)
    true, found = places(given, everything(given)), places(given, solve(given))
    corner = tuple(true[standing(true)].max(0) + 1e-9)
    covered = [hypervolume(map(tuple, some.tolist()), corner) for some in (found, true)]
    assert 0.98 <= covered[0] / covered[1] <= 1 + 1e-9


def test_picks_cost_more_and_lose_less_in_order():
    given = chain(0, choices=40, options=6, pairs=True)
    found = places(given, solve(given))
    assert (np.diff(found[:, 0]) > 0).all() and (np.diff(found[:, 1]) < 0).all()


def test_sums_are_those_of_a_plain_loop():
    given = chain(3, choices=5, options=4, pairs=True)
    picks = np.array([[0, 3, 2, 1, 3]])
    assert given.pair_losses is not None and given.pair_costs is not None
    row = picks[0]
    loss = sum(given.losses[i][row[i]] for i in range(5)) + sum(
        given.pair_losses[i][row[i], row[i + 1]] for i in range(4)
    )
    assert given.loss(picks)[0] == pytest.approx(loss)
    cost = sum(given.costs[i][row[i]] for i in range(5)) + sum(
        given.pair_costs[i][row[i], row[i + 1]] for i in range(4)
    )
    assert given.cost(picks)[0] == pytest.approx(cost)


def test_one_choice_alone():
    given = Chain(losses=[np.array([0.0, 1.0, 3.0])], costs=[np.array([0.0, -2.0, -1.0])])
    assert solve(given).tolist() == [[1], [0]]  # the third costs more and loses more than the second


def test_choices_that_change_nothing():
    given = Chain(losses=[np.zeros(3)] * 2, costs=[np.zeros(3)] * 2)
    assert len(solve(given)) == 1


def test_of_equals_one_stands():
    assert standing(np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0], [2.0, 1.0]])).tolist() == [True, False, True, False]
