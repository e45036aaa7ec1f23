"""Learn which positions of one text to keep, by gradient descent on gates that start from the better of two orders."""

from collections.abc import Sequence

import torch
from torch import Tensor

from masklearn.objective import chunked_kl
from masklearn.positions import SCORE_FUNCTIONS, PositionGraph, PositionLM, best_first
from masklearn.shares import share_counts
from masklearn.training.learned_ablation import LOG_KL_EPS
from masklearn.training.text_learner import LogStep, SubgraphSearch, TextLearnerConfig, learn


class PositionSearch(SubgraphSearch):
    """The subgraphs of the positions of one text. All positions have scores, and each subgraph keeps the highest.

    The first order is that of `SCORE_FUNCTIONS` with the lowest mean log KL, and the first subgraph of every size the
    best of all of them.

    Args:
        position_lm: The frozen model.
        input_ids: The text up to the scored token, shape (tokens,).
        graph: Its positions.
        shares: Sizes as shares of the positions, ascending.
    """

    def __init__(
        self, position_lm: PositionLM, input_ids: Tensor, graph: PositionGraph, shares: Sequence[float]
    ) -> None:
        self.position_lm, self.input_ids, self.graph = position_lm, input_ids, graph
        self.full = position_lm.full(input_ids)[None]
        self.scored = graph.exists.nonzero()[:, 0]
        counts, sizes = share_counts(shares, graph.n_positions), range(len(shares))
        orders = [best_first(graph, score(position_lm, input_ids)) for score in SCORE_FUNCTIONS.values()]
        subgraphs = [[order[:n].sort().values for n in counts] for order in orders]
        log_kl = [(self.kl_of(kept) + LOG_KL_EPS).log().mean().item() for kept in subgraphs]
        super().__init__(orders[log_kl.index(min(log_kl))], shares, self.scored, sizes)
        for kept in subgraphs:
            self.replace_if_better(sizes, kept)

    def kl(self, gates: Tensor) -> Tensor:
        """KL under gates of the positions."""
        flat = gates.new_zeros(len(gates), self.graph.n_places).index_copy(1, self.scored, gates)
        hidden = self.position_lm.hidden(self.input_ids, self.graph.gates(flat.to(self.input_ids.device)))
        return chunked_kl(self.full, hidden[:, None], self.position_lm.masked_lm.unembed)[:, 0].cpu()

    @torch.no_grad()
    def kl_of(self, kept: list[Tensor]) -> Tensor:
        """KL of subgraphs."""
        return self.kl(self.graph.masks(kept)[:, self.scored])

    def subgraph(self, best_first: Tensor, n_units: int) -> tuple[Tensor, int]:
        """The positions of the highest scores."""
        return best_first[:n_units].sort().values, n_units


def learn_positions(
    position_lm: PositionLM,
    input_ids: Tensor,
    graph: PositionGraph,
    shares: Sequence[float],
    config: TextLearnerConfig,
    log: LogStep | None = None,
) -> list[Tensor]:
    """Learn the subgraphs of one text for all sizes, with one score for every position: see `learn`.

    Args:
        position_lm: The frozen model.
        input_ids: The text up to the scored token, shape (tokens,).
        graph: Its positions.
        shares: Sizes as shares of the positions, ascending.
        config: Settings.
        log: Takes the metrics of every step.

    Returns:
        The numbers of the positions kept, ascending, for every size.
    """
    return learn(PositionSearch(position_lm, input_ids, graph, shares), config, log)
