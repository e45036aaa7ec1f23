"""Learn which edges of one text to keep, by gradient descent on gates that start from s-Trace's order.

Attention and MLP edges have scores; the residual edges that they need come with them. Were residual edges gated like
the others, a stream at half-open gates would vanish over the layers, and its edges would get no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from masklearn.edges import EdgeGraph, EdgeLM, Importance, edge_counts, grow, longest_prefix
from masklearn.gates import open_probability
from masklearn.objective import chunked_kl
from masklearn.training.budget import Projected
from masklearn.training.learned_ablation import LOG_KL_EPS

CHECK_EVERY = 10
"""Steps between two evaluations of the discrete subgraphs."""
SHRINKING = 0.4
"""Share of the steps in which the sizes shrink from all edges to their targets, by a constant factor a step."""


EDGE_STEPS, EDGE_LR, EDGE_TEMPERATURE = 60, 0.4, (0.5, 0.05)
"""Defaults of the settings below, chosen on a few texts of three models."""


@dataclass(frozen=True)
class EdgeLearnerConfig:
    """Settings of the learner."""

    steps: int = EDGE_STEPS
    """Optimiser steps of every text."""
    lr: float = EDGE_LR
    """Learning rate of the scores, which begin as minus the log of the rank in s-Trace's order."""
    temperature: tuple[float, float] = EDGE_TEMPERATURE
    """Softness of the gates at the first and at the last step: at the end they are almost discrete."""


@dataclass
class _EdgeSearch:
    """The discrete subgraphs of one text, by size, that have the lowest KL so far."""

    edge_lm: EdgeLM
    input_ids: Tensor
    graph: EdgeGraph
    order: Tensor
    """Numbers of all edges in s-Trace's order."""
    counts: list[int]
    """Sizes in edges."""
    n_open: Tensor = field(init=False)
    """For each learned size, how many of the edges with scores are kept beside their streams, shape (learned,)."""

    def __post_init__(self) -> None:
        self.full = self.edge_lm.full(self.input_ids)[None]
        self.kept = [self.order[:n].sort().values for n in self.counts]
        self.best = self._kl_of(self.kept)
        self.scored = self.order[~self.graph.is_residual[self.order]].sort().values
        # a smaller subgraph cannot depend on the text, and stays s-Trace's
        self.learned = [i for i, n in enumerate(self.counts) if n >= self.graph.path_edges]

    def kl(self, gates: Tensor) -> Tensor:
        """KL(full || masked) in nats, shape (learned,), under gates of the scored edges, shape (learned, scored)."""
        residual = (self.graph.is_residual & self.graph.exists).float()
        flat = residual.repeat(len(gates), 1).index_copy(1, self.scored, gates)
        return self._kl(flat).cpu()

    def _kl(self, flat: Tensor) -> Tensor:
        hidden = self.edge_lm.hidden(self.input_ids, self.graph.gates(flat.to(self.input_ids.device)))
        return chunked_kl(self.full, hidden[:, None], self.edge_lm.layout.unembed)[:, 0]

    @torch.no_grad()
    def _kl_of(self, kept: list[Tensor]) -> Tensor:
        return self._kl(self.graph.masks(kept)).cpu()

    def consider(self, scores: Tensor) -> None:
        """Take the subgraphs of the highest scores at the sizes at which they are better; count their open edges."""
        best_first = self.scored[scores.argsort(descending=True)]
        found = [longest_prefix(self.graph, best_first, self.counts[i]) for i in self.learned]
        candidates = [
            filled(kept, self.order, self.counts[i]) for i, (kept, _) in zip(self.learned, found, strict=True)
        ]
        for i, candidate, kl in zip(self.learned, candidates, self._kl_of(candidates), strict=True):
            if kl < self.best[i]:
                self.kept[i], self.best[i] = candidate, kl
        self.n_open = torch.tensor([float(max(1, length)) for _, length in found])


@torch.enable_grad()
def learn_edges(
    edge_lm: EdgeLM, input_ids: Tensor, found: Importance, shares: Sequence[float], config: EdgeLearnerConfig
) -> list[Tensor]:
    """Learn the subgraphs of one text for all sizes, with one score for every attention and MLP edge.

    Gates are mean-field: each at its probability of being open, under a budget that holds at every step (`Projected`),
    while residual edges are open. Every `CHECK_EVERY` steps the edges of the highest scores that fit into each size
    together with their streams make its discrete subgraph, and their number is the target of the budget, to which it
    shrinks from all edges. The loss is the sum over sizes of the log of KL(full || masked). For each size the discrete
    subgraph of the lowest KL on the way is kept; s-Trace's is the first.

    Args:
        edge_lm: The frozen model.
        input_ids: The text up to the scored token, shape (tokens,).
        found: Graph and importance of the text.
        shares: Sizes as shares of the edges, ascending.
        config: Settings.

    Returns:
        The numbers of the edges kept, ascending, for every size.
    """
    graph, budget = found.graph, Projected()
    order = grow(graph, found.weights, graph.n_edges)
    search = _EdgeSearch(edge_lm, input_ids, graph, order, edge_counts(shares, graph.n_edges))
    if not search.learned:
        return search.kept
    rank = torch.empty(graph.n_places)
    rank[order] = torch.arange(1, graph.n_edges + 1).float()
    scores = (-rank[search.scored].log()).requires_grad_()
    search.consider(scores.detach())
    optimizer = torch.optim.Adam([scores], lr=config.lr, betas=(0.8, 0.95))
    first, last = config.temperature
    for step in range(1, config.steps + 1):
        temperature = first * (last / first) ** ((step - 1) / max(1, config.steps - 1))
        # size by size: the budget's search holds many copies of the log-odds
        sizes = _shrunk(search.n_open, len(search.scored), (step - 1) / config.steps)
        log_odds = [budget.adjust_log_odds(scores[None] / temperature, n[None]) for n in sizes]
        loss = (search.kl(open_probability(torch.cat(log_odds))) + LOG_KL_EPS).log().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0 or step == config.steps:
            search.consider(scores.detach())
    return search.kept


def _shrunk(n_open: Tensor, n_scored: int, progress: float) -> Tensor:
    """How many scored edges are open in expectation at a share of the steps, of the shape of `n_open`."""
    remaining = max(0.0, 1 - progress / SHRINKING)
    return n_open * (n_scored / n_open) ** remaining


def filled(kept: Tensor, order: Tensor, n_edges: int) -> Tensor:
    """A subgraph, filled up to a size with the first edges in an order that it lacks: numbers of edges, ascending."""
    missing = order[~torch.isin(order, kept)]
    return torch.cat([kept, missing[: n_edges - len(kept)]]).sort().values
