"""Stability: how far masks that were learned again agree, compared with random masks of as many heads and MLPs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from masklearn.gates import open_probability
from masklearn.graph import NodeGraph
from masklearn.training.budget import Projected

NEAR_OPTIMAL = 0.02
"""A mask is near-optimal if its KL is within this share of the lowest KL found."""
ROUNDING = 1e-12
"""Differences of KLs below this are rounding, in nats."""
STABLE_JACCARD = 0.8
"""Mean Jaccard index from which a circuit counts as stable under bootstraps. Source: Meloux et al. 2025 (arXiv
2510.00845)."""


@dataclass(frozen=True)
class Overlap:
    """How far several masks of one size agree, as means over pairs; NaN if there are none."""

    jaccard: float
    """Nodes of both over nodes of either."""
    heads: float
    """The same among heads alone; NaN if no mask has any."""
    mlps: float
    """The same among MLPs alone."""
    chance: float
    """Its expectation for random masks with as many heads and as many MLPs."""
    heads_chance: float
    mlps_chance: float
    low: float
    """The lowest Jaccard index of any pair."""
    high: float
    """The highest."""
    weighted: float
    """Overlap of the learned probabilities that nodes are open: sum of the smaller ones over sum of the larger ones.
    The probabilities of a mask sum to its size."""
    rank_correlation: float
    """Spearman's correlation of the scores behind these."""
    n: int
    """Masks that are compared."""


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """Nodes of both masks over nodes of either, of boolean masks (..., nodes); NaN if neither has any."""
    return (a & b).sum(-1) / (a | b).sum(-1)


def chance_jaccard(
    graph: NodeGraph, counts_a: tuple[int, int], counts_b: tuple[int, int]
) -> tuple[float, float, float]:
    """The expected Jaccard index of two random masks with these numbers of heads and MLPs.

    The number of common nodes is hypergeometric within heads and within MLPs, independently.

    Args:
        graph: Says how many there are of each.
        counts_a, counts_b: Heads and MLPs of either mask.

    Returns:
        Of all nodes, of heads alone, and of MLPs alone; NaN where neither mask has a node.
    """
    totals = (graph.n_layers * graph.n_heads, graph.n_layers)
    common = [
        stats.hypergeom.pmf(np.arange(min(a, b) + 1), total, a, b)
        for total, a, b in zip(totals, counts_a, counts_b, strict=True)
    ]
    n_kept = [a + b for a, b in zip(counts_a, counts_b, strict=True)]
    of_kind = [_expected_jaccard(pmf, n) for pmf, n in zip(common, n_kept, strict=True)]
    return _expected_jaccard(np.convolve(common[0], common[1]), sum(n_kept)), of_kind[0], of_kind[1]


def _expected_jaccard(pmf: np.ndarray, n_kept: int) -> float:
    """The mean of k / (n_kept - k), if k common nodes have this probability."""
    k = np.arange(len(pmf))
    return float((pmf * k / (n_kept - k)).sum()) if n_kept else float("nan")


def overlap(masks: Tensor, scores: Tensor, graph: NodeGraph, with_first: bool = False) -> Overlap:
    """Compare masks with each other.

    Args:
        masks: Boolean, shape (masks, nodes).
        scores: The scores by which their nodes are ranked, as log-odds of being open; same shape. Only differences
            between those of a mask count.
        graph: Tells heads from MLPs.
        with_first: Compare the first mask with every other one, instead of all pairs.
    """
    pairs = [pair for pair in combinations(range(len(masks)), 2) if not with_first or pair[0] == 0]
    is_mlp = torch.tensor([node.head is None for node in graph.nodes])
    counts = [(int(heads), int(mlps)) for heads, mlps in zip(*graph.count(masks), strict=True)]
    chances = [chance_jaccard(graph, counts[i], counts[j]) for i, j in pairs]
    every = [float(jaccard(masks[i], masks[j])) for i, j in pairs]
    heads, mlps = (
        _mean_of_known([float(jaccard(masks[i][kind], masks[j][kind])) for i, j in pairs]) for kind in (~is_mlp, is_mlp)
    )
    is_open = open_probability(Projected().adjust_log_odds(scores.float(), masks.sum(-1)))
    chance, heads_chance, mlps_chance = (_mean_of_known([each[kind] for each in chances]) for kind in range(3))
    return Overlap(
        jaccard=_mean_of_known(every),
        heads=heads,
        mlps=mlps,
        chance=chance,
        heads_chance=heads_chance,
        mlps_chance=mlps_chance,
        low=min(every, default=float("nan")),
        high=max(every, default=float("nan")),
        weighted=_mean_of_known([_weighted_jaccard(is_open[i], is_open[j]) for i, j in pairs]),
        rank_correlation=_mean_of_known([_spearman(scores[i], scores[j]) for i, j in pairs]),
        n=len(masks),
    )


def _mean_of_known(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _weighted_jaccard(a: Tensor, b: Tensor) -> float:
    return float(torch.minimum(a, b).sum() / torch.maximum(a, b).sum())


def _spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of two rows of scores; NaN where one of them is constant."""
    if a.unique().numel() < 2 or b.unique().numel() < 2:
        return float("nan")
    return float(stats.spearmanr(a.numpy(), b.numpy()).statistic)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class NearOptimal:
    """The different masks whose KL is close to the lowest."""

    n: int
    """How many there are."""
    jaccard: float
    """The lowest Jaccard index of any two of them; 1 if there is one."""
    kl: float
    """The lowest KL, in nats."""


def near_optimal(masks: Tensor, kl: Sequence[float]) -> NearOptimal:
    """Find the different masks within 2 % of the lowest KL.

    Args:
        masks: Boolean, shape (masks, nodes).
        kl: KL of each, in nats.
    """
    lowest = min(kl)
    close = masks[torch.tensor(kl) <= (1 + NEAR_OPTIMAL) * lowest + ROUNDING].unique(dim=0)
    pairs = [float(jaccard(a, b)) for a, b in combinations(close, 2)]
    return NearOptimal(len(close), min(pairs, default=1.0), lowest)


@dataclass(frozen=True)
class Rivals:
    """The rediscoveries that do as well as the run's mask: their KL is at most 2 % above its own."""

    reached: int
    """How many there are, those that found the run's nodes included."""
    others: int
    """Different masks among them that have other nodes than the run's."""
    run_jaccard: float
    """The lowest Jaccard index of any of these with the run's mask; 1 if there are none."""
    nearest_kl: float
    """The lowest KL of any rediscovery, in nats."""


def rivals(run: Tensor, run_kl: float, masks: Tensor, kl: Tensor) -> Rivals:
    """Find the rediscoveries that do as well as the run's mask.

    Args:
        run: The run's mask, boolean, shape (nodes,).
        run_kl: Its KL, in nats.
        masks: At least one rediscovered mask, boolean, shape (masks, nodes).
        kl: KL of each, shape (masks,).
    """
    close = masks[kl <= (1 + NEAR_OPTIMAL) * run_kl + ROUNDING]
    others = close[(close != run).any(-1)].unique(dim=0)
    lowest = min((float(jaccard(run, mask)) for mask in others), default=1.0)
    return Rivals(len(close), len(others), lowest, float(kl.min()))
