"""Quality with its interval: means over examples, losses paired example by example, and the scores they are made of."""

from pathlib import Path
from typing import Any

import numpy as np

from autogreen.errors import EvaluationError
from autogreen.measure import Interval
from autogreen.tasks import Scores

RESAMPLES = 2000


def mean(scores: Scores) -> Interval:
    """Mean score with its 95 % interval.

    Raises:
        EvaluationError: a score is not finite, or there is none.
    """
    return _bootstrap(_finite(scores), scores.clusters)


def loss(reference: Scores, candidate: Scores) -> Interval:
    """Mean of reference minus candidate over the same examples (above 0: the candidate is worse), 95 % interval.

    Pairing removes what both find hard; it narrows the interval several-fold against two separate means.

    Raises:
        EvaluationError: a score is not finite, or the two are not of the same examples.
    """
    if len(reference.values) != len(candidate.values):
        raise EvaluationError(
            f"{len(candidate.values)} scores, but the reference has {len(reference.values)}: "
            "a split must give the same examples every time."
        )
    return _bootstrap(_finite(reference) - _finite(candidate), reference.clusters)


def keep(study: Path, key: str, split: str, scores: Scores) -> None:
    """Write the scores of one evaluation beside its study, whole or not at all."""
    folder = study / "scores"
    folder.mkdir(exist_ok=True)
    arrays = {"values": scores.values} | ({} if scores.clusters is None else {"clusters": scores.clusters})
    partial = folder / f".{key}-{split}.npz"
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    partial.rename(folder / f"{key}-{split}.npz")


def load(study: Path, key: str, split: str) -> Scores:
    """Read them back.

    Raises:
        OSError: they are not there.
    """
    with np.load(study / "scores" / f"{key}-{split}.npz", allow_pickle=False) as data:
        return Scores(values=data["values"], clusters=data.get("clusters"))


def _finite(scores: Scores) -> "np.ndarray[Any, Any]":
    values = np.asarray(scores.values, dtype=np.float64)
    if not len(values):
        raise EvaluationError("there are no scores: the split holds no example.")
    if scores.clusters is not None and len(scores.clusters) != len(values):
        raise EvaluationError(f"{len(values)} scores, but {len(scores.clusters)} clusters: each score needs one.")
    if broken := int((~np.isfinite(values)).sum()):
        raise EvaluationError(f"{broken} of {len(values)} scores are NaN or infinite: the model's output broke.")
    return values


def _bootstrap(values: "np.ndarray[Any, Any]", clusters: "np.ndarray[Any, Any] | None") -> Interval:
    """Percentile bootstrap over clusters (Efron and Tibshirani 1993; clusters: Cameron, Gelbach, Miller 2008)."""
    if clusters is None:
        sums, sizes = values, np.ones(len(values))
    else:
        _, cluster = np.unique(clusters, return_inverse=True)
        sums, sizes = np.bincount(cluster, weights=values), np.bincount(cluster).astype(float)
    random = np.random.default_rng(0)
    means = np.empty(RESAMPLES)
    for first in range(0, RESAMPLES, 100):  # in parts: 2000 draws of a large test set would not fit into memory
        drawn = random.integers(0, len(sums), (100, len(sums)))
        means[first : first + 100] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))
