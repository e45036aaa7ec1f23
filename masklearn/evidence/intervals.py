"""Bootstrap intervals of means over texts."""

from torch import Tensor

from masklearn.evaluation.bootstrap import interval, resampled_counts, too_few

N_RESAMPLES = 4000
"""Bootstrap resamples of the texts."""
NOT_TESTED = "not tested"
"""What is said of a comparison of too few texts."""


def mean_interval(values: Tensor, seed: int) -> tuple[float, float, float]:
    """The mean over texts of shape (texts,) and its 95 % bootstrap interval; NaN as its ends with too few texts."""
    of_text, n = values.numpy(), len(values)
    low, high = interval(resampled_counts(n, seed, N_RESAMPLES) @ of_text / n, n)
    return float(of_text.mean()), float(low), float(high)


def too_few_texts(n: int) -> str:
    """Why there are too few texts for an interval, if there are."""
    return too_few(n, "text")
