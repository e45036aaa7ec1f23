"""Which nodes subgraphs keep: shares of heads, MLPs and depth, and how unequally nodes are used."""

import numpy as np
import pandas as pd

from masklearn.density.measurements import MaskMeasurements
from masklearn.density.statistics import bootstrap_ci


def composition(measured: MaskMeasurements, seed: int) -> pd.DataFrame:
    """Return the share of each part of the model in the subgraphs, relative to that part's share of all nodes.

    A relative share of 1 is expected of uniformly drawn nodes. Means over groups, with bootstrap intervals over them.
    """
    frames = []
    for kind in measured.sized_kinds:
        use, sizes = measured.node_use(kind), np.array(measured.sizes)
        n_used = np.maximum(use.sum(-1), 1)  # of nodes the size itself; of edges those nodes that have a live one
        for part, members in measured.model_parts().items():
            share, model_share = use[..., members].sum(-1) / n_used, members.mean()
            mean, low, high = bootstrap_ci(share / model_share, seed)
            columns = {"bank": measured.name, "kind": kind, "s": sizes, "fraction": measured.fractions, "part": part}
            columns |= {"share": share.mean(1), "own_share": model_share, "relative": mean, "low": low, "high": high}
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def node_use(measured: MaskMeasurements) -> pd.DataFrame:
    """Return the share of groups whose mask keeps each node, by kind and size; of random kinds, in the first draw."""
    graph = measured.mask.graph
    frames = []
    for kind in measured.compared_kinds:
        for i, use in enumerate(measured.node_use(kind, slice(1)).mean(1)):
            columns = {
                "bank": measured.name,
                "kind": kind,
                "s": measured.sizes[i],
                "node": graph.names,
                "layer": [node.layer for node in graph.nodes],
                "head": pd.array([node.head for node in graph.nodes], dtype="Int64"),
                "use": use,
            }
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def lorenz(use: np.ndarray) -> np.ndarray:
    """Compute the Lorenz curve of node use: the share of all use by the k least used nodes, k = 0 to n.

    Args:
        use: Shape (nodes,).

    Returns:
        Shape (nodes + 1,), from 0 to 1; the diagonal if no node is used at all.
    """
    total = use.sum()
    return np.append(0.0, np.sort(use).cumsum()) / total if total else np.linspace(0, 1, len(use) + 1)


def gini(use: np.ndarray) -> float:
    """Compute the Gini index of node use: 0 if all n nodes are used equally, (n - 1) / n if a single one is used."""
    curve = lorenz(use)
    return float(1 - 2 * np.trapezoid(curve, dx=1 / len(use)))


def inequality(measured: MaskMeasurements) -> pd.DataFrame:
    """Return the Gini index of node use by kind and size; of random kinds, in the first draw for every group."""
    rows = []
    for kind in measured.compared_kinds:
        for i, use in enumerate(measured.node_use(kind, slice(1)).mean(1)):
            fraction = measured.fractions[i]
            columns = {"bank": measured.name, "kind": kind, "s": measured.sizes[i], "fraction": fraction}
            rows.append(columns | {"gini": gini(use), "one_mask_for_all": 1 - fraction})
    return pd.DataFrame(rows)
