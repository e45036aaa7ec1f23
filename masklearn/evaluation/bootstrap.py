"""Bootstrap intervals and p-values over few units, such as texts: wider than plain percentiles, as they should be.

The mean of n units is off by more than resamples of them show: their standard deviation is too small by the root of
(n - 1) / n, and Student's t distribution with n - 1 degrees of freedom is wider than the normal one. Percentiles are
further out by both factors, and p-values are larger. Source: Hesterberg 2015, What Teachers Should Know About the
Bootstrap (arXiv 1411.5279), the expanded percentile interval.
"""

from functools import lru_cache

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""Level of every interval."""
MIN_UNITS = 10
"""Resampled units from which intervals and p-values are given: with fewer, they find effects where there are none."""


def too_few(n: int, unit: str) -> str:
    """Say why there are too few units, named in the singular, for an interval; empty if there are enough."""
    return f"{n} {unit}{'' if n == 1 else 's'}; at least {MIN_UNITS} are needed" if n < MIN_UNITS else ""


@lru_cache(maxsize=4)
def resampled_counts(n: int, seed: int, n_resamples: int) -> np.ndarray:
    """Draw how often each of n units is in every bootstrap resample, shape (resamples, units)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)


def expanded_tail(tail: float, n: int) -> float:
    """Compute the share of resamples of n units beyond a value that the true one is beyond with probability `tail`."""
    return float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1)))


def interval(resampled: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the lower and upper end of the 95 % expanded percentile interval of a statistic of n units.

    Args:
        resampled: The statistic in every resample, shape (resamples, ...).
        n: Resampled units.

    Returns:
        Both of shape (...); NaN with fewer than `MIN_UNITS` units.
    """
    if n < MIN_UNITS:
        unknown = np.full(resampled.shape[1:], np.nan)
        return unknown, unknown
    tail = expanded_tail((1 - CONFIDENCE) / 2, n)
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return low, high


def p_value(n_against: int, n_resamples: int, n: int) -> float:
    """Compute the two-sided p-value of what holds in all but some resamples of n units; the inverse of `expanded_tail`.

    Args:
        n_against: Resamples in which it does not hold; with none, the p-value is the smallest that there can be.
        n_resamples: All resamples.
        n: Resampled units.

    Returns:
        NaN with fewer than `MIN_UNITS` units.
    """
    if n < MIN_UNITS:
        return float("nan")
    share = min((n_against + 1) / (n_resamples + 1), 0.5)
    return float(2 * stats.t.cdf(np.sqrt((n - 1) / n) * stats.norm.ppf(share), n - 1))
