"""Who proposes: a few uniform policies first, then one of Optuna's samplers by name."""

import hashlib
import warnings

import optuna

# What an engineer would try by hand: the lowest precision everywhere, one level of the pruning range for all groups.
FIRST = tuple({"pruning": level, "quantization": 1.0} for level in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))


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
