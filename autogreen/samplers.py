"""Optuna's samplers by name, seeded so that a resumed study proposes what an uninterrupted one would have."""

import hashlib
import warnings

import optuna


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
