"""Other subgraphs of a text's edges, to compare with those of s-Trace: inverse, random, and two older traversals.

Source: Kervadec et al. 2026 (arXiv 2605.27033).
"""

import random
from collections import deque

import torch
from torch import Tensor

from masklearn.edges.graph import EdgeGraph


def inverse(graph: EdgeGraph, kept: Tensor, keep_residual: bool = False) -> Tensor:
    """The edges that a subgraph leaves out.

    Args:
        graph: The text's graph.
        kept: Numbers of the subgraph's edges.
        keep_residual: Whether to keep all residual edges as well, as the paper does.
    """
    mask = graph.exists.clone()
    mask[kept] = False
    if keep_residual:
        mask |= graph.is_residual
    return mask.nonzero()[:, 0]


def random_connected(graph: EdgeGraph, n_edges: int, seed: int, keep_residual: bool = False) -> Tensor:
    """Grow a subgraph backward from the output at random.

    Every step draws a reached vertex that has edges left, and takes one of them: first a residual or MLP edge, then one
    of the attention.

    Args:
        graph: The text's graph.
        n_edges: How many edges to draw.
        seed: Seed of the draws.
        keep_residual: Whether to add all residual edges afterwards, as the paper does; the subgraph is then larger.

    Returns:
        Numbers of the edges, in the order sampled.
    """
    rng, reached = random.Random(seed), set[int]()
    waiting: list[list[tuple[int, int]]] = []
    """For every reached vertex with edges left, these edges and their sources; the next one last."""
    direct = graph.exists.clone()
    graph.gates(direct[None]).attention[:] = False

    def reach(vertex: int) -> None:
        reached.add(vertex)
        edges = [(edge, source) for edge, source in zip(*(c.tolist() for c in graph.in_edges(vertex)), strict=True)]
        if edges:
            rng.shuffle(edges)
            waiting.append(sorted(edges, key=lambda edge: bool(direct[edge[0]])))

    reach(graph.output)
    sampled: list[int] = []
    while waiting and len(sampled) < n_edges:
        index = rng.randrange(len(waiting))
        edge, source = waiting[index].pop()
        sampled.append(edge)
        if not waiting[index]:
            waiting[index] = waiting[-1]
            waiting.pop()
        if source not in reached:
            reach(source)
    ids = torch.tensor(sampled)
    return torch.cat([ids, graph.is_residual.nonzero()[:, 0]]).unique() if keep_residual else ids


def threshold(graph: EdgeGraph, weights: Tensor, tau: float) -> Tensor:
    """The edges whose importance is above `tau` and from whose target such edges lead to the output.

    Args:
        graph: The text's graph.
        weights: Importance of the edges, shape (flat,).
        tau: The threshold, between 0 and 1.

    Returns:
        Numbers of the edges.
    """
    return _traverse(graph, lambda ids: ids[weights[ids] > tau])


def nucleus(graph: EdgeGraph, weights: Tensor, tau: float) -> Tensor:
    """The heaviest edges into every reached vertex, until they hold a share `tau` of the importance into it.

    The edge that crosses `tau` is kept, so there is at least one; edges without importance are not.

    Args:
        graph: The text's graph.
        weights: Importance of the edges, shape (flat,).
        tau: The share, between 0 and 1.

    Returns:
        Numbers of the edges.
    """

    def chosen(ids: Tensor) -> Tensor:
        order = weights[ids].argsort(descending=True, stable=True)
        values = weights[ids][order]
        before = values.double().cumsum(0) - values
        first = torch.arange(len(values)) == 0
        return ids[order[((before < tau) | first) & (values > 0)]]

    return _traverse(graph, chosen)


def _traverse(graph: EdgeGraph, choose) -> Tensor:
    kept, seen, queue = list[int](), {graph.output}, deque([graph.output])
    while queue:
        ids, sources = graph.in_edges(queue.popleft())
        source_of = dict(zip(ids.tolist(), sources.tolist(), strict=True))
        for edge in choose(ids).tolist():
            kept.append(edge)
            if source_of[edge] not in seen:
                seen.add(source_of[edge])
                queue.append(source_of[edge])
    return torch.tensor(kept, dtype=torch.long)
