"""Who proposes: a few uniform policies first, then one of Optuna's samplers by name."""

import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import optuna

from autogreen.space import SearchSpace

LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def first(space: SearchSpace) -> Iterator[dict[str, Any]]:
    """What an engineer would try by hand: each scheme on all layers, unpruned; then the last of them, with the last
    data type for all else and one level of the pruning range for all groups."""
    schemes = [scheme for scheme in space.options("quantization", "scheme") if scheme != "none"]
    for scheme in schemes:
        yield space.everywhere("quantization", "scheme", scheme)
    lowest: dict[str, Any] = {}
    for section, field in (("quantization", "scheme"), ("precision", "dtype")):
        if options := space.options(section, field):
            found = space.everywhere(section, field, options[-1])
            lowest |= {name: value for name, value in found.items() if name.startswith(section)}
    for level in LEVELS:
        yield {**space.uniform({"pruning": level}), **lowest}


def make_sampler(name: str, seed: int, number: int, trials: int | None) -> optuna.samplers.BaseSampler:
    """An Optuna sampler whose randomness depends on the study's seed and the trial's number alone."""
    seed = int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
    population = min(50, max(8, (trials or 200) // 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            return optuna.samplers.TPESampler(multivariate=True, seed=seed)
        if name == "nsgaii":
            return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
        if name == "nsgaiii":
            return optuna.samplers.NSGAIIISampler(population_size=population, seed=seed)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)
