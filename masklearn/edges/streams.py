"""The residual streams that a choice of attention and MLP edges needs: what is read must have been carried there.

An edge of the attention or of an MLP is of use only if the stream that it reads, and all streams between it and the
output, are open. Whoever chooses among such edges has to pay for these residual edges, too.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from masklearn.edges.graph import EdgeGraph
from masklearn.edges.liveness import reaching


def with_streams(graph: EdgeGraph, chosen: Tensor) -> Tensor:
    """The chosen edges that can reach the output, with every stream that they or the output read, from its embedding.

    Args:
        graph: The text's graph.
        chosen: Whether each attention or MLP edge is chosen; residual edges among them do not count. Boolean (flat,).

    Returns:
        Boolean, shape (flat,): a subgraph in which every edge lies on a path from the text to the output.
    """
    is_open = ((chosen | graph.is_residual) & graph.exists)[None]
    gates = graph.gates(is_open & reaching(graph, is_open))
    height = _heights_read(graph, gates.attention[0], gates.mlp[0])
    return _within(graph, height)[0] & (chosen | graph.is_residual)


def with_expected_streams(graph: EdgeGraph, gates: Tensor) -> Tensor:
    """Gates of attention and MLP edges, with those of the streams that they need if they are open independently.

    A residual edge is open with the probability that an edge which reads its stream at its end or above is; the last
    token's are all open. Gates of 0 and 1 whose open edges all reach the output get the streams of `with_streams`.

    Args:
        graph: The text's graph.
        gates: Probabilities of being open, shape (rows, flat); 0 at residual edges and where there is no edge.

    Returns:
        Probabilities of the same shape, differentiable.
    """
    closed = graph.gates(gates.clamp(max=1 - 1e-6).neg().log1p())  # log-probabilities
    readers = [closed.attention.sum((2, 3)), closed.mlp]  # (rows, layers, tokens)
    by_level = sum(readers) if graph.parallel else torch.stack(readers, 2).flatten(1, 2)
    assert isinstance(by_level, Tensor)
    unread = by_level.flip(1).cumsum(1).flip(1)[:, 1:, :-1]  # at a level and above it, from level 1 on
    read = pad(-unread.expm1(), (0, 0, 0, 1))
    by_layer = pad(read, (0, 1), value=1.0).unflatten(1, (graph.n_layers, -1))  # (rows, layers, 1 or 2, tokens)
    by_layer = by_layer if by_layer.shape[2] == 2 else pad(by_layer, (0, 0, 0, 1))
    chosen = gates.unflatten(-1, (graph.n_layers, -1))[..., : -2 * graph.n_tokens]
    return torch.cat([chosen, by_layer.flatten(2)], -1).flatten(1) * graph.exists


def longest_prefix(graph: EdgeGraph, order: Tensor, n_edges: int) -> tuple[Tensor, int]:
    """As many of some ordered edges as fit into a size together with their streams.

    Args:
        graph: The text's graph.
        order: Numbers of attention and MLP edges, best first.
        n_edges: The size, at least `graph.path_edges`: the stream of the last token is always there.

    Returns:
        Numbers of the edges kept, ascending, at most `n_edges`; and the length of the prefix, edges that cannot reach
        the output included. Where the next edge needs a new stream that no longer fits, later ones that need none
        take the places left.
    """
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        fits = int(with_streams(graph, _flags(graph, order[:middle])).sum()) <= n_edges
        low, high = (middle, high) if fits else (low, middle - 1)
    kept = with_streams(graph, _flags(graph, order[:low]))
    gates = graph.gates(kept[None])
    inside = _within(graph, _heights_read(graph, gates.attention[0], gates.mlp[0]))[0] & ~kept
    kept[order[inside[order]][: n_edges - int(kept.sum())]] = True
    return kept.nonzero()[:, 0], low


def _flags(graph: EdgeGraph, ids: Tensor) -> Tensor:
    flags = torch.zeros(graph.n_places, dtype=torch.bool)
    flags[ids] = True
    return flags


def _heights_read(graph: EdgeGraph, attention: Tensor, mlp: Tensor) -> Tensor:
    """The highest level at which each token's stream is read by the open edges or the output, shape (tokens,)."""
    step = graph.levels_per_layer
    layer = torch.arange(graph.n_layers)[:, None]
    by_attention = (attention.any(2).any(1) * step * layer).amax(0)  # sources (layers, tokens)
    by_mlp = (mlp * (step * layer + step - 1)).amax(0)
    height = torch.maximum(by_attention, by_mlp)
    height[-1] = step * graph.n_layers
    return height


def _within(graph: EdgeGraph, height: Tensor) -> Tensor:
    """The edges that begin and end within the streams up to each token's height: boolean, shape (1, flat)."""
    step = graph.levels_per_layer
    below = torch.zeros(1, graph.n_places, dtype=torch.bool)
    gates = graph.gates(below)
    for layer in range(graph.n_layers):
        after_attention, after_mlp = height > step * layer, height >= step * (layer + 1)
        gates.attention[0, layer] = after_attention[:, None] & (height >= step * layer)
        gates.residual_attention[0, layer] = after_attention
        gates.mlp[0, layer] = gates.residual_mlp[0, layer] = after_mlp
    return below & graph.exists
