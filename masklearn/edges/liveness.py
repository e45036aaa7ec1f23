"""Which edges of a subgraph carry something from the text to the output, and which nodes they belong to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from masklearn.edges.graph import EdgeGraph


def live(graph: EdgeGraph, kept: Sequence[Tensor]) -> Tensor:
    """The edges of subgraphs that lie on a path from an embedding to the output.

    Args:
        graph: The text's graph.
        kept: Numbers of the edges of every subgraph.

    Returns:
        Boolean, shape (subgraphs, flat).
    """
    open_edges = graph.masks(list(kept)) > 0
    return open_edges & _reached(graph, open_edges) & reaching(graph, open_edges)


def _reached(graph: EdgeGraph, open_edges: Tensor) -> Tensor:
    """Whether a path from an embedding leads to the source of each edge: (subgraphs, flat) to the same."""
    gates, found = graph.gates(open_edges), torch.zeros_like(open_edges)
    sources = graph.gates(found)
    stream = open_edges.new_ones(len(open_edges), graph.n_tokens)
    for layer in range(graph.n_layers):
        sources.attention[:, layer] = stream[:, None, None]
        sources.residual_attention[:, layer] = stream
        after = (gates.attention[:, layer] & stream[:, None, None]).any(-1).any(1)
        after |= gates.residual_attention[:, layer] & stream
        middle = stream if graph.parallel else after
        sources.mlp[:, layer] = sources.residual_mlp[:, layer] = middle
        stream = (after if graph.parallel else gates.residual_mlp[:, layer] & after) | (gates.mlp[:, layer] & middle)
    return found


def reaching(graph: EdgeGraph, open_edges: Tensor) -> Tensor:
    """Whether a path of open edges leads to the output from the target of each edge: (subgraphs, flat) to the same."""
    gates, found = graph.gates(open_edges), torch.zeros_like(open_edges)
    targets = graph.gates(found)
    after = open_edges.new_zeros(len(open_edges), graph.n_tokens)
    after[:, -1] = True
    for layer in reversed(range(graph.n_layers)):
        targets.mlp[:, layer] = targets.residual_mlp[:, layer] = after
        through_mlp = gates.mlp[:, layer] & after
        middle = after if graph.parallel else through_mlp | (gates.residual_mlp[:, layer] & after)
        targets.attention[:, layer] = middle[:, None, :, None]
        targets.residual_attention[:, layer] = middle
        read = (gates.attention[:, layer] & middle[:, None, :, None]).any(2).any(1)
        after = read | (gates.residual_attention[:, layer] & middle)
        after = after | through_mlp if graph.parallel else after
    return found


def nodes_used(graph: EdgeGraph, kept: Sequence[Tensor]) -> Tensor:
    """The nodes with a live edge: a boolean mask over heads and MLPs, in the order of `NodeGraph`.

    Args:
        graph: The text's graph.
        kept: Numbers of the edges of every subgraph.

    Returns:
        Shape (subgraphs, nodes).
    """
    gates = graph.gates(live(graph, kept))
    heads, mlps = gates.attention.any(-1).any(-1), gates.mlp.any(-1)
    return torch.cat([heads, mlps[..., None]], dim=-1).flatten(1)


def counts_by_part(graph: EdgeGraph, kept: Sequence[Tensor]) -> Tensor:
    """Count attention, MLP and residual edges of subgraphs, by layer: int64, shape (subgraphs, layers, 3)."""
    gates = graph.gates(graph.masks(list(kept)))
    residual = gates.residual_attention + gates.residual_mlp
    parts = (gates.attention.flatten(2), gates.mlp, residual)
    return torch.stack([part.sum(-1) for part in parts], dim=-1).long()


def shares_by_kind(graph: EdgeGraph, kept: Sequence[Tensor]) -> dict[str, Tensor]:
    """The shares of attention, MLP and residual edges among the edges of subgraphs, each of shape (subgraphs,)."""
    counts = counts_by_part(graph, kept).sum(1)
    shares = counts / counts.sum(-1, keepdim=True)
    return dict(zip(("attention", "mlp", "residual"), shares.unbind(-1), strict=True))
