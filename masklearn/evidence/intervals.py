"""Bootstrap intervals of means over texts."""

import numpy as np
from scipy import stats
from torch import Tensor

N_RESAMPLES = 4000
"""Bootstrap resamples of the texts."""
MIN_TEXTS = 10
"""Texts from which an interval is given: with fewer, it misses a true mean of zero far too often."""
NOT_TESTED = "not tested"
"""What is said of a comparison of too few texts."""
TAIL = 0.025
"""Probability that the mean is below, and that it is above, the interval."""


def mean_interval(values: Tensor, seed: int) -> tuple[float, float, float]:
    """The mean over texts of shape (texts,) and its 95 % bootstrap interval; NaN as its ends with too few texts.

    The percentiles are further out than 2.5 and 97.5, by as much as the t-distribution is wider than the normal one:
    plain percentiles leave zero out of the interval twice as often as they should with ten texts. Source: Hesterberg
    2015, What Teachers Should Know About the Bootstrap (arXiv 1411.5279), the expanded percentile interval.
    """
    of_text, rng = values.numpy(), np.random.default_rng(seed)
    n = len(of_text)
    if too_few_texts(n):
        return float(of_text.mean()), float("nan"), float("nan")
    means = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES) @ of_text / n
    tail = float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(TAIL, n - 1)))
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(of_text.mean()), float(low), float(high)


def too_few_texts(n: int) -> str:
    """Why there are too few texts for an interval, if there are."""
    return f"{n} text{'' if n == 1 else 's'}; at least {MIN_TEXTS} are needed" if n < MIN_TEXTS else ""
