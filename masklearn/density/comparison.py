"""Comparison of banks: agreement of their inputs' densities, and overlap of their masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from masklearn.density.curves import MIN_CURVE_SIZES, densities
from masklearn.density.measurements import COMPARED_KINDS, LEARNED_KIND, NORM_KIND, MaskMeasurements
from masklearn.density.statistics import MIN_CORRELATION_INPUTS, correlation

N_SHUFFLES = 1000
"""Node shuffles of a mean mask that estimate the overlap expected by chance."""


def density_agreement(measurements: Sequence[MaskMeasurements], seed: int) -> pd.DataFrame:
    """Correlate (Spearman) the densities of shared inputs between every two banks, for each compared kind.

    Two inputs are the same if their decoded text is. Where a correlation is undefined, the column `note` says why.
    """
    rows = []
    for kind in COMPARED_KINDS:
        with_kind = [measured for measured in measurements if kind in measured.kinds]
        density_of = {measured.name: _density_by_text(measured, kind) for measured in with_kind}
        for one, other in combinations(with_kind, 2):
            shared = [text for text in density_of[one.name] if text in density_of[other.name]]
            x, y = (np.array([density_of[bank.name][text] for text in shared]) for bank in (one, other))
            same_model = one.mask.model.fingerprint == other.mask.model.fingerprint
            columns = {"kind": kind, "one": one.name, "other": other.name, "same_model": same_model}
            rows.append(columns | _pair_correlation(one, other, x, y, seed))
    columns = ["kind", "one", "other", "same_model", "rho", "low", "high", "p", "n", "note"]
    return pd.DataFrame(rows, columns=columns)


def _density_by_text(measured: MaskMeasurements, kind: str) -> dict[str, float]:
    """Return each input's density by its text; of equal texts, the first one's."""
    return dict(zip(reversed(measured.contexts), densities(measured, kind)[::-1], strict=True))


def _pair_correlation(
    one: MaskMeasurements, other: MaskMeasurements, x: np.ndarray, y: np.ndarray, seed: int
) -> dict[str, object]:
    for measured in (one, other):
        if len(measured.sizes) < MIN_CURVE_SIZES:
            return {"n": len(x), "note": f"not defined: {measured.name} has fewer than {MIN_CURVE_SIZES} sizes"}
    if len(x) < MIN_CORRELATION_INPUTS:
        counts = ", ".join(f"{bank.name} has {len(bank.names)} inputs from {bank.source}" for bank in (one, other))
        return {"n": len(x), "note": f"different inputs ({len(x)} shared): {counts}"}
    return correlation(x, y, seed, (one.name, other.name)).row()


@dataclass(frozen=True)
class MeanMasks:
    """Mean masks of a bank, or the masks of one value of its column."""

    name: str
    measured: MaskMeasurements
    by_kind: dict[str, np.ndarray]
    """By kind of subgraph, the share of groups that keep each node, shape (sizes, nodes)."""

    def overlap(self, other: "MeanMasks", kind: str, s: int | float) -> float | None:
        """Compute the overlap with other mean masks at one size, or None if either lacks the kind."""
        if kind not in self.by_kind or kind not in other.by_kind:
            return None
        return np.minimum(self.at(kind, s), other.at(kind, s)).sum() / s

    def at(self, kind: str, s: int | float) -> np.ndarray:
        """Return the mean mask of one size, shape (nodes,)."""
        return self.by_kind[kind][list[float](self.measured.sizes).index(s)]


def mean_masks(measurements: Sequence[MaskMeasurements]) -> list[MeanMasks]:
    """Return the mean masks of every bank, followed by the masks of each value if its scope is a column."""
    found = []
    for measured in measurements:
        kinds = [kind for kind in measured.kinds if kind in (LEARNED_KIND, NORM_KIND)]
        use = {kind: measured.node_use(kind, slice(1)) for kind in kinds}
        found.append(MeanMasks(measured.name, measured, {kind: masks.mean(1) for kind, masks in use.items()}))
        if measured.row()["scope"].startswith("column:"):
            for i, value in enumerate(measured.mask.groups):
                masks_of_value = {kind: masks[:, i] for kind, masks in use.items()}
                found.append(MeanMasks(f"{measured.name}: {value}", measured, masks_of_value))
    return found


def mask_overlaps(measurements: Sequence[MaskMeasurements], seed: int) -> pd.DataFrame:
    """Return the overlap of every two mean masks of one model, at each size that both have.

    The overlap is the sum over nodes of the smaller use, divided by the size: 1 if both use every node equally often.
    `by_chance` is the mean overlap when the nodes of one mask are shuffled; `by_norm` is the overlap of the subgraphs
    of the kind `norm`. Pairs of different models are left out, because their nodes do not correspond,
    and so are edge banks, whose texts have graphs of their own.
    """
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(seed)
    for one, other in combinations(mean_masks(measurements), 2):
        pair = (one.measured, other.measured)
        if len({bank.mask.model.fingerprint for bank in pair}) > 1 or any(bank.unit == "edges" for bank in pair):
            continue
        for s in sorted(set(one.measured.sizes) & set(other.measured.sizes)):
            shuffled = rng.permuted(np.tile(other.at(LEARNED_KIND, s), (N_SHUFFLES, 1)), axis=1)
            columns = {"model": one.measured.mask.model.lm, "one": one.name, "other": other.name, "s": s}
            columns |= {"fraction": s / one.measured.full_size, "overlap": one.overlap(other, LEARNED_KIND, s)}
            columns |= {"by_norm": one.overlap(other, NORM_KIND, s)}
            columns |= {"by_chance": np.minimum(one.at(LEARNED_KIND, s), shuffled).sum(1).mean() / s}
            rows.append(columns)
    return pd.DataFrame(rows, columns=["model", "one", "other", "s", "fraction", "overlap", "by_norm", "by_chance"])
