"""Learn which edges of one text to keep, by gradient descent on gates that start from s-Trace's order.

Attention and MLP edges have scores; the residual edges that they need come with them. Were residual edges gated like
the others, a stream at half-open gates would vanish over the layers, and its edges would get no gradient. An unread
stream matters: while attention patterns are recomputed, its keys take part in them. So the second half of the steps
closes the streams that are read no more, as the discrete subgraph does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from masklearn.edges import EdgeLM, Importance, edge_counts, grow, longest_prefix, refilled, with_expected_streams
from masklearn.objective import chunked_kl
from masklearn.training.text_learner import LogStep, SubgraphSearch, TextLearnerConfig, learn

EdgeLearnerConfig = TextLearnerConfig
"""Settings of the learner."""


class EdgeSearch(SubgraphSearch):
    """The subgraphs of the edges of one text. Sizes too small for a path cannot depend on the text: they are s-Trace's.

    Args:
        edge_lm: The frozen model.
        input_ids: The text up to the scored token, shape (tokens,).
        found: Graph and importance of the text.
        shares: Sizes as shares of the edges, ascending.
    """

    shared = 0.5  # until then all streams are open

    def __init__(self, edge_lm: EdgeLM, input_ids: Tensor, found: Importance, shares: Sequence[float]) -> None:
        self.edge_lm, self.input_ids, self.graph = edge_lm, input_ids, found.graph
        self.full = edge_lm.full(input_ids)[None]
        order = grow(self.graph, found.weights, self.graph.n_edges)
        counts = edge_counts(shares, self.graph.n_edges)
        scored = order[~self.graph.is_residual[order]].sort().values
        super().__init__(order, shares, scored, [i for i, n in enumerate(counts) if n >= self.graph.path_edges])

    def kl(self, gates: Tensor) -> Tensor:
        """KL under gates of the scored edges; residual edges are open."""
        residual = self.graph.is_residual.float()
        return self._kl(residual.repeat(len(gates), 1).index_copy(1, self.scored, gates)).cpu()

    def kl_with_others(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """KL under gates of the scored edges and of the streams that they need, and the residual edges of these."""
        flat = torch.zeros(len(gates), self.graph.n_places).index_copy(1, self.scored, gates)
        flat = with_expected_streams(self.graph, flat)
        return self._kl(flat).cpu(), flat[:, self.graph.is_residual].sum(1)

    @torch.no_grad()
    def kl_of(self, kept: list[Tensor]) -> Tensor:
        """KL of subgraphs."""
        return self._kl(self.graph.masks(kept)).cpu()

    def subgraph(self, best_first: Tensor, n_units: int) -> tuple[Tensor, int]:
        """The edges that fit with their streams, filled up with the first edges of s-Trace that are live."""
        kept, length = longest_prefix(self.graph, best_first, n_units)
        return refilled(self.graph, kept, self.order, [n_units])[0], length

    def first_subgraphs(self) -> list[Tensor]:
        """Those of s-Trace."""
        return refilled(self.graph, self.order[:0], self.order, self.counts)

    def _kl(self, flat: Tensor) -> Tensor:
        hidden = self.edge_lm.hidden(self.input_ids, self.graph.gates(flat.to(self.input_ids.device)))
        return chunked_kl(self.full, hidden[:, None], self.edge_lm.layout.unembed)[:, 0]


def learn_edges(
    edge_lm: EdgeLM,
    input_ids: Tensor,
    found: Importance,
    shares: Sequence[float],
    config: EdgeLearnerConfig,
    log: LogStep | None = None,
) -> list[Tensor]:
    """Learn the subgraphs of one text for all sizes, with scores of every attention and MLP edge: see `learn`.

    Args:
        edge_lm: The frozen model.
        input_ids: The text up to the scored token, shape (tokens,).
        found: Graph and importance of the text.
        shares: Sizes as shares of the edges, ascending.
        config: Settings.
        log: Takes the metrics of every step.

    Returns:
        The numbers of the edges kept, ascending, for every size.
    """
    return learn(EdgeSearch(edge_lm, input_ids, found, shares), config, log)
