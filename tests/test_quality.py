"""Intervals against closed forms; pairing; what is not a number is an error."""

import numpy as np
import pytest

from autogreen.errors import EvaluationError
from autogreen.quality import loss, mean
from autogreen.tasks import Scores


def scores(values: object, clusters: object = None) -> Scores:
    array = None if clusters is None else np.asarray(clusters)
    return Scores(values=np.asarray(values, dtype=float), clusters=array)


@pytest.mark.parametrize("seed", range(3))
def test_independent_examples_agree_with_the_normal_approximation(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.7, 0.2, 4000)
    found = mean(scores(values))
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_hits_and_misses_agree_with_the_binomial() -> None:
    values = np.r_[np.ones(900), np.zeros(100)]
    found = mean(scores(values))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sqrt(0.9 * 0.1 / 1000), rel=0.1)


@pytest.mark.parametrize("equal", [True, False])
def test_clusters_agree_with_the_cluster_robust_standard_error(equal: bool) -> None:
    random = np.random.default_rng(1)
    sizes = np.full(300, 10) if equal else random.integers(1, 20, 300)
    clusters = np.repeat(np.arange(300), sizes)
    values = random.normal(0, 1, 300)[clusters] + random.normal(0, 0.3, len(clusters))
    order = random.permutation(len(values))  # members of a cluster need not stand together
    found = mean(scores(values[order], clusters[order]))
    residuals = np.bincount(clusters, weights=values - values.mean())  # Liang and Zeger 1986, for a mean
    half = 1.96 * np.sqrt((residuals**2).sum() * 300 / 299) / len(values)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    naive = mean(scores(values))
    assert found.high - found.low > 2 * (naive.high - naive.low)
    assert found.mean == pytest.approx(naive.mean)


def test_clusters_of_one_change_nothing_but_chance() -> None:
    values = np.random.default_rng(2).normal(size=500)
    alone, clustered = mean(scores(values)), mean(scores(values, np.arange(500)))
    assert clustered == alone


def test_pairing_narrows() -> None:
    random = np.random.default_rng(3)
    hard = random.normal(0, 1, 2000)
    reference, candidate = hard + random.normal(0.05, 0.1, 2000), hard + random.normal(0, 0.1, 2000)
    paired = loss(scores(reference), scores(candidate))
    half = 1.96 * (reference - candidate).std(ddof=1) / np.sqrt(2000)
    assert paired.mean == pytest.approx((reference - candidate).mean())
    assert (paired.high - paired.low) / 2 == pytest.approx(half, rel=0.1)
    apart = sum((found := mean(scores(values))).high - found.low for values in (reference, candidate))
    assert paired.high - paired.low < apart / 5


def test_loss_is_above_0_where_the_candidate_is_worse() -> None:
    assert loss(scores([1, 1, 1, 1]), scores([1, 0, 1, 0])).mean == 0.5
    same = loss(scores([1, 0, 1]), scores([1, 0, 1]))
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_the_same_scores_give_the_same_interval() -> None:
    values = np.random.default_rng(4).normal(size=100)
    assert mean(scores(values)) == mean(scores(values))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_an_error(broken: float) -> None:
    good, bad = scores([1, 1, 0]), scores([1, broken, broken])
    with pytest.raises(EvaluationError, match="2 of 3 scores are NaN or infinite"):
        mean(bad)
    with pytest.raises(EvaluationError, match="2 of 3"):
        loss(good, bad)
    with pytest.raises(EvaluationError, match="2 of 3"):
        loss(bad, good)


def test_no_scores_other_examples_and_missing_clusters_are_errors() -> None:
    with pytest.raises(EvaluationError, match="no scores"):
        mean(scores([]))
    with pytest.raises(EvaluationError, match="2 scores, but the reference has 3"):
        loss(scores([1, 1, 1]), scores([1, 1]))
    with pytest.raises(EvaluationError, match="3 scores, but 2 clusters"):
        mean(scores([1, 1, 1], [0, 1]))


def test_truth_values_are_numbers() -> None:
    hits = Scores(values=np.array([True, False]))
    assert mean(hits).mean == 0.5 and loss(hits, Scores(values=np.array([False, False]))).mean == 0.5
