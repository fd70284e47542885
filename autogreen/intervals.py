"""The 95 % interval of a mean over consecutive windows, and when to look at it.

    windows  ->  for every correlation of neighbours:            ->  Student's distributions,  ->  mean ± half
                 how likely it is, and Student's t under it          weighted and added up

Neighbouring windows resemble each other (temperature, clocks, other programs), by how much is unknown, and a few
windows tell little about it. So no correlation is guessed: all of them are weighed by what the windows say. Few windows
leave strong correlation possible and the interval wide; many settle the matter, and it nears Student's.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from autogreen.measurement import Interval

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

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


def steady(values: Sequence[float], tolerance: float) -> bool:
    """Whether four values in a row have come to rest: the later two lie within `tolerance` of the earlier two, or no
    further than their noise explains.

    The noise is the deviation within the two pairs. That of the difference between the pairs' means is just as large,
    so twice as much is what chance explains. Values that rise or fall all the way are explained by no noise: a steep
    start alone would make it large. Independent values are called unsteady in some 20 of 100 cases, which costs a
    window and spoils nothing.
    """
    one, two, three, four = values
    apart = abs((three + four) - (one + two)) / 2
    if apart <= tolerance:
        return True
    within = math.sqrt(((one - two) ** 2 + (three - four) ** 2) / 4)
    return apart <= 2 * within and not (one < two < three < four or one > two > three > four)


@dataclass(frozen=True)
class _Terms:
    """What depends on the number of values alone, for every correlation. sum_inverse: of the elements of the inverse
    correlation matrix. likely: logarithm of the likelihood, less what the values add. quantile: of Student."""

    rho: "Array"
    sum_inverse: "Array"
    likely: "Array"
    quantile: float
    density: float


@cache
def _terms(n: int) -> _Terms:
    import numpy as np
    from scipy.special import stdtrit

    dof = n - 1
    rho = np.linspace(-TOP, TOP, round(2 * TOP / STEP) + 1)
    sum_inverse = 1 + dof * (1 - rho) / (1 + rho)
    return _Terms(
        rho=rho,
        sum_inverse=sum_inverse,
        likely=-0.5 * (dof * np.log(1 - rho**2) + np.log(sum_inverse)),
        quantile=float(stdtrit(dof, 0.975)),
        density=math.exp(math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)) / math.sqrt(dof * math.pi),
    )


def _half(values: "Array") -> float:
    """Half width of the interval around 0 of values of mean 0, not all equal."""
    import numpy as np
    from scipy.special import stdtr

    n, terms = len(values), _terms(len(values))
    dof, rho = n - 1, terms.rho
    # The inverse of the correlation matrix is tridiagonal: sums over it are sums over values and their neighbours.
    first, last, total = values[0], values[-1], values.sum()
    centre = (first + (total - first - rho * (total - last)) / (1 + rho)) / terms.sum_inverse
    own = values @ values - 2 * centre * total + n * centre**2
    neighbours = values[1:] @ values[:-1] - centre * (2 * total - first - last) + dof * centre**2
    first, last = (first - centre) ** 2, (last - centre) ** 2
    squares = first + (own - first - 2 * rho * neighbours + rho**2 * (own - last)) / (1 - rho**2)
    likely = terms.likely - 0.5 * dof * np.log(squares)
    weight = np.exp(likely - likely.max())
    weight /= weight.sum()
    counts = weight > 1e-9
    weight, centre = weight[counts], np.abs(centre[counts])
    error = np.sqrt(squares[counts] / (dof * terms.sum_inverse[counts]))
    weights = np.concatenate((weight, weight))
    slopes = weights / np.concatenate((error, error)) * terms.density
    # Newton's method, halving where it leaves the bracket: at `high` each of them holds 95 %.
    low, high = 0.0, float((centre + terms.quantile * error).max())
    half = float(weight @ (centre + terms.quantile * error))
    for _ in range(100):
        z = np.concatenate((half - centre, half + centre)) / np.concatenate((error, error))
        over = float(weights @ stdtr(dof, z)) - 1.95  # both ends: each tail's complement, less 1 and the 95 %
        low, high = (low, half) if over > 0 else (half, high)
        step = over / float(slopes @ (1 + z * z / dof) ** (-n / 2))
        half = half - step if low < half - step < high else (low + high) / 2
        if abs(step) <= 1e-6 * half:  # what is left is the square of that
            break
    return half
