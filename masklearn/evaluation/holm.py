"""Holm's correction of p-values for their number, and what it multiplies each of them by."""

from collections.abc import Sequence
from itertools import takewhile

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, so that one of them is at most `alpha` by chance with that probability.

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure. They are returned in the order given;
    each is at least its own p-value.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    stepped = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors))
    corrected = np.empty(len(p_values))
    corrected[order] = stepped
    return corrected.tolist()


def holm_factors(p_values: Sequence[float], level: float) -> list[int]:
    """Find what Holm's correction multiplies each p-value by: it is rejected if and only if that is at most `level`.

    The factor is the number of p-values, less those that would be rejected first if this one came last. It does not
    depend on the p-value itself: level / factor is what it must not exceed while the others stay as they are.
    """
    n, factors = len(p_values), list[int]()
    for i in range(n):
        others = sorted([*p_values[:i], *p_values[i + 1 :]])
        rejected = takewhile(lambda ranked: ranked[1] * (n - ranked[0]) <= level, enumerate(others))
        factors.append(n - sum(1 for _ in rejected))
    return factors
