"""The statistics of circuit tests: sign, binomial and permutation tests, and the correction for many sizes.

Source of the five tests: Shi et al. 2024, Hypothesis Testing the Circuit Hypothesis in LLMs (arXiv 2410.13032).
"""

import math

import numpy as np
from scipy import stats

ALPHA = 0.05
"""Level of every test, after correction for the number of sizes."""
QUANTILE = 0.9
"""Share of random subgraphs that a circuit must beat."""
TOLERANCE = 0.1
"""How far the share of texts that prefer the subgraph may be from one half, for both to count as equivalent."""
N_PERMUTATIONS = 1000
"""Permutations of the independence test, at least; the smallest p-value is 1 / (N_PERMUTATIONS + 1)."""
PERMUTATIONS_PER_TEST = 40
"""The same for each of many tests: twice what the smallest p-value needs to be below `ALPHA` after correction."""
ROUNDING = 1e-9
"""Differences of shares below this are rounding."""


def equivalence_p(wins: float, n: int) -> float:
    """The p-value of "texts prefer subgraph and model about as often": a small one shows that they differ.

    The null hypothesis is that the share of texts that the subgraph wins is within `TOLERANCE` of one half; its least
    favourable case is the edge of that range.

    Args:
        wins: Texts on which the subgraph's score is the higher one; a tie counts one half.
        n: Texts.
    """
    distance = abs(wins / n - 0.5) - ROUNDING
    counts = np.arange(n + 1)
    extreme = np.abs(counts / n - 0.5) >= distance
    return min(1.0, float(stats.binom.pmf(counts[extreme], n, 0.5 + TOLERANCE).sum()))


def at_least_p(wins: int, n: int) -> float:
    """The p-value of "at most `QUANTILE` of all random draws lose": a small one shows that more do.

    Args:
        wins: Draws that lose against the circuit.
        n: Draws.
    """
    return float(stats.binom.sf(wins - 1, n, QUANTILE))


def at_most_p(wins: int, n: int) -> float:
    """The p-value of "at least `QUANTILE` of all random draws lose": a small one shows that fewer do."""
    return float(stats.binom.cdf(wins, n, QUANTILE))


def independence_p(x: np.ndarray, y: np.ndarray, seed: int = 0, n_tests: int = 1) -> float:
    """The permutation p-value of "x and y are independent" by the Hilbert-Schmidt independence criterion.

    Gaussian kernels, as wide as the median distance. The observed pairing counts as one of the permutations.
    Source: Gretton et al. 2007, A Kernel Statistical Test of Independence.

    Args:
        x, y: One value for each text, shape (texts,).
        seed: Seed of the permutations.
        n_tests: Tests that the p-value will be corrected for; many need more permutations to reject at all.
    """
    n, rng = len(x), np.random.default_rng(seed)
    n_permutations = max(N_PERMUTATIONS, PERMUTATIONS_PER_TEST * n_tests)
    centring = np.eye(n) - 1 / n
    kernel_x, kernel_y = centring @ _gaussian_kernel(x) @ centring, _gaussian_kernel(y)
    observed = (kernel_x * kernel_y).sum()
    orders = (rng.permutation(n) for _ in range(n_permutations))
    permuted = np.array([(kernel_x * kernel_y[np.ix_(order, order)]).sum() for order in orders])
    n_as_large = int((permuted >= observed * (1 - ROUNDING)).sum())
    return (1 + n_as_large) / (1 + n_permutations)


def _gaussian_kernel(values: np.ndarray) -> np.ndarray:
    distance = np.abs(values[:, None] - values)
    width = float(np.median(distance[np.triu_indices(len(values), 1)])) or float(distance.max()) or 1.0
    return np.exp(-((distance / width) ** 2) / 2)


def share_interval(wins: float, n: int) -> tuple[float, float]:
    """The 95 % Clopper-Pearson interval of a share; half a win is none at the lower end, one at the upper."""
    low = stats.binomtest(int(np.floor(wins)), n).proportion_ci(1 - ALPHA).low
    high = stats.binomtest(int(np.ceil(wins)), n).proportion_ci(1 - ALPHA).high
    return float(low), float(high)


def fewest_texts(n_tests: int) -> int:
    """The fewest texts with which the equivalence test can reject at all, if it is one of so many."""
    return next(n for n in range(2, 1000) if equivalence_p(n, n) <= ALPHA / n_tests)


def fewest_paired_texts(n_tests: int) -> int:
    """The fewest texts with which the independence test can reject at all: so many that they have enough orders."""
    fewest = fewest_texts(1)
    return next(n for n in range(fewest, 1000) if 1 / math.factorial(n) <= ALPHA / n_tests)


def fewest_draws(n_tests: int) -> int:
    """The fewest random draws with which sufficiency and necessity can be shown at all, if there are so many tests."""
    return next(n for n in range(1, 1000) if at_least_p(n, n) <= ALPHA / n_tests)
