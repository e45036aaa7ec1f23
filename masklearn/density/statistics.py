"""What chance gives: intervals by the bootstrap over inputs, p-values by permutation. Everything random has a seed."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES, PERMUTATIONS, CONFIDENCE = 1000, 9999, 0.95
AT_ONCE = 100
"""Resamples held in memory at a time."""


def bootstrap_ci(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over the last axis and their percentile bootstrap interval; NaN for an interval over one value.

    Args:
        values: Shape (..., inputs).
        seed: Of the resamples, which are the same inputs for all that stands before the last axis.
    """
    mean = values.mean(-1)
    if values.shape[-1] < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    found = stats.bootstrap(
        (values,), np.mean, axis=-1, vectorized=True, n_resamples=RESAMPLES, batch=AT_ONCE,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return mean, found.confidence_interval.low, found.confidence_interval.high


def resamples(values: np.ndarray, seed: int) -> np.ndarray:
    """Means over bootstrap resamples of the last axis: (sizes, inputs) to (resamples, sizes)."""
    rng, n = np.random.default_rng(seed), values.shape[-1]
    counts = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return counts @ values.T / n


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation; where it is not defined, why."""

    n: int
    rho: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    note: str = ""

    def row(self) -> dict[str, object]:
        return vars(self)


LEAST = 4
"""Inputs below which a correlation says nothing: of three, one ordering in six is in line by chance."""


def correlation(x: np.ndarray, y: np.ndarray, seed: int, what: tuple[str, str] = ("one", "the other")) -> Correlation:
    """Spearman's correlation with its bootstrap interval over inputs and its two-sided permutation p-value.

    Args:
        x, y: One value for each input; NaN where there is none, and such inputs are left out. Shape (inputs,).
        seed: Of resamples and permutations.
        what: What they are, for words.
    """
    known = ~(np.isnan(x) | np.isnan(y))
    x, y, n = x[known], y[known], int(known.sum())
    if n < LEAST:
        return Correlation(n, note=f"not defined: {n} inputs have both, and {LEAST} are needed")
    for name, values in zip(what, (x, y), strict=True):
        if np.ptp(values) <= 1e-9 * np.abs(values).max():
            return Correlation(n, note=f"not defined: {name} is the same for all {n} inputs")
    rho = float(stats.spearmanr(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]
    found = stats.bootstrap(
        (x, y), _spearman, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=AT_ONCE,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    ranks = stats.rankdata(x), stats.rankdata(y)  # which permuting does not change
    p = stats.permutation_test(
        ranks, _pearson, permutation_type="pairings", vectorized=True, n_resamples=PERMUTATIONS, batch=AT_ONCE,
        rng=np.random.default_rng(seed),
    ).pvalue  # fmt: skip
    return Correlation(n, rho, float(found.low), float(found.high), float(p))


def _spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    return _pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)


def _pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """0 where one is constant, as a resample of few inputs may be."""
    x, y = (values - values.mean(axis, keepdims=True) for values in (x, y))
    scale = np.sqrt((x**2).sum(axis) * (y**2).sum(axis))
    product = (x * y).sum(axis)
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)
