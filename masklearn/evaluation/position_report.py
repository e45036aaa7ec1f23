"""Measure position subgraphs of single texts, beside random, inverse and highest-scoring ones of the same sizes."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from masklearn import ranks
from masklearn.data import MaskData, SplitName
from masklearn.evaluation.measure import Row
from masklearn.evaluation.text_report import RANDOM_TEXT_KIND, TextMeasurer, random_seeds, scored_text
from masklearn.positions import SCORE_FUNCTIONS, PositionGraph, PositionLM, best_first
from masklearn.progress import ProgressBar, no_bar
from masklearn.shares import share_counts
from masklearn.text_bank import PositionBank


class PositionMeasurer(TextMeasurer[PositionGraph]):
    """Measures position subgraphs of the texts of one bank, kind by kind."""

    share_names = ("head", "mlp")

    def nodes_used(self, graph: PositionGraph, kept: Sequence[Tensor]) -> Tensor:
        """The nodes that are kept at some token."""
        return graph.nodes_used(kept)

    def counts_by_part(self, graph: PositionGraph, kept: Sequence[Tensor]) -> Tensor:
        """Positions of heads and of MLPs by layer."""
        return graph.counts_by_part(kept)


def evaluate_positions(
    position_lm: PositionLM, bank: PositionBank, data: MaskData, split: SplitName, bar: ProgressBar = no_bar
) -> tuple[PositionMeasurer, list[Row]]:
    """Evaluate a bank of positions: every text under its own subgraphs and under others of the same sizes.

    The others are drawn uniformly (`random`), or keep the highest scores of each kind in `SCORE_FUNCTIONS`; `inverse`
    is all other positions. Ranks share the texts, and each gets the results of all.

    Args:
        position_lm: The model.
        bank: The bank.
        data: The texts, set up.
        split: The split that holds the bank's texts.
        bar: Shows progress over the texts.

    Returns:
        What was measured, and one row for each size.

    Raises:
        UserError: If the bank does not fit the texts, or is damaged.
    """
    kinds = [bank.method, RANDOM_TEXT_KIND, "inverse", *SCORE_FUNCTIONS]
    measurer = PositionMeasurer(position_lm.layout, len(bank.shares), len(bank.groups), data.token_counts, kinds)
    for index in bar(ranks.share(range(len(bank.groups))), "Evaluation"):
        text = scored_text(data, split, index)
        input_ids = text.input_ids.to(position_lm.device)
        graph, kept = position_lm.graph(input_ids), bank.kept[index]
        bank.require_graph(index, graph.n_tokens, graph.exists)
        counts = share_counts(bank.shares, graph.n_positions)
        scores = {kind: score(position_lm, input_ids) for kind, score in SCORE_FUNCTIONS.items()}
        kept_of: dict[str, Sequence[Tensor]] = {
            kind: [best_first(graph, of_kind)[:n] for n in counts] for kind, of_kind in scores.items()
        }
        by_chance = [
            best_first(graph, torch.rand(graph.n_places, generator=torch.Generator().manual_seed(seed)))[: counts[i]]
            for i, seed in random_seeds(index, len(counts))
        ]
        kept_of |= {bank.method: kept, RANDOM_TEXT_KIND: by_chance, "inverse": [graph.inverse(ids) for ids in kept]}
        hidden_of = partial(subgraphs_hidden, position_lm, input_ids, graph)
        measurer.add(index, text, position_lm.full(input_ids), graph, kept_of, hidden_of)
    measurer.gather()
    return measurer, measurer.rows(bank)


@torch.no_grad()
def subgraphs_hidden(
    position_lm: PositionLM, input_ids: Tensor, graph: PositionGraph, kept: Sequence[Tensor]
) -> Tensor:
    """Last hidden states of subgraphs, shape (subgraphs, width)."""
    return position_lm.hidden(input_ids, graph.gates(graph.masks(kept)).to(input_ids.device))
