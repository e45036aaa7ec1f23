"""Phases of the density curve: where the top token is recovered, and where steep descent turns into refinement."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from masklearn.density.curves import MIN_CURVE_SIZES
from masklearn.density.measurements import LEARNED_KIND, MaskMeasurements
from masklearn.density.statistics import bootstrap_means

MIN_BEND_POINTS = 6
"""Fewest points of a curve, the full model included, for which a bend is reported with an interval."""
MAX_SEGMENTS = 3
"""Most segments of a fitted curve."""


@dataclass(frozen=True)
class PiecewiseFit:
    """A continuous piecewise linear fit to a curve."""

    breaks: tuple[float, ...]
    """Where segments meet, ascending, in units of x."""
    slopes: tuple[float, ...]
    """Slope of each segment."""

    @property
    def refinement(self) -> float | None:
        """The x at which the steepest descending segment ends and a flatter one follows, or None."""
        steepest = int(np.argmin(self.slopes))
        return self.breaks[steepest] if steepest < len(self.breaks) and self.slopes[steepest] < 0 else None


def fit_segments(x: np.ndarray, curves: np.ndarray, max_segments: int = MAX_SEGMENTS) -> list[PiecewiseFit]:
    """Fit a piecewise linear function to each curve by least squares.

    The Bayesian information criterion (BIC) chooses the number of segments and the breaks. Breaks are points of the
    curve, with at least one point between two of them. There are at most len(x) // 2 - 1 segments.

    Args:
        x: Shape (points,).
        curves: Shape (curves, points).
        max_segments: Upper limit of the number of segments.
    """
    n = len(x)
    best_bic, fits = np.full(len(curves), np.inf), [PiecewiseFit((), (0.0,))] * len(curves)
    for breaks in _break_choices(n, max_segments):
        hinges = [np.maximum(0, x - x[i]) for i in breaks]
        design = np.stack([np.ones(n), x, *hinges], 1)
        solution = np.linalg.lstsq(design, curves.T, rcond=None)[0]  # (parameters, curves)
        squares = ((design @ solution - curves.T) ** 2).sum(0)
        bic = n * np.log(np.maximum(squares / n, 1e-12)) + 2 * (len(breaks) + 1) * np.log(n)
        slopes, break_values = solution[1:].cumsum(0), tuple(float(x[i]) for i in breaks)
        for i in np.flatnonzero(bic < best_bic):
            fits[i] = PiecewiseFit(break_values, tuple(slopes[:, i].tolist()))
        best_bic = np.minimum(best_bic, bic)
    return fits


def _break_choices(n_points: int, max_segments: int) -> Iterator[tuple[int, ...]]:
    """Yield every choice of breaks as indices of points, fewest first."""
    limit = min(max_segments, n_points // 2 - 1) if n_points > 3 else 1
    for n_segments in range(1, limit + 1):
        for breaks in combinations(range(1, n_points - 1), n_segments - 1):
            if all(after - before >= 2 for before, after in pairwise(breaks)):
                yield breaks


def phases(measured: MaskMeasurements, seed: int) -> list[dict[str, Any]]:
    """Locate the two phases of the learned subgraphs' density curve, with bootstrap intervals over inputs.

    The phase `head in place` begins at the smallest size at which at least half of the inputs recover the full model's
    top token (the head of its distribution). Refinement begins where the piecewise linear fit to mean TV over
    log10 of the relative size turns from its steepest descent to a flatter segment.

    Returns:
        Two rows of the table `phases`; none if there are too few sizes for a curve.
    """
    if len(measured.sizes) < MIN_CURVE_SIZES:
        return []
    refinement, mean_fit = _refinement(measured, seed)
    slopes = "; ".join(f"{slope:.2f}" for slope in mean_fit.slopes)
    rows = [_head_in_place(measured, seed), refinement]
    for row in rows:
        fraction = row["s"] and row["s"] / measured.full_size
        row |= {"bank": measured.name, "fraction": fraction, "slopes": slopes}
    return rows


def _head_in_place(measured: MaskMeasurements, seed: int) -> dict[str, Any]:
    top_token = measured.recovered(LEARNED_KIND)[..., 0].astype(float)
    sizes = np.append(measured.sizes, measured.full_size)

    def head_sizes(means: np.ndarray) -> np.ndarray:
        """Return the smallest size at which each curve of shares reaches one half: (curves, sizes) to (curves,)."""
        reached = np.pad(means >= 0.5, ((0, 0), (0, 1)), constant_values=True)
        return sizes[reached.argmax(1)].astype(float)

    resampled = head_sizes(bootstrap_means(top_token, seed)) if len(measured.names) > 1 else np.array([])
    size = head_sizes(top_token.mean(1)[None])[0]
    return {"what": "head in place", "s": size, **_interval(resampled), "share": None}


def _refinement(measured: MaskMeasurements, seed: int) -> tuple[dict[str, Any], PiecewiseFit]:
    """Return the row of the refinement phase and the fit to the mean curve."""
    n, tv = measured.full_size, measured.values(LEARNED_KIND, "tv")
    includes_full = measured.sizes[-1] == n
    x = np.log10(measured.fractions if includes_full else np.append(measured.fractions, 1.0))

    def closed(means: np.ndarray) -> np.ndarray:
        """Append the full model, whose TV is 0, to curves (curves, sizes) that lack it."""
        return means if includes_full else np.pad(means, ((0, 0), (0, 1)))

    mean_fit = fit_segments(x, closed(tv.mean(1)[None]))[0]
    resampled = []
    if len(measured.names) > 1 and len(x) >= MIN_BEND_POINTS:
        resampled = [fit.refinement for fit in fit_segments(x, closed(bootstrap_means(tv, seed)))]
    bends = np.array([n * 10**bend for bend in resampled if bend is not None])
    row = {
        "what": "refinement begins",
        "s": None if mean_fit.refinement is None else n * 10**mean_fit.refinement,
        **_interval(bends if len(bends) * 2 >= len(resampled) else np.array([])),
        "share": len(bends) / len(resampled) if resampled else None,
    }
    return row, mean_fit


def _interval(resampled: np.ndarray) -> dict[str, float | None]:
    """Return the 95 % percentile interval; None at both ends if there are no resamples."""
    if not len(resampled):
        return {"low": None, "high": None}
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}
