"""How close subgraphs come as they grow: the curve, its area, its phases, nuclei, and what the sparsest know."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd

from masklearn.density.measurements import INVERSE, LEARNED, RECOVERED, MaskMeasurements
from masklearn.density.statistics import bootstrap_ci, resamples

LEAST_SIZES, LEAST_TO_BEND = 3, 6
"""Sizes that a curve needs for an area to mean anything, and points, the full model's included, to be seen to bend."""


def area(tv: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """The computation density of inputs: the area under TV over log10(s / n_nodes), by trapezoids.

    The full model closes the curve, with a TV of 0. The unit is TV times decades of size: an input whose subgraphs
    are wrong (TV 1) up to a tenth of the nodes and right from there on has 1 for each decade below.

    Args:
        tv: Shape (sizes, inputs).
        fractions: s / n_nodes, ascending, shape (sizes,).
    """
    whole = np.zeros((1 if fractions[-1] < 1 else 0, tv.shape[1]))
    ends = np.log10(np.append(fractions, np.ones(len(whole))))
    return np.asarray(np.trapezoid(np.concatenate([tv, whole]), ends, axis=0))


def densities(bank: MaskMeasurements, kind: str = LEARNED) -> np.ndarray:
    """The computation density of every input under one kind of subgraphs; NaN from too few sizes."""
    if len(bank.sizes) < LEAST_SIZES:
        return np.full(len(bank.names), np.nan)
    return area(bank.values(kind, "tv"), bank.fractions)


def curve(bank: MaskMeasurements, seed: int) -> pd.DataFrame:
    """TV and KL against size for every kind of subgraphs, means with bootstrap bands over inputs."""
    frames = []
    for kind in bank.kinds:
        columns = {"bank": bank.name, "kind": kind, "s": bank.sizes, "fraction": bank.fractions}
        for name in ("tv", "kl"):
            mean, low, high = bootstrap_ci(bank.values(kind, name), seed)
            columns |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class PiecewiseFit:
    """Straight pieces that meet, fitted to a curve."""

    breaks: tuple[float, ...]
    slopes: tuple[float, ...]

    @property
    def refinement(self) -> float | None:
        """Where a flatter piece follows upon the steepest descent, if one does."""
        steepest = int(np.argmin(self.slopes))
        return self.breaks[steepest] if steepest < len(self.breaks) and self.slopes[steepest] < 0 else None


def fit_lines(x: np.ndarray, curves: np.ndarray, most: int = 3) -> list[PiecewiseFit]:
    """One to three straight pieces, as many as the Bayesian information criterion (BIC) asks for, to each curve.

    Breaks lie at points of the curve, with at least one other point between two of them, and there are no more pieces
    than leave two points over. All fits are by least squares.

    Args:
        x: Shape (points,).
        curves: Shape (curves, points).
        most: Pieces at most.
    """
    n = len(x)
    inner = range(1, n - 1)
    best, lines = np.full(len(curves), np.inf), [PiecewiseFit((), (0.0,))] * len(curves)
    for pieces in range(1, min(most, n // 2 - 1) + 1 if n > 3 else 2):
        for places in combinations(inner, pieces - 1):
            if any(b - a < 2 for a, b in pairwise(places)):
                continue
            hinges = [np.maximum(0, x - x[place]) for place in places]
            design = np.stack([np.ones(n), x, *hinges], 1)
            solution = np.linalg.lstsq(design, curves.T, rcond=None)[0]  # (parameters, curves)
            squares = ((design @ solution - curves.T) ** 2).sum(0)
            bic = n * np.log(np.maximum(squares / n, 1e-12)) + 2 * pieces * np.log(n)
            slopes, breaks = solution[1:].cumsum(0), tuple(float(x[place]) for place in places)
            for i in np.flatnonzero(bic < best):
                lines[i] = PiecewiseFit(breaks, tuple(slopes[:, i].tolist()))
            best = np.minimum(best, bic)
    return lines


def phases(bank: MaskMeasurements, seed: int) -> list[dict[str, Any]]:
    """Where the head of the distribution is in place and where refinement begins, of the learned subgraphs.

    The head is in place at the smallest size at which at least half of the inputs have the full model's most probable
    token first. Refinement begins where straight pieces, fitted to mean TV over log10 size, turn from the steepest
    descent to a flatter one. Intervals are over bootstrap resamples of the inputs.
    """
    if len(bank.sizes) < LEAST_SIZES:
        return []
    n, sizes = bank.n_nodes, np.append(bank.sizes, bank.n_nodes)
    first = bank.recovered(LEARNED)[..., 0].astype(float)
    x, tv = np.log10(np.append(bank.fractions, 1.0)), bank.values(LEARNED, "tv")
    if bank.sizes[-1] == n:
        sizes, x = sizes[:-1], x[:-1]

    def curves(means: np.ndarray) -> np.ndarray:
        return means if bank.sizes[-1] == n else np.pad(means, ((0, 0), (0, 1)))

    def head(means: np.ndarray) -> np.ndarray:
        reached = np.pad(means >= 0.5, ((0, 0), (0, 1)), constant_values=True)
        return np.append(bank.sizes, n)[reached.argmax(1)].astype(float)

    line = fit_lines(x, curves(tv.mean(1)[None]))[0]
    several = len(bank.names) > 1
    heads = head(resamples(first, seed)) if several else np.array([])
    several &= len(x) >= LEAST_TO_BEND
    found = [fit.refinement for fit in fit_lines(x, curves(resamples(tv, seed)))] if several else []
    turns = np.array([n * 10**turn for turn in found if turn is not None])
    rows: list[dict[str, Any]] = [
        {"what": "head in place", "s": head(first.mean(1)[None])[0], **_between(heads), "share": None},
        {
            "what": "refinement begins",
            "s": None if line.refinement is None else n * 10**line.refinement,
            **_between(turns if len(turns) * 2 >= len(found) else np.array([])),
            "share": len(turns) / len(found) if found else None,
        },
    ]
    pieces = "; ".join(f"{slope:.2f}" for slope in line.slopes)
    for row in rows:
        row |= {"bank": bank.name, "fraction": row["s"] and row["s"] / n, "slopes": pieces}
    return rows


def _between(values: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return {"low": None, "high": None}
    low, high = np.quantile(values, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def first_size(reached: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """The smallest relative size at which something holds: (sizes, inputs) to (inputs,); 1 for the whole only."""
    ends = np.append(fractions, 1.0)
    return ends[np.concatenate([reached, np.ones((1, reached.shape[1]), dtype=bool)]).argmax(0)]


def _quartiles(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def nuclei(bank: MaskMeasurements) -> pd.DataFrame:
    """The relative size at which the ordered nucleus at p percent is recovered, over inputs."""
    rows = []
    for kind in (kind for kind in bank.kinds if kind != INVERSE):
        recovered = bank.recovered(kind)
        for place, percent in enumerate(RECOVERED):
            at = first_size(recovered[..., place], bank.fractions)
            only = float((~recovered[..., place].any(0)).mean())
            rows.append({"bank": bank.name, "kind": kind, "p": percent, **_quartiles(at), "only_by_the_whole": only})
    return pd.DataFrame(rows)


def unigrams(bank: MaskMeasurements, seed: int) -> pd.DataFrame:
    """KL from the full model and from the unigram distribution, and how many inputs are nearer to the latter."""
    frames = []
    for kind in (kind for kind in bank.kinds if kind != INVERSE):
        near = bank.values(kind, "unigram_kl") < bank.values(kind, "kl")
        columns = {"bank": bank.name, "kind": kind, "s": bank.sizes, "fraction": bank.fractions}
        parts: dict[str, np.ndarray] = {
            "full_kl": bank.values(kind, "kl"),
            "unigram_kl": bank.values(kind, "unigram_kl"),
            "nearer_to_unigram": near.astype(float),
        }
        for name, values in parts.items():
            mean, low, high = bootstrap_ci(values, seed)
            columns |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def unigram_crossover(banks: Sequence[MaskMeasurements]) -> pd.DataFrame:
    """The relative size at which an input's subgraph is nearer to the full model than to the unigram, over inputs."""
    rows = []
    for bank in banks:
        for kind in (kind for kind in bank.kinds if kind != INVERSE):
            left = bank.values(kind, "kl") <= bank.values(kind, "unigram_kl")
            rows.append({"bank": bank.name, "kind": kind, **_quartiles(first_size(left, bank.fractions))})
    return pd.DataFrame(rows)
