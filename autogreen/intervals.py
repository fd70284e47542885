"""The 95 % interval of a mean over consecutive windows, and when to look at it.

    windows  ->  for every correlation of neighbours:            ->  Student's distributions,  ->  mean ± half
                 how likely it is, and Student's t under it          weighted and added up

Neighbouring windows resemble each other (temperature, clocks, other programs), by how much is unknown, and a few
windows tell little about it. So no correlation is guessed: all of them are weighed by what the windows say. Few windows
leave strong correlation possible and the interval wide; many settle the matter, and it nears Student's.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from autogreen.measurement import Interval

if TYPE_CHECKING:
    import numpy as np

TOP = 0.95  # correlations of neighbours that are weighed, from -TOP to TOP; beyond, 100 windows are worth less than 3
STEP = 0.05


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of at least 2 values in the order in which they came.

    The values are taken for a first-order autoregressive series of unknown mean, spread and correlation, every
    correlation between -0.95 and 0.95 being equally likely before and the other two having the usual flat priors
    (Zellner and Tiao, "Bayesian analysis of the regression model with autocorrelated errors", Journal of the American
    Statistical Association 59, 1964). Under a known correlation the mean has Student's distribution; the interval,
    symmetric about the arithmetic mean, holds 95 % of their mixture.

    Raises:
        ValueError: fewer than 2 values; their spread is unknown.
    """
    import numpy as np

    n = len(values)
    if n < 2:
        raise ValueError(f"{n} values have no spread; at least 2 are needed")
    raw = np.asarray(values, dtype=np.float64)
    mean = float(raw.mean())
    scale = float(raw.max() - raw.min())
    half = scale * _half((raw - mean) / scale) if scale > 0 else 0.0
    return Interval(mean=mean, low=mean - half, high=mean + half)


def looks(least: int, most: int) -> Iterator[int]:
    """Numbers of windows after which the interval is looked at: least, twice, four times as many ..., most.

    Whoever looks after every window stops when the interval is narrow by chance. Few looks, far apart, leave chance
    few occasions, and each look knows more about the correlation than the one before.
    """
    while least < most:
        yield least
        least *= 2
    yield most


def _half(values: "np.ndarray[Any, Any]") -> float:
    """Half width of the interval around 0 of values of mean 0, not all equal."""
    import numpy as np
    from scipy.optimize import brentq  # type: ignore[import-untyped]
    from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

    dof = len(values) - 1
    rho = np.linspace(-TOP, TOP, round(2 * TOP / STEP) + 1)
    # The inverse of the correlation matrix is tridiagonal: sums over it are sums over values and their neighbours.
    ones = 1 + dof * (1 - rho) / (1 + rho)
    centre = (values[0] + (values[1:].sum() - rho * values[:-1].sum()) / (1 + rho)) / ones
    rest = values[None, :] - centre[:, None]
    squares = rest[:, 0] ** 2 + ((rest[:, 1:] - rho[:, None] * rest[:, :-1]) ** 2).sum(1) / (1 - rho**2)
    likely = -0.5 * (dof * np.log(1 - rho**2) + np.log(ones) + dof * np.log(squares))
    weight = np.exp(likely - likely.max())
    weight /= weight.sum()
    error = np.sqrt(squares / (dof * ones))
    most = float((np.abs(centre) + stdtrit(dof, 0.975) * error).max())  # there each of them holds 95 %

    def missing(half: float) -> float:
        return 0.95 - float(weight @ (stdtr(dof, (half - centre) / error) - stdtr(dof, (-half - centre) / error)))

    return float(brentq(missing, 0.0, 1.001 * most, xtol=1e-9 * most))
