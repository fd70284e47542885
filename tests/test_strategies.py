"""Strategies: what they promise, and that guidance pays on a front that is known."""

import itertools
from dataclasses import replace

import numpy as np
import optuna
import pytest

from autogreen.explore import explore
from autogreen.point import hypervolume
from autogreen.strategies import Seen
from autogreen.strategies.direct import Direct
from autogreen.strategies.forecast import Forecast
from autogreen.strategies.guided import Guided, gains
from autogreen.testing import Simulator

optuna.logging.set_verbosity(optuna.logging.WARNING)
SMALL = Simulator(layers=24, widths=4, seed=3)


def guided(simulator: Simulator, seed: int = 0) -> Guided:
    return Guided(simulator.space, simulator.forecast, seed=seed, max_loss=simulator.max_loss)


def run(simulator: Simulator, strategy, trials: int, seed: int = 0):
    return list(explore(simulator.evaluate, strategy, trials=trials, max_loss=simulator.max_loss, seed=seed))


@pytest.mark.parametrize("make", [lambda s: Direct(s.space), guided])
def test_the_same_seed_proposes_the_same(make):
    first, again = (run(SMALL, make(SMALL), 14) for _ in range(2))
    assert [trial.answers for trial in first] == [trial.answers for trial in again]


@pytest.mark.parametrize("make", [lambda s: Direct(s.space), guided])
def test_every_hole_is_answered_with_one_of_its_options(make):
    holes = SMALL.space.holes()
    for trial in run(SMALL, make(SMALL), 14):
        assert set(trial.answers) == set(holes)
        assert all(trial.answers[name] in holes[name].options for name in holes)
        assert [rule.scheme for rule in trial.policy.settings["quantization"]] == list(trial.answers.values())


def test_a_fresh_strategy_goes_on_as_the_first_would_have():
    """What a resumed study has is what it saw, not the object."""
    whole = run(SMALL, guided(SMALL), 13)
    seen = [
        Seen(answers=trial.answers, loss=trial.evaluation.loss, ratio=trial.evaluation.ratio) for trial in whole[:12]
    ]
    fresh, study = guided(SMALL), optuna.create_study(directions=["minimize", "minimize"])
    fresh.enqueue(study, 12, seen)
    _, answers = fresh.fill(study.ask(), seen)
    assert answers == whole[12].answers


def test_what_is_being_evaluated_elsewhere_is_not_proposed_again():
    whole = run(SMALL, guided(SMALL), 13)
    seen = [
        Seen(answers=trial.answers, loss=trial.evaluation.loss, ratio=trial.evaluation.ratio) for trial in whole[:12]
    ]
    strategy, study = guided(SMALL), optuna.create_study(directions=["minimize", "minimize"])
    pending = []
    for number in range(12, 16):
        strategy.enqueue(study, number, seen, pending)
        pending.append(strategy.fill(study.ask(), seen)[1])
    assert pending[0] == whole[12].answers
    assert len({tuple(answers.values()) for answers in pending}) == 4


def test_guidance_beats_the_stock_sampler_on_a_known_front():
    direct = SMALL.share([trial.policy for trial in run(SMALL, Direct(SMALL.space), 30)])
    found = SMALL.share([trial.policy for trial in run(SMALL, guided(SMALL), 30)])
    assert found > 0.95 > direct + 0.05


@pytest.mark.parametrize("make", [Direct, lambda space, offers: replaced(space, offers)])
def test_what_is_offered_comes_first_and_is_completed(make):
    """One offer says all, the other half of it; the latter's other half is the strategy's affair."""
    whole = dict.fromkeys(SMALL.space.holes(), "fp8")
    half = {name: "bf16" for place, name in enumerate(whole) if place % 2}
    strategy = make(SMALL.space, [SMALL.space.params(whole), SMALL.space.params(half)])
    first, second = run(SMALL, strategy, 3)[:2]
    assert first.answers == whole
    assert {name: second.answers[name] for name in half} == half and set(second.answers) == set(whole)


def replaced(space, offers) -> Guided:
    return Guided(space, SMALL.forecast, offers, seed=0, max_loss=SMALL.max_loss)


@pytest.mark.parametrize("make", [lambda s: Direct(s.space), guided])
def test_a_small_space_is_tried_as_a_whole_and_no_policy_twice(make):
    tiny = Simulator(layers=3, widths=2, seed=4)
    found = run(tiny, make(tiny), 12)
    assert len(found) == len({tuple(trial.answers.values()) for trial in found}) == 8
    assert [trial.number for trial in found] == list(range(8))


def test_a_forecast_in_divergences_gets_its_scale_from_uniform_policies():
    simulator = Simulator(layers=24, widths=4, seed=3)
    chosen = [
        replace(choice, losses=tuple(50 * loss for loss in choice.losses)) for choice in simulator.forecast.choices
    ]
    strategy = Guided(
        simulator.space, Forecast(choices=tuple(chosen), unit="divergence"), seed=0, max_loss=simulator.max_loss
    )
    found = simulator.share([trial.policy for trial in run(simulator, strategy, 30)])
    direct = simulator.share([trial.policy for trial in run(simulator, Direct(simulator.space), 30)])
    assert found > max(0.9, direct + 0.05)


def test_gains_are_differences_of_hypervolume():
    rng, corner = np.random.default_rng(0), (1.0, 1.0)
    held, places = rng.random((12, 2)) * 1.2, rng.random((40, 2)) * 1.2
    before = hypervolume(map(tuple, held.tolist()), corner)
    for place, gain in zip(places, gains(places, held, corner), strict=True):
        after = hypervolume(map(tuple, [*held.tolist(), place.tolist()]), corner)
        assert gain == pytest.approx(after - before, abs=1e-12)


def test_the_simulator_repeats_itself_and_its_noise_does_not():
    policy = run(SMALL, guided(SMALL), 1)[0].policy
    assert SMALL.evaluate(policy) == SMALL.evaluate(policy)
    found = [SMALL.evaluate(policy, repeat=n) for n in range(400)]
    losses = np.array([one.loss.mean for one in found if one.loss])
    assert losses.std() == pytest.approx(SMALL.noise[0], rel=0.15)
    assert losses.mean() == pytest.approx(SMALL.places([policy])[0, 0], abs=4 * SMALL.noise[0] / 20)


def test_the_simulators_front_is_the_true_one():
    tiny = Simulator(layers=5, widths=3, interaction=1.0, seed=2)
    holes = tiny.space.holes()
    rows = itertools.product(*(hole.options for hole in holes.values()))
    everything = [tiny.space.filled(dict(zip(holes, row, strict=True))) for row in rows]
    assert 0.99 < tiny.share(everything) < 1.02  # corners and what lies near them; all policies are a little more
