"""Bootstrap intervals and permutation p-values over inputs; every random draw has a seed."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

N_RESAMPLES = 1000
"""Bootstrap resamples of the inputs."""
N_PERMUTATIONS = 9999
"""Permutations of a p-value; the smallest two-sided p-value is 2 / (N_PERMUTATIONS + 1)."""
CONFIDENCE = 0.95
"""Level of every interval."""
RESAMPLE_BATCH = 100
"""Resamples held in memory at a time."""
MIN_CORRELATION_INPUTS = 4
"""Fewest inputs of a correlation: with three, one ordering in six is perfectly ranked by chance."""


def bootstrap_ci(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute means over inputs and their 95 % percentile bootstrap interval.

    Args:
        values: Shape (..., inputs).
        seed: Seed of the resamples; all leading positions use the same resampled inputs.

    Returns:
        Mean, lower and upper end, each of shape (...). The ends are NaN if there is a single input.
    """
    mean = values.mean(-1)
    if values.shape[-1] < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    found = stats.bootstrap(
        (values,), np.mean, axis=-1, vectorized=True, n_resamples=N_RESAMPLES, batch=RESAMPLE_BATCH,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return mean, found.confidence_interval.low, found.confidence_interval.high


def bootstrap_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Compute the mean over inputs in every bootstrap resample: (sizes, inputs) to (resamples, sizes)."""
    rng, n = np.random.default_rng(seed), values.shape[-1]
    counts = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)
    return counts @ values.T / n


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation; all numbers but `n` are None where it is undefined."""

    n: int
    """Inputs that have both values."""
    rho: float | None = None
    low: float | None = None
    """Lower end of the bootstrap interval of rho."""
    high: float | None = None
    """Upper end of the bootstrap interval of rho."""
    p: float | None = None
    """Two-sided permutation p-value."""
    note: str = ""
    """Why the correlation is undefined."""

    def row(self) -> dict[str, object]:
        """Return the correlation as columns of a table."""
        return vars(self)


def correlation(x: np.ndarray, y: np.ndarray, seed: int, labels: tuple[str, str] = ("one", "the other")) -> Correlation:
    """Compute Spearman's correlation with its bootstrap interval and permutation p-value.

    Args:
        x, y: One value for each input, shape (inputs,). Inputs with a NaN in either are left out.
        seed: Seed of resamples and permutations.
        labels: Names of x and y in the note of an undefined correlation.
    """
    known = ~(np.isnan(x) | np.isnan(y))
    x, y, n = x[known], y[known], int(known.sum())
    if n < MIN_CORRELATION_INPUTS:
        return Correlation(n, note=f"not defined: {n} inputs have both values, {MIN_CORRELATION_INPUTS} are needed")
    for label, values in zip(labels, (x, y), strict=True):
        if np.ptp(values) <= 1e-9 * np.abs(values).max():
            return Correlation(n, note=f"not defined: {label} is the same for all {n} inputs")
    rho = float(stats.spearmanr(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]
    interval = stats.bootstrap(
        (x, y), _spearman, paired=True, vectorized=True, n_resamples=N_RESAMPLES, batch=RESAMPLE_BATCH,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    ranks = stats.rankdata(x), stats.rankdata(y)  # a permutation does not change ranks
    p = stats.permutation_test(
        ranks, _pearson, permutation_type="pairings", vectorized=True, n_resamples=N_PERMUTATIONS,
        batch=RESAMPLE_BATCH, rng=np.random.default_rng(seed),
    ).pvalue  # fmt: skip
    return Correlation(n, rho, float(interval.low), float(interval.high), float(p))


def _spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    return _pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)


def _pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Compute Pearson's correlation; 0 where x or y is constant, as in some resamples of few inputs."""
    x, y = (values - values.mean(axis, keepdims=True) for values in (x, y))
    scale = np.sqrt((x**2).sum(axis) * (y**2).sum(axis))
    product = (x * y).sum(axis)
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)
