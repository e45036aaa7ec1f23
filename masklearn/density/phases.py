"""Phases of the density curve: where the top token is recovered, and where steep descent turns into refinement."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from masklearn.density.curves import MIN_CURVE_SIZES
from masklearn.density.measurements import MaskMeasurements
from masklearn.density.statistics import bootstrap_means, count_units
from masklearn.evaluation.bootstrap import MIN_UNITS, interval, p_value

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
    """Locate the two phases of the density curve of a bank's own subgraphs, with bootstrap intervals over inputs.

    The phase `head in place` begins at the smallest size at which at least half of the inputs recover the full model's
    top token (the head of its distribution). Refinement begins where the piecewise linear fit to mean TV over
    log10 of the relative size turns from its steepest descent to a flatter segment. `share` is the share of resamples
    with such a bend, `in_order` that of resamples with one at or after the head, `p` the two-sided p-value of the rest,
    and `control_s` the size at which the mean curve of the random control bends.

    Returns:
        Two rows of the table `phases`; none if there are too few sizes for a curve.
    """
    if measured.n_curve_sizes < MIN_CURVE_SIZES:
        return []
    n, n_texts = measured.full_size, count_units(measured.texts)
    resample = n_texts >= MIN_UNITS
    head, head_sizes = _head_in_place(measured, seed if resample else None)
    curve = MeanCurve.of(measured, measured.own_kind)
    fit = curve.fit(curve.tv.mean(1)[None])[0]
    bends = np.array([])
    if resample and len(curve.x) >= MIN_BEND_POINTS:
        fits = curve.fit(bootstrap_means(curve.tv, measured.texts, seed))
        bends = np.array([np.nan if one.refinement is None else n * 10**one.refinement for one in fits])
    bent = bends[~np.isnan(bends)]
    in_order = head_sizes <= bends * (1 + 1e-9) if len(bends) else bends
    refinement = {
        "what": "refinement begins",
        "s": None if fit.refinement is None else n * 10**fit.refinement,
        **_interval(bent if len(bent) * 2 >= len(bends) else np.array([]), n_texts),
        "share": len(bent) / len(bends) if len(bends) else None,
        "in_order": float(in_order.mean()) if len(bends) else None,
        "p": p_value(int((~in_order).sum()), len(bends), n_texts) if len(bends) else None,
        "control_s": _control_bend(measured),
    }
    rows, slopes = [head, refinement], "; ".join(f"{slope:.2f}" for slope in fit.slopes)
    for row in rows:
        row |= {"bank": measured.name, "fraction": row["s"] and row["s"] / n, "slopes": slopes}
    return rows


@dataclass(frozen=True)
class MeanCurve:
    """TV of one kind of subgraph against log10 of the relative size, without sizes shorter than a path."""

    x: np.ndarray
    """Shape (points,), the full model included."""
    tv: np.ndarray
    """Shape (sizes, inputs)."""

    @classmethod
    def of(cls, measured: MaskMeasurements, kind: str) -> "MeanCurve":
        """The curve of one kind, from the smallest size that can hold a path: below it TV is flat by construction."""
        first = measured.n_short_sizes
        fractions, tv = measured.fractions[first:], measured.values(kind, "tv")[first:]
        return cls(np.log10(fractions if measured.fractions[-1] == 1 else np.append(fractions, 1.0)), tv)

    def fit(self, means: np.ndarray) -> list[PiecewiseFit]:
        """Fit segments to mean curves (curves, sizes), the full model's TV of 0 appended where they lack it."""
        lacking = len(self.x) - means.shape[1]
        return fit_segments(self.x, np.pad(means, ((0, 0), (0, lacking))))


def _control_bend(measured: MaskMeasurements) -> float | None:
    """Return the size at which the control's mean curve turns from its steepest descent, or None."""
    if measured.control_kind is None:
        return None
    curve = MeanCurve.of(measured, measured.control_kind)
    bend = curve.fit(curve.tv.mean(1)[None])[0].refinement
    return None if bend is None else measured.full_size * 10**bend


def _head_in_place(measured: MaskMeasurements, seed: int | None) -> tuple[dict[str, Any], np.ndarray]:
    """Return the row of the phase, and its size in every resample; without a seed there are none."""
    top_token = measured.recovered(measured.own_kind)[..., 0].mean(0)
    sizes = np.append(measured.sizes, measured.full_size)

    def head_sizes(means: np.ndarray) -> np.ndarray:
        """Return the smallest size at which each curve of shares reaches one half: (curves, sizes) to (curves,)."""
        reached = np.pad(means >= 0.5, ((0, 0), (0, 1)), constant_values=True)
        return sizes[reached.argmax(1)].astype(float)

    resampled = np.array([]) if seed is None else head_sizes(bootstrap_means(top_token, measured.texts, seed))
    size = head_sizes(top_token.mean(1)[None])[0]
    ends = _interval(resampled, count_units(measured.texts))
    return {"what": "head in place", "s": size, **ends, "share": None}, resampled


def _interval(resampled: np.ndarray, n: int) -> dict[str, float | None]:
    """Return the 95 % interval over n texts; None at both ends if there are no resamples."""
    if not len(resampled):
        return {"low": None, "high": None}
    low, high = interval(resampled, n)
    return {"low": float(low), "high": float(high)}
