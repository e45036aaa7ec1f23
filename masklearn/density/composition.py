"""Where subgraphs sit: shares of heads, MLPs and depth beside the model's own, and how evenly nodes are used."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from masklearn.density.measurements import INVERSE, LEARNED, NORM, SHOWN, MaskMeasurements
from masklearn.density.statistics import bootstrap_ci

SHUFFLES = 1000
"""Times that the nodes of a mean mask are shuffled to know what overlap chance gives."""


def composition(bank: MaskMeasurements, seed: int) -> pd.DataFrame:
    """The share of every part of the model in the subgraphs, over that part's share in the model, against size.

    A relative share of 1 is what chance gives. Means over groups, with bootstrap bands over them.
    """
    frames = []
    for kind in (kind for kind in bank.kinds if kind != INVERSE):
        used, sizes = bank.used(kind), np.array(bank.sizes)
        for part, which in bank.parts().items():
            share, own = used[..., which].sum(-1) / sizes[:, None], which.mean()
            mean, low, high = bootstrap_ci(share / own, seed)
            columns = {"bank": bank.name, "kind": kind, "s": sizes, "fraction": bank.fractions, "part": part}
            columns |= {"share": share.mean(1), "own_share": own, "relative": mean, "low": low, "high": high}
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def node_use(bank: MaskMeasurements) -> pd.DataFrame:
    """The share of groups whose masks keep each node, at every size: learned, by the norm, and of one random draw."""
    graph = bank.mask.graph
    frames = []
    for kind in (kind for kind in bank.kinds if kind in SHOWN):
        for i, use in enumerate(bank.used(kind, slice(1)).mean(1)):
            columns = {
                "bank": bank.name,
                "kind": kind,
                "s": bank.sizes[i],
                "node": graph.names,
                "layer": [node.layer for node in graph.nodes],
                "head": pd.array([node.head for node in graph.nodes], dtype="Int64"),
                "use": use,
            }
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def lorenz(use: np.ndarray) -> np.ndarray:
    """The share of all use that the least used nodes have, from none of the nodes to all: (nodes,) to (nodes + 1,)."""
    return np.append(0.0, np.sort(use).cumsum()) / use.sum()


def gini(use: np.ndarray) -> float:
    """The Gini index of node use: 0 when all nodes are used alike, (n - 1) / n when a single one is."""
    curve = lorenz(use)
    return float(1 - 2 * np.trapezoid(curve, dx=1 / len(use)))


def inequality(bank: MaskMeasurements) -> pd.DataFrame:
    """The Gini index of node use at every size; for chance, of one draw for every group."""
    rows = []
    for kind in (kind for kind in bank.kinds if kind in SHOWN):
        for i, use in enumerate(bank.used(kind, slice(1)).mean(1)):
            shares = {"bank": bank.name, "kind": kind, "s": bank.sizes[i], "fraction": bank.fractions[i]}
            rows.append(shares | {"gini": gini(use), "one_mask_for_all": 1 - bank.fractions[i]})
    return pd.DataFrame(rows)


Uses = dict[str, np.ndarray]
"""Mean masks (sizes, nodes) of one bank, or of one value of its column, by kind."""


def mean_masks(banks: Sequence[MaskMeasurements]) -> dict[str, tuple[MaskMeasurements, Uses]]:
    """What overlap is reported of: the mean masks of every bank, and those of each value of a column."""
    found: dict[str, tuple[MaskMeasurements, Uses]] = {}
    for bank in banks:
        used = {kind: bank.used(kind, slice(1)) for kind in bank.kinds if kind in (LEARNED, NORM)}
        found[bank.name] = bank, {kind: use.mean(1) for kind, use in used.items()}
        if bank.row()["scope"].startswith("column:"):
            for i, group in enumerate(bank.mask.groups):
                found[f"{bank.name}: {group}"] = bank, {kind: use[:, i] for kind, use in used.items()}
    return found


def overlaps(banks: Sequence[MaskMeasurements], seed: int) -> pd.DataFrame:
    """How much of their mean masks two banks, or two values of a column, have in common at the sizes both have.

    The overlap is the sum over nodes of the smaller use, over the size: 1 when both use every node alike. Chance is the
    mean overlap when the nodes of one are shuffled; `by_norm` is the overlap of the nodes that the norm chooses. Banks
    of different models are left out: their nodes have nothing to do with each other.
    """
    rows, rng = [], np.random.default_rng(seed)
    named = list(mean_masks(banks).items())
    for i, (one, (bank, use)) in enumerate(named):
        for other, (its, its_use) in named[i + 1 :]:
            if bank.mask.model.fingerprint != its.mask.model.fingerprint:
                continue
            for s in sorted(set(bank.sizes) & set(its.sizes)):
                at, there = bank.sizes.index(s), its.sizes.index(s)
                shared = {
                    kind: np.minimum(use[kind][at], its_use[kind][there]).sum() / s for kind in {*use} & {*its_use}
                }
                shuffled = rng.permuted(np.tile(its_use[LEARNED][there], (SHUFFLES, 1)), axis=1)
                columns = {"model": bank.mask.model.lm, "one": one, "other": other, "s": s}
                columns |= {"fraction": s / bank.n_nodes, "overlap": shared[LEARNED], "by_norm": shared.get(NORM)}
                by_chance = np.minimum(use[LEARNED][at], shuffled).sum(1).mean() / s
                rows.append(columns | {"by_chance": by_chance})
    return pd.DataFrame(rows, columns=["model", "one", "other", "s", "fraction", "overlap", "by_norm", "by_chance"])
