"""Bootstrap intervals of means over texts."""

import numpy as np
from torch import Tensor

N_RESAMPLES = 1000
"""Bootstrap resamples of the texts."""


def mean_interval(values: Tensor, seed: int) -> tuple[float, float, float]:
    """The mean over texts of shape (texts,) and its 95 % percentile bootstrap interval."""
    of_text, rng = values.numpy(), np.random.default_rng(seed)
    n = len(of_text)
    means = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES) @ of_text / n
    low, high = np.quantile(means, (0.025, 0.975))
    return float(of_text.mean()), float(low), float(high)
