"""Measure edge subgraphs of single texts, beside random, inverse and s-Trace ones of the same sizes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from masklearn import ranks
from masklearn.data import MaskData, SplitName
from masklearn.edges import (
    EdgeBank,
    EdgeGates,
    EdgeGraph,
    EdgeLM,
    FrozenText,
    Importance,
    by_strace,
    counts_by_part,
    edge_counts,
    importance,
    inverse,
    nodes_used,
    random_connected,
    require_same_output,
)
from masklearn.evaluation.measure import Row
from masklearn.evaluation.text_report import RANDOM_TEXT_KIND, STRACE_KIND, TextMeasurer, random_seeds, scored_text
from masklearn.progress import ProgressBar, no_bar

PLACES_PER_FORWARD = 2**26
"""Gates of the subgraphs that share a forward: 256 MB in float32."""
EdgeMode = Literal["recomputed", "frozen"]
"""Whether attention patterns and norms are those of the masked stream, or the full model's: see `FrozenText`."""
EDGE_CONTROLS = (RANDOM_TEXT_KIND, "inverse")
"""Kinds of subgraphs that every edge bank is compared with: random connected ones, and all other edges."""


class EdgeMeasurer(TextMeasurer[EdgeGraph]):
    """Measures edge subgraphs of the texts of one bank, kind by kind."""

    share_names = ("attention", "mlp", "residual")

    def nodes_used(self, graph: EdgeGraph, kept: Sequence[Tensor]) -> Tensor:
        """The nodes with an edge on a path from the text to the output."""
        return nodes_used(graph, kept)

    def counts_by_part(self, graph: EdgeGraph, kept: Sequence[Tensor]) -> Tensor:
        """Attention, MLP and residual edges by layer."""
        return counts_by_part(graph, kept)


def evaluate_edges(
    edge_lm: EdgeLM,
    bank: EdgeBank,
    data: MaskData,
    split: SplitName,
    keep_residual: bool = False,
    bar: ProgressBar = no_bar,
    mode: EdgeMode = "recomputed",
) -> tuple[EdgeMeasurer, list[Row]]:
    """Evaluate an edge bank: every text under its own subgraphs and under controls of the same sizes.

    Ranks share the texts, and each gets the results of all.

    Args:
        edge_lm: The model.
        bank: The bank.
        data: The texts, set up.
        split: The split that holds the bank's texts.
        keep_residual: Whether the controls keep all residual edges, as the paper's do.
        bar: Shows progress over the texts.
        mode: Whether attention patterns and norms are computed again on the masked stream.

    Returns:
        What was measured, and one row for each size.

    Raises:
        UserError: If the bank does not fit the texts, or is damaged.
    """
    kinds = [bank.method, *EDGE_CONTROLS] + [STRACE_KIND] * (bank.method != STRACE_KIND)
    measurer = EdgeMeasurer(edge_lm.layout, len(bank.shares), len(bank.groups), data.token_counts, kinds)
    for index in bar(ranks.share(range(len(bank.groups))), "Evaluation"):
        text = scored_text(data, split, index)
        input_ids = text.input_ids.to(edge_lm.device)
        found = importance(edge_lm, input_ids)
        full = edge_lm.full(input_ids)
        require_same_output(edge_lm, found.hidden, full)
        graph = found.graph
        bank.require_graph(index, graph.n_tokens, graph.exists)
        kept_of = _subgraphs(bank, index, input_ids, found, keep_residual)
        hidden = (
            partial(edge_lm.hidden, input_ids) if mode == "recomputed" else FrozenText.of(edge_lm, input_ids).hidden
        )
        hidden_of = partial(subgraphs_hidden, hidden, graph, device=edge_lm.device)
        require_same_output(edge_lm, hidden_of([graph.exists.nonzero()[:, 0]])[0], full)
        measurer.add(index, text, full, graph, kept_of, hidden_of)
    measurer.gather()
    return measurer, measurer.rows(bank)


def _subgraphs(
    bank: EdgeBank, index: int, input_ids: Tensor, found: Importance, keep_residual: bool
) -> dict[str, Sequence[Tensor]]:
    """The subgraphs of one text by kind: the bank's own, and the controls."""
    graph, kept = found.graph, bank.kept[index]
    counts = edge_counts(bank.shares, graph.n_edges)
    kept_of: dict[str, Sequence[Tensor]] = {
        bank.method: kept,
        RANDOM_TEXT_KIND: [
            random_connected(graph, counts[i], seed, keep_residual) for i, seed in random_seeds(index, len(counts))
        ],
        "inverse": [inverse(graph, ids, keep_residual) for ids in kept],
    }
    if bank.method != STRACE_KIND:
        kept_of[STRACE_KIND] = by_strace(bank.shares)(input_ids, found)
    return kept_of


@torch.no_grad()
def subgraphs_hidden(
    hidden: Callable[[EdgeGates], Tensor], graph: EdgeGraph, kept: Sequence[Tensor], device: torch.device
) -> Tensor:
    """Last hidden states of subgraphs, as many at once as memory allows: shape (subgraphs, width).

    Args:
        hidden: From gates to last hidden states.
        graph: The text's graph.
        kept: Numbers of the edges of every subgraph.
        device: Where the gates go.
    """
    rows = max(1, PLACES_PER_FORWARD // graph.n_places)
    parts = [kept[i : i + rows] for i in range(0, len(kept), rows)]
    return torch.cat([hidden(graph.gates(graph.masks(list(part)).to(device))) for part in parts])
