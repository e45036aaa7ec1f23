"""Which nodes subgraphs keep: shares of heads, MLPs and depth, and how unequally nodes are used."""

import numpy as np
import pandas as pd

from masklearn.density.measurements import MaskMeasurements
from masklearn.density.statistics import bootstrap_ci, bootstrap_p_values


def composition(measured: MaskMeasurements, seed: int) -> pd.DataFrame:
    """Return the share of each part of the model in the subgraphs, relative to that part's share of the whole graph.

    A relative share of 1 is expected of uniformly drawn nodes. `excess` is the relative share minus that of the random
    control's subgraphs, group by group. Means over groups, with bootstrap intervals over them (over whole texts where a
    text has several) and two-sided p-values against 1 and 0. Banks of edges count edges, those of nodes count nodes.
    """
    frames, control, units = [], measured.control_kind, measured.texts_of_groups
    relative_of_control = control and {part: k / w for part, (k, w) in measured.part_shares(control).items()}
    for kind in measured.sized_kinds:
        for part, (share, model_share) in measured.part_shares(kind).items():
            relative = share / model_share
            columns = {"bank": measured.name, "kind": kind, "s": measured.sizes, "fraction": measured.fractions}
            columns |= {"part": part, "share": share.mean(1), "own_share": model_share.mean()}
            columns |= _mean_columns("relative", relative, units, 1.0, seed)
            if relative_of_control and kind != control:
                excess = relative - relative_of_control[part]
                excess = excess.round(9)  # a mean of equal numbers is not quite that number
                columns |= _mean_columns("excess", excess, units, 0.0, seed)
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True).rename(columns={"relative_low": "low", "relative_high": "high"})


def _mean_columns(name: str, values: np.ndarray, units: np.ndarray, null: float, seed: int) -> dict[str, np.ndarray]:
    """Return mean, interval and p-value of values (sizes, groups), each of shape (sizes,)."""
    mean, low, high = bootstrap_ci(values, units, seed)
    p = bootstrap_p_values(values, units, seed, null)
    return {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_p": p}


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
            rows.append(columns | {"gini": gini(use), "one_mask_for_all": 1 - use.mean()})
    return pd.DataFrame(rows)
