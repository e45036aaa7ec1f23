"""Comparison of banks: agreement of their inputs' densities, and overlap of their masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from masklearn.density.correlations import varying
from masklearn.density.curves import MIN_CURVE_SIZES, normalized_densities
from masklearn.density.measurements import LEARNED_KIND, NORM_KIND, MaskMeasurements
from masklearn.density.statistics import (
    MIN_CORRELATION_INPUTS,
    bootstrap_p,
    correlation,
    count_units,
    inputs_needed,
    partial_rank_correlation,
    rank_bootstrap,
)
from masklearn.evaluation.bootstrap import interval
from masklearn.evaluation.text_report import STRACE_KIND

AGREEMENT_GIVEN = ("entropy", "next_rarity", "last_rarity")
"""Metrics of both full models that are partialled out of the agreement of their inputs' densities."""
_OWN, _CONTROL = "own", "control"


def density_agreement(measurements: Sequence[MaskMeasurements], seed: int) -> pd.DataFrame:
    """Correlate (Spearman) the densities of shared inputs between every two banks, for each compared kind.

    Two inputs are the same if their decoded text is. `partial` is the correlation given both models' entropy and token
    frequencies. `excess` is the partial correlation of the banks' own subgraphs minus that of their random controls;
    interval and p-value are those of the paired difference over resampled inputs. Where a correlation is undefined, the
    column `note` says why.
    """
    rows: list[dict[str, Any]] = []
    for one, other in combinations(measurements, 2):
        pair = BankPair.of(one, other)
        same_model = one.mask.model.fingerprint == other.mask.model.fingerprint
        units = " / ".join(dict.fromkeys((one.unit, other.unit)))
        for role, kinds in pair.kinds.items():
            columns = {"kind": " / ".join(dict.fromkeys(kinds)), "one": one.name, "other": other.name}
            columns |= {"same_model": same_model, "units": units, **pair.correlate(role, seed)}
            rows.append(columns | (pair.excess(seed) if role == _OWN and not columns.get("note") else {}))
    columns = ["kind", "one", "other", "same_model", "units", "rho", "low", "high", "p", "n", "note"]
    partial = [f"partial{end}" for end in ("", "_low", "_high", "_p", "_note")]
    excess = [f"excess{end}" for end in ("", "_low", "_high", "_p")]
    return pd.DataFrame(rows, columns=[*columns, *partial, "given", *excess])


@dataclass(frozen=True)
class BankPair:
    """Two banks, and the inputs that both have."""

    one: MaskMeasurements
    other: MaskMeasurements
    index_of_one: list[int]
    """Of every shared input, its index in the first bank; of equal texts, the first one's."""
    index_of_other: list[int]

    @classmethod
    def of(cls, one: MaskMeasurements, other: MaskMeasurements) -> "BankPair":
        """Match the inputs of two banks by their text."""
        first, second = ({text: i for i, text in reversed([*enumerate(bank.contexts)])} for bank in (one, other))
        shared = [text for text in dict.fromkeys(one.contexts) if text in second]
        return cls(one, other, [first[text] for text in shared], [second[text] for text in shared])

    @property
    def texts(self) -> np.ndarray:
        """For every shared input the name of its text in the first bank, shape (inputs,)."""
        return self.one.texts[self.index_of_one]

    @property
    def kinds(self) -> dict[str, tuple[str, str]]:
        """The kinds of both that correspond: the banks' own subgraphs, norm, s-trace, and random controls."""
        banks = (self.one, self.other)
        roles = {_OWN: [bank.own_kind for bank in banks]} | {kind: [kind] * 2 for kind in (NORM_KIND, STRACE_KIND)}
        roles[_CONTROL] = [bank.control_kind or "" for bank in banks]
        return {
            role: (kinds[0], kinds[1])
            for role, kinds in roles.items()
            if all(kind in bank.kinds for kind, bank in zip(kinds, banks, strict=True))
        }

    @cached_property
    def given(self) -> dict[str, np.ndarray]:
        """What is partialled out, by name: metrics of both full models at the shared inputs."""
        columns = {f"{name} of {bank.name}": bank.full_model(name)[index] for bank, index in (
            (self.one, self.index_of_one), (self.other, self.index_of_other)
        ) for name in AGREEMENT_GIVEN}  # fmt: skip
        return varying(columns)

    def densities(self, role: str) -> np.ndarray:
        """Return the normalised densities of the shared inputs in both banks, shape (2, inputs)."""
        kinds = self.kinds[role]
        one = normalized_densities(self.one, kinds[0])[self.index_of_one]
        return np.stack([one, normalized_densities(self.other, kinds[1])[self.index_of_other]])

    def correlate(self, role: str, seed: int) -> dict[str, Any]:
        """Return the plain and the partial correlation of the densities of one kind, as columns."""
        n = len(self.index_of_one)
        for measured in (self.one, self.other):
            if measured.n_curve_sizes < MIN_CURVE_SIZES:
                return {"n": n, "note": f"not defined: {measured.name} has fewer than {MIN_CURVE_SIZES} sizes"}
        if n < MIN_CORRELATION_INPUTS:
            return {"n": n, "note": self._too_few_shared(n)}
        x, y = self.densities(role)
        names = (self.one.name, self.other.name)
        partial = correlation(x, y, self.texts, seed, names, list(self.given.values()))
        columns = {"partial": partial.rho, "partial_low": partial.low, "partial_high": partial.high}
        columns |= {"partial_p": partial.p, "partial_note": partial.note, "given": ", ".join(self.given)}
        return correlation(x, y, self.texts, seed, names).row() | columns

    def _too_few_shared(self, n: int) -> str:
        """Say why there is no correlation over n shared inputs: both banks have others, or one has no more."""
        banks = (self.one, self.other)
        if all(n < len(set(bank.contexts)) for bank in banks):
            counts = (f"{bank.name} has {len(bank.names)} inputs from {bank.source}" for bank in banks)
            return f"different inputs ({n} shared): {', '.join(counts)}"
        names = f"{self.one.name} and {self.other.name}"
        return f"not defined: {names} share {n} inputs, {MIN_CORRELATION_INPUTS} are needed"

    def excess(self, seed: int) -> dict[str, float]:
        """Return how much more the banks' own densities agree than those of random controls, as columns."""
        given = list(self.given.values())
        if _CONTROL not in self.kinds:
            return {}
        own, control = (np.stack([*self.densities(role), *given]) for role in (_OWN, _CONTROL))
        known = ~np.isnan([own, control]).any((0, 1))
        if known.sum() < inputs_needed(len(given)):
            return {}
        own, control, texts = own[:, known], control[:, known], self.texts[known]
        resampled, n = rank_bootstrap(own, texts, seed) - rank_bootstrap(control, texts, seed), count_units(texts)
        low, high = interval(resampled, n)
        columns = {"excess": partial_rank_correlation(own) - partial_rank_correlation(control)}
        return columns | {"excess_low": float(low), "excess_high": float(high), "excess_p": bootstrap_p(resampled, n)}


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


def mask_overlaps(measurements: Sequence[MaskMeasurements]) -> pd.DataFrame:
    """Return the overlap of every two mean masks of one model, at each size that both have.

    The overlap is the sum over nodes of the smaller use, divided by the size: 1 if both use every node equally often.
    `by_chance` is the expected overlap if the nodes of one mask are shuffled; `by_norm` is the overlap of the subgraphs
    of the kind `norm`. Pairs of different models are left out, because their nodes do not correspond,
    and so are banks of edges or positions, whose texts have graphs of their own.
    """
    rows: list[dict[str, Any]] = []
    for one, other in combinations(mean_masks(measurements), 2):
        pair = (one.measured, other.measured)
        if len({bank.mask.model.fingerprint for bank in pair}) > 1 or any(bank.unit != "nodes" for bank in pair):
            continue
        for s in sorted(set(one.measured.sizes) & set(other.measured.sizes)):
            columns = {"model": one.measured.mask.model.lm, "one": one.name, "other": other.name, "s": s}
            columns |= {"fraction": s / one.measured.full_size, "overlap": one.overlap(other, LEARNED_KIND, s)}
            columns |= {"by_norm": one.overlap(other, NORM_KIND, s)}
            columns |= {"by_chance": _shuffled_overlap(one.at(LEARNED_KIND, s), other.at(LEARNED_KIND, s)) / s}
            rows.append(columns)
    return pd.DataFrame(rows, columns=["model", "one", "other", "s", "fraction", "overlap", "by_norm", "by_chance"])


def _shuffled_overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the sum over nodes of the smaller use, expected over all orders of the nodes of one of two masks.

    Every node then meets every one of the other mask equally often: the mean over all pairs, times the nodes.
    """
    ascending = np.sort(other)
    sums, n_smaller = np.concatenate([[0.0], ascending.cumsum()]), np.searchsorted(ascending, one)
    return float((sums[n_smaller] + one * (len(other) - n_smaller)).sum() / len(other))
