"""Bootstrap intervals and p-values over texts, and permutation p-values over inputs; every random draw has a seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.linalg import pinv

from masklearn.evaluation.bootstrap import interval, p_value, resampled_counts

N_RESAMPLES = 9999
"""Bootstrap resamples; the smallest two-sided p-value is above 2 / (N_RESAMPLES + 1), the more so the fewer texts."""
N_PERMUTATIONS = 9999
"""Permutations of a p-value; the smallest two-sided p-value is 2 / (N_PERMUTATIONS + 1)."""
ROUNDING = 1e-9
"""Differences up to which a resample is equal to a value, and so on both sides of it."""
RESAMPLE_BATCH = 100
"""Resamples held in memory at a time."""
MIN_CORRELATION_INPUTS = 4
"""Fewest inputs of a correlation: with three, one ordering in six is perfectly ranked by chance."""
MIN_PARTIAL_INPUTS, INPUTS_PER_GIVEN = 10, 3
"""Fewest inputs of a partial correlation: so many, and so many more for each variable that is partialled out."""


def count_units(units: np.ndarray) -> int:
    """Count the different units, of which each input names its own."""
    return len(set(units.tolist()))


def bootstrap_ci(values: np.ndarray, units: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute means over inputs and their 95 % bootstrap interval, see `bootstrap.interval`.

    Args:
        values: Shape (..., inputs).
        units: What is resampled: for every input the name of its text, shape (inputs,).
        seed: Seed of the resamples; all leading positions use the same resampled units.

    Returns:
        Mean, lower and upper end, each of shape (...). The ends are NaN if there are too few units.
    """
    mean = values.mean(-1)
    resampled = bootstrap_means(values.reshape(-1, values.shape[-1]), units, seed)
    low, high = interval(resampled, count_units(units))
    return mean, low.reshape(mean.shape), high.reshape(mean.shape)


def bootstrap_means(values: np.ndarray, units: np.ndarray, seed: int) -> np.ndarray:
    """Compute the mean over inputs in every bootstrap resample of units: (sizes, inputs) to (resamples, sizes)."""
    counts = resampled_inputs(units, seed)
    return counts @ values.T / counts.sum(1, keepdims=True)


def resampled_inputs(units: np.ndarray, seed: int) -> np.ndarray:
    """Draw how often each input is in every resample of whole units, shape (resamples, inputs)."""
    index, names = pd.factorize(units)
    return resampled_counts(len(names), seed, N_RESAMPLES)[:, index]


def bootstrap_p(resampled: np.ndarray, n: int, null: float = 0.0) -> float:
    """Compute the two-sided bootstrap p-value of a statistic of n units, shape (resamples,), against a value."""
    difference = resampled - null
    tails = (difference <= ROUNDING).sum(), (difference >= -ROUNDING).sum()
    return p_value(int(min(tails)), len(resampled), n)


def bootstrap_p_values(values: np.ndarray, units: np.ndarray, seed: int, null: float = 0.0) -> np.ndarray:
    """Compute the p-values of means over inputs against a value: (sizes, inputs) to (sizes,)."""
    n = count_units(units)
    return np.array([bootstrap_p(resampled, n, null) for resampled in bootstrap_means(values, units, seed).T])


def is_smallest_p(p: float, n: int) -> bool:
    """Whether no resample of n units, or no permutation, was on the other side, so that only more could lower p."""
    smallest = p_value(0, N_RESAMPLES, n), 2 / (N_PERMUTATIONS + 1)
    return any(np.isclose(p, each, rtol=1e-6) for each in smallest)


def inputs_needed(n_given: int) -> int:
    """Fewest inputs of a correlation given so many variables."""
    return MIN_PARTIAL_INPUTS + INPUTS_PER_GIVEN * n_given if n_given else MIN_CORRELATION_INPUTS


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation; all numbers but `n` are None where it is undefined.

    With too few texts for a bootstrap there is no interval; and no p-value if texts have several inputs.
    """

    n: int
    """Inputs that have both values."""
    rho: float | None = None
    low: float | None = None
    """Lower end of the bootstrap interval of rho."""
    high: float | None = None
    """Upper end of the bootstrap interval of rho."""
    p: float | None = None
    """Two-sided p-value."""
    note: str = ""
    """Why the correlation is undefined."""

    def row(self) -> dict[str, object]:
        """Return the correlation as columns of a table."""
        return vars(self)


def correlation(
    x: np.ndarray, y: np.ndarray, units: np.ndarray, seed: int, labels: tuple[str, str] = ("one", "the other"),
    given: Sequence[np.ndarray] = (),
) -> Correlation:  # fmt: skip
    """Compute Spearman's correlation with its bootstrap interval and its p-value; partial if asked for.

    The partial correlation is that of the residuals of the ranks of x and y after a linear fit to the ranks of the
    given variables. The p-value comes from permutations of these residuals, each fitted again (Freedman and Lane 1983):
    a permuted residual correlates with the given variables by chance, unlike those of x and y. Inputs of one text are
    alike, so that they cannot be permuted: where texts have several, the p-value is that of the bootstrap.

    Args:
        x, y: One value for each input, shape (inputs,). Inputs with a NaN in any variable are left out.
        units: What the bootstrap resamples: for every input the name of its text, shape (inputs,).
        seed: Seed of resamples and permutations.
        labels: Names of x and y in the note of an undefined correlation.
        given: Variables that are partialled out, shape (inputs,) each.
    """
    values = np.stack([x, y, *given]).astype(float)
    known = ~np.isnan(values).any(0)
    values, units = values[:, known], units[known]
    n, needed = values.shape[1], inputs_needed(len(given))
    if n < needed:
        of_all = "have both values" if not given else "have all values"
        return Correlation(n, note=f"not defined: {n} inputs {of_all}, {needed} are needed")
    for label, row in zip(labels, values[:2], strict=True):
        if np.ptp(row) <= 1e-9 * np.abs(row).max():
            return Correlation(n, note=f"not defined: {label} is the same for all {n} inputs")
    one, other = _rank_residuals(values)
    ranks_given = _centred_ranks(values[2:])
    if min(np.abs(one).max(), np.abs(other).max()) < 1e-6:
        return Correlation(n, note=f"not defined: what is given determines {labels[0]} or {labels[1]}")
    resampled, n_units = rank_bootstrap(values, units, seed), count_units(units)
    p = bootstrap_p(resampled, n_units) if n_units < n else _permutation_p(one, other, ranks_given, seed)
    low, high, p = (None if np.isnan(x) else float(x) for x in (*interval(resampled, n_units), p))
    return Correlation(n, partial_rank_correlation(values), low, high, p)


def _permutation_p(one: np.ndarray, other: np.ndarray, given: np.ndarray, seed: int) -> float:
    """Compute the p-value of the correlation of two residuals of ranks, given those of other variables."""
    found = stats.permutation_test(
        (one, other), lambda x, y, axis: _pearson(_residuals(x, given), _residuals(y, given), axis),
        permutation_type="pairings", vectorized=True, n_resamples=N_PERMUTATIONS,
        batch=RESAMPLE_BATCH, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


def partial_rank_correlation(values: np.ndarray) -> float:
    """Compute the rank correlation of the first two variables given the others, from shape (variables, inputs)."""
    return float(_pearson(*_rank_residuals(values)))


def _rank_residuals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the ranks of later variables leave of those of the first two: (variables, inputs) to (inputs,)."""
    ranks = _centred_ranks(values)
    one, other = _residuals(ranks[:2], ranks[2:])
    return one, other


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Rank inputs, with mean 0: shape (variables, inputs)."""
    ranks = stats.rankdata(values, axis=1)
    return ranks - ranks.mean(1, keepdims=True)


def _residuals(values: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return what a linear fit to given variables (given, inputs) leaves of values (..., inputs), all of mean 0."""
    return values - values @ pinv(given) @ given


def rank_bootstrap(values: np.ndarray, units: np.ndarray, seed: int) -> np.ndarray:
    """Compute the rank correlation of two variables in bootstrap resamples, given the others.

    Equal units and seeds draw the same resamples, so that two correlations over the same inputs can be subtracted.

    Args:
        values: The two variables, and those that are partialled out; no NaN. Shape (variables, inputs).
        units: What is resampled: for every input the name of its text, shape (inputs,).
        seed: Seed of the resamples.

    Returns:
        Shape (resamples,); 0 where a variable is constant in a resample, or is determined by those given.
    """
    batches = []
    all_counts = resampled_inputs(units, seed)
    for begin in range(0, len(all_counts), RESAMPLE_BATCH):
        counts = all_counts[begin : begin + RESAMPLE_BATCH]
        ranks = np.stack([_weighted_ranks(row, counts) for row in values], axis=1)  # (resamples, variables, inputs)
        n_inputs = counts.sum(-1)[:, None, None]
        centred = ranks - (ranks * counts[:, None]).sum(-1, keepdims=True) / n_inputs
        cross = (centred * counts[:, None]) @ centred.transpose(0, 2, 1)
        batches.append(_partial(cross))
    return np.concatenate(batches)


def _weighted_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rank the inputs of resamples, given as counts (resamples, inputs); equal values share their mean rank."""
    _, first, group = np.unique(np.sort(values), return_index=True, return_inverse=True)
    order = values.argsort(kind="stable")
    size = np.add.reduceat(counts[:, order], first, axis=1)
    ranks = np.empty(counts.shape)
    ranks[:, order] = (size.cumsum(1) - (size - 1) / 2)[:, group]
    return ranks


def _partial(cross: np.ndarray) -> np.ndarray:
    """Correlate the first two of several variables given the others, from their cross products (..., v, v)."""
    between, inner = cross[..., :2, 2:], cross[..., 2:, 2:]
    left = cross[..., :2, :2] - between @ np.linalg.pinv(inner, hermitian=True) @ between.swapaxes(-1, -2)
    own = left[..., 0, 0], left[..., 1, 1]
    defined = np.minimum(own[0] / np.maximum(cross[..., 0, 0], 1e-12), own[1] / np.maximum(cross[..., 1, 1], 1e-12))
    scale = np.sqrt(np.maximum(own[0] * own[1], 0))
    product = left[..., 0, 1]
    return np.divide(product, scale, out=np.zeros_like(product), where=(defined > 1e-9) & (scale > 0)).clip(-1, 1)


def _pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Compute Pearson's correlation; 0 where x or y is constant."""
    x, y = (values - values.mean(axis, keepdims=True) for values in (x, y))
    scale = np.sqrt((x**2).sum(axis) * (y**2).sum(axis))
    product = (x * y).sum(axis)
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)
