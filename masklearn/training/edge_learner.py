"""Learn which edges of one text to keep, by gradient descent on gates that start from s-Trace's order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masklearn.edges import EdgeGraph, EdgeLM, Importance, edge_counts, grow, live
from masklearn.gates import open_probability, top
from masklearn.objective import chunked_kl
from masklearn.training.budget import Projected
from masklearn.training.learned_ablation import LOG_KL_EPS

CHECK_EVERY = 10
"""Steps between two evaluations of the discrete subgraphs."""


EDGE_STEPS, EDGE_LR, EDGE_TEMPERATURE = 60, 0.3, (0.3, 0.05)
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
    edges: Tensor
    """Numbers of all edges, shape (edges,)."""
    order: Tensor
    """The same in s-Trace's order."""
    counts: Tensor
    """Sizes in edges, shape (sizes,)."""

    def __post_init__(self) -> None:
        self.full = self.edge_lm.full(self.input_ids)[None]
        self.kept = [self.order[:n].sort().values for n in self.counts.tolist()]
        self.best = self._kl_of(self.kept)

    def kl(self, gates: Tensor) -> Tensor:
        """KL(full || masked) under gates (sizes, edges), in nats, shape (sizes,)."""
        flat = torch.zeros(len(gates), self.graph.n_places).index_copy(1, self.edges, gates)
        hidden = self.edge_lm.hidden(self.input_ids, self.graph.gates(flat.to(self.input_ids.device)))
        return chunked_kl(self.full, hidden[:, None], self.edge_lm.layout.unembed)[:, 0].cpu()

    @torch.no_grad()
    def _kl_of(self, kept: list[Tensor]) -> Tensor:
        return self.kl(self.graph.masks(kept)[:, self.edges])

    def consider(self, scores: Tensor) -> None:
        """Take the subgraphs of the highest scores, without dead edges, at the sizes at which they are better."""
        masks = top(scores.expand(len(self.counts), -1), self.counts)
        candidates = [refilled(self.graph, self.edges[mask], self.order) for mask in masks]
        kl = self._kl_of(candidates)
        triples = zip(candidates, self.kept, kl < self.best, strict=True)
        self.kept = [new if is_lower else old for new, old, is_lower in triples]
        self.best = torch.minimum(self.best, kl)


@torch.enable_grad()
def learn_edges(
    edge_lm: EdgeLM, input_ids: Tensor, found: Importance, shares: Sequence[float], config: EdgeLearnerConfig
) -> list[Tensor]:
    """Learn the subgraphs of one text for all sizes, with one score for every edge.

    Gates are mean-field: each at its probability of being open, under a budget that holds at every step (`Projected`).
    The loss is the sum over sizes of the log of KL(full || masked). For each size the discrete subgraph of the lowest
    KL on the way is kept; s-Trace's is the first.

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
    edges, order = graph.exists.nonzero()[:, 0], grow(graph, found.weights, graph.n_edges)
    counts = torch.tensor(edge_counts(shares, graph.n_edges))
    search = _EdgeSearch(edge_lm, input_ids, graph, edges, order, counts)
    rank = torch.empty(graph.n_places)
    rank[order] = torch.arange(1, graph.n_edges + 1).float()
    scores = (-rank[edges].log()).requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=config.lr, betas=(0.8, 0.95))
    first, last = config.temperature
    for step in range(1, config.steps + 1):
        temperature = first * (last / first) ** ((step - 1) / max(1, config.steps - 1))
        # size by size: the budget's search holds many copies of the log-odds
        log_odds = [budget.adjust_log_odds(scores[None] / temperature, n[None].float()) for n in counts]
        loss = (search.kl(open_probability(torch.cat(log_odds))) + LOG_KL_EPS).log().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0 or step == config.steps:
            search.consider(scores.detach())
    return search.kept


def refilled(graph: EdgeGraph, kept: Tensor, order: Tensor) -> Tensor:
    """A subgraph without its dead edges, filled up to its size with the first edges of s-Trace that it lacks.

    Args:
        graph: The text's graph.
        kept: Numbers of the edges.
        order: All edges in s-Trace's order.

    Returns:
        Numbers of as many edges, ascending.
    """
    alive = live(graph, [kept])[0]
    missing = order[~alive[order]][: len(kept) - int(alive.sum())]
    return torch.cat([alive.nonzero()[:, 0], missing]).sort().values
