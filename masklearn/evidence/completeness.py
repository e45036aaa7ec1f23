"""Completeness: whether subgraph and model stay close when nodes of the circuit are closed in both.

Source of the adversary: Wang et al. 2023, Interpretability in the Wild (arXiv 2211.00593), section 4.
"""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from masklearn.data import Batch
from masklearn.evaluation.holm import holm
from masklearn.evidence.bench import Bench
from masklearn.evidence.hypotheses import ALPHA
from masklearn.evidence.intervals import NOT_TESTED, mean_interval, too_few_texts
from masklearn.evidence.kept_parts import KeptPart
from masklearn.evidence.text_scores import kl_between
from masklearn.graph import NodeGraph
from masklearn.masking import MaskedLM

CLOSED_SHARE = 0.2
"""Share of the circuit's nodes that the adversary closes; one at least."""
ADVERSARY_TEXTS = 16
"""Texts of a group by which the adversary chooses; results are of held-out texts."""
MAX_ROUNDS = 8
"""Rounds of the adversary: it closes a node a round, or several at once in a circuit of more than 40 nodes."""
MIN_STANDARD_ERROR = 1e-12
"""In nats: an interaction that is the same for all texts is no surprise."""


def nodes_per_round(s: int) -> list[int]:
    """How many nodes the adversary closes in each of its rounds, in a circuit of `s` nodes."""
    n_closed = max(1, round(CLOSED_SHARE * s))
    n_rounds = min(n_closed, MAX_ROUNDS)
    return [n_closed // n_rounds + (i < n_closed % n_rounds) for i in range(n_rounds)]


def n_adversary_masks(s: int) -> int:
    """How many sets of nodes the adversary tries to close in a circuit of `s` nodes."""
    counts = nodes_per_round(s)
    return sum(s - sum(counts[:i]) for i in range(len(counts)))


def adversary(masked_lm: MaskedLM, mask: Tensor, batches: Sequence[Batch]) -> Tensor:
    """The nodes of a circuit whose closing in both moves it and the model furthest apart, by greedy choice.

    Args:
        masked_lm: The model.
        mask: The circuit, boolean, shape (nodes,).
        batches: Texts to choose by.

    Returns:
        Boolean, shape (nodes,).
    """
    closed = torch.zeros_like(mask)
    for n_nodes in nodes_per_round(int(mask.sum())):
        candidates = (mask & ~closed).nonzero()[:, 0]
        tried = closed.expand(len(candidates), -1).clone()
        tried[torch.arange(len(candidates)), candidates] = True
        gap = kl_between(masked_lm, ~tried, mask & ~tried, batches).mean(-1)
        closed[candidates[gap.topk(n_nodes).indices]] = True
    return closed


def completeness_parts(bench: Bench) -> list[KeptPart]:
    """For every mask, its `completeness_row`."""
    return [partial(bench.kept.part, f"completeness-{g}-{s}", partial(completeness_row, bench, g, s))
            for g, s in bench.cells]  # fmt: skip


def completeness_row(bench: Bench, group: int, s: int) -> dict[str, Any]:
    """The gap between subgraph and model after the adversary.

    The circuit is called incomplete if that gap exceeds the gap between the untouched two, by a 95 % bootstrap interval
    over held-out texts.
    """
    mask = bench.mask_of(group, s)
    closed = adversary(bench.masked_lm, mask, bench.selection_texts(group, ADVERSARY_TEXTS))
    both = torch.stack([torch.zeros_like(closed), closed])
    before, after = kl_between(bench.masked_lm, ~both, mask & ~both, bench.texts(group))
    excess, low, high = mean_interval(after - before, bench.plan.seed)
    return {
        "group": bench.mask.groups[group], "s": s, "closed": " ".join(_names(bench.mask.graph, closed)),
        "run_kl": float(before.mean()), "gap": float(after.mean()), "excess": excess, "low": low, "high": high,
        "verdict": NOT_TESTED if too_few_texts(len(after)) else "incomplete" if low > 0 else "no gap found",
        "texts": len(after),
    }  # fmt: skip


def _names(graph: NodeGraph, nodes: Tensor) -> list[str]:
    return [name for name, is_in in zip(graph.names, nodes.tolist(), strict=True) if is_in]


def pair_parts(bench: Bench) -> list[KeptPart]:
    """For every mask, its `pair_rows`."""
    return [partial(bench.kept.part, f"pairs-{g}-{s}", partial(pair_rows, bench, g, s)) for g, s in bench.cells]


def pair_rows(bench: Bench, group: int, s: int) -> list[dict[str, Any]]:
    """The interaction of pairs of a circuit's strongest nodes: the KL that closing both adds to closing each.

    Positive: the nodes are redundant, as each makes up for the other; negative: either alone does most of the damage.
    P-values are those of t-tests over texts, corrected for the number of pairs.
    """
    rows, graph, mask = list[dict[str, Any]](), bench.mask.graph, bench.mask_of(group, s)
    eye, nodes = torch.eye(graph.n_nodes, dtype=torch.bool), mask.nonzero()[:, 0]
    (less,) = bench.scores(group, [torch.cat([mask[None], mask & ~eye[nodes]])], "Single nodes")
    strongest = sorted(nodes[(less.mean_kl[1:]).argsort(descending=True)[: bench.plan.pairs]].tolist())
    pairs = list(combinations(strongest, 2))
    if not pairs:
        return rows
    kl_of = dict(zip(nodes.tolist(), less.kl[1:], strict=True))
    (both,) = bench.scores(group, [torch.stack([mask & ~eye[i] & ~eye[j] for i, j in pairs])], "Pairs of nodes")
    of_texts = [kl - kl_of[i] - kl_of[j] + less.kl[0] for kl, (i, j) in zip(both.kl, pairs, strict=True)]
    for (i, j), values, p in zip(pairs, of_texts, holm([_t_test(values) for values in of_texts]), strict=True):
        mean = float(values.mean())
        kind = "none found" if p > ALPHA else "redundant" if mean > 0 else "either suffices to break it"
        rows.append({
            "group": bench.mask.groups[group], "s": s, "node": graph.names[i],
            "other": graph.names[j], "interaction": mean, "p_corrected": p, "kind": kind,
        })  # fmt: skip
    return rows


def _t_test(values: Tensor) -> float:
    """The two-sided p-value of a mean of zero."""
    if len(values) < 2 or float(values.std()) < MIN_STANDARD_ERROR:
        return 1.0
    return float(stats.ttest_1samp(values.numpy(), 0.0).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
