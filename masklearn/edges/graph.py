"""The edge graph of one text: which edges there are, and where each stands in a flat vector of gates.

A vertex is the residual stream of one token at one level. Level 0 holds the embeddings. In a sequential layer the
attention ends one level and the MLP the next; a layer whose attention and MLP run in parallel ends one level. Source:
Kervadec et al. 2026 (arXiv 2605.27033).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class EdgeGates(NamedTuple):
    """One number for every edge, by kind: views of flat vectors (rows, flat)."""

    attention: Tensor
    """Shape (rows, layers, heads, targets, sources)."""
    mlp: Tensor
    """Shape (rows, layers, tokens), as the two below."""
    residual_attention: Tensor
    """The stream that passes the attention by; in parallel layers, the attention and the MLP."""
    residual_mlp: Tensor
    """The stream that passes the MLP by; parallel layers have no such edges."""


class InEdges(NamedTuple):
    """The edges into one vertex: first those of the attention, by source and then by head."""

    ids: Tensor
    """Positions in a flat vector, shape (edges,)."""
    sources: Tensor
    """The vertex that each comes from, shape (edges,)."""


@dataclass(frozen=True)
class EdgeGraph:
    """The edges of one text, without those that cannot reach the last token's output.

    Edges are numbered by their position in a flat vector that also has places for edges that do not exist, such as
    those from later tokens: layer by layer, each with heads x targets x sources, then MLP, residual past the attention
    and residual past the MLP, with one place for every token.
    """

    allowed: Tensor
    """Whether a layer's attention may read a source at a target. Boolean, shape (layers, targets, sources)."""
    n_heads: int
    parallel: bool = False
    """Whether attention and MLP of a layer both read the layer's input."""

    @classmethod
    def causal(cls, n_layers: int, n_heads: int, n_tokens: int, parallel: bool = False) -> "EdgeGraph":
        """The graph of a model whose attention reads every earlier token."""
        allowed = torch.ones(n_layers, n_tokens, n_tokens, dtype=torch.bool).tril()
        return cls(allowed, n_heads, parallel)

    @staticmethod
    def count(n_layers: int, n_heads: int, n_tokens: int, parallel: bool = False) -> int:
        """Number of edges of the graph of a model whose attention reads every earlier token."""
        direct = 2 if parallel else 3
        below_last = n_heads * n_tokens * (n_tokens + 1) // 2 + direct * n_tokens
        return (n_layers - 1) * below_last + n_heads * n_tokens + direct

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.allowed)

    @property
    def n_tokens(self) -> int:
        """Tokens of the text."""
        return self.allowed.shape[-1]

    @property
    def places_per_layer(self) -> int:
        """Length of one layer's part of a flat vector."""
        return self.n_tokens * (self.n_heads * self.n_tokens + 3)

    @property
    def n_places(self) -> int:
        """Length of a flat vector: the edges, and the places of edges that do not exist."""
        return self.n_layers * self.places_per_layer

    @property
    def levels_per_layer(self) -> int:
        """1 if the layers are parallel, otherwise 2."""
        return 1 if self.parallel else 2

    @cached_property
    def _is_read(self) -> Tensor:
        """Whether each token's stream before the first layer, and after each, can reach the output.

        Boolean, shape (layers + 1, tokens). Of the last layer only the last token is read; with attention in windows,
        not every token before it is.
        """
        is_read = torch.zeros(self.n_layers + 1, self.n_tokens, dtype=torch.bool)
        is_read[-1, -1] = True
        for layer in reversed(range(self.n_layers)):
            after = is_read[layer + 1]
            is_read[layer] = after | (self.allowed[layer] & after[:, None]).any(0)
        return is_read

    @cached_property
    def exists(self) -> Tensor:
        """Whether each place of a flat vector is an edge. Boolean, shape (flat,)."""
        flat, after = torch.zeros(1, self.n_places, dtype=torch.bool), self._is_read[1:]
        gates = self.gates(flat)
        gates.attention[0] = (self.allowed & after[..., None])[:, None]
        gates.mlp[0] = gates.residual_attention[0] = after
        gates.residual_mlp[0] = after & (not self.parallel)
        return flat[0]

    @cached_property
    def is_residual(self) -> Tensor:
        """Whether each place of a flat vector is a residual edge. Boolean, shape (flat,)."""
        flat = torch.zeros(1, self.n_places, dtype=torch.bool)
        gates = self.gates(flat)
        gates.residual_attention[:] = gates.residual_mlp[:] = True
        return flat[0] & self.exists

    @cached_property
    def n_edges(self) -> int:
        """Number of edges, E."""
        return int(self.exists.sum())

    @property
    def n_vertices(self) -> int:
        """Vertices that can reach the output, which is one of them."""
        return int(self._is_read[0].sum()) + self.n_targets

    @property
    def n_targets(self) -> int:
        """Vertices that edges lead to: all but the embeddings."""
        return self.levels_per_layer * int(self._is_read[1:].sum())

    @property
    def output(self) -> int:
        """The vertex of the output: the last token at the last level."""
        return self.vertex(self.levels_per_layer * self.n_layers, self.n_tokens - 1)

    @property
    def path_edges(self) -> int:
        """Edges of a path from an embedding to the output: a smaller subgraph cannot depend on the text."""
        return self.levels_per_layer * self.n_layers

    def vertex(self, level: int, token: int) -> int:
        """Number of a vertex."""
        return level * self.n_tokens + token

    def gates(self, flat: Tensor) -> EdgeGates:
        """Flat vectors (rows, flat) as gates by kind, without a copy."""
        heads, tokens = self.n_heads, self.n_tokens
        by_layer = flat.unflatten(-1, (self.n_layers, self.places_per_layer))
        attention, *others = by_layer.split([heads * tokens * tokens, tokens, tokens, tokens], dim=-1)
        return EdgeGates(attention.unflatten(-1, (heads, tokens, tokens)), *others)

    def masks(self, kept: list[Tensor]) -> Tensor:
        """Gates of subgraphs given by the numbers of their edges: float32, shape (subgraphs, flat)."""
        flat = torch.zeros(len(kept), self.n_places)
        for row, ids in zip(flat, kept, strict=True):
            row[ids] = 1
        return flat

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The source and the target vertex of each place of a flat vector, int64, shape (flat,) each."""
        source, target = (torch.zeros(1, self.n_places, dtype=torch.long) for _ in range(2))
        from_, to = self.gates(source), self.gates(target)
        below, step = torch.arange(self.n_tokens), self.n_tokens
        for layer in range(self.n_layers):
            middle, after = below + step, below + self.levels_per_layer * step
            from_.attention[0, layer], from_.residual_attention[0, layer] = below, below
            to.attention[0, layer], to.residual_attention[0, layer] = middle[:, None], middle
            from_.mlp[0, layer] = from_.residual_mlp[0, layer] = below if self.parallel else middle
            to.mlp[0, layer] = to.residual_mlp[0, layer] = below = after
        return source[0], target[0]

    @cached_property
    def _ids(self) -> EdgeGates:
        return self.gates(torch.arange(self.n_places)[None])

    def in_edges(self, vertex: int) -> InEdges:
        """The edges into a vertex; none into an embedding."""
        level, token = divmod(vertex, self.n_tokens)
        if level == 0:
            return InEdges(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
        layer, is_mlp = divmod(level - 1, self.levels_per_layer)
        below = self.vertex(level - 1, 0)
        direct = [self._ids.residual_mlp if is_mlp else self._ids.residual_attention]
        direct += [self._ids.mlp] if is_mlp or self.parallel else []
        ids = torch.stack([kind[0, layer, token] for kind in direct])
        sources = torch.full_like(ids, below + token)
        if is_mlp:
            return InEdges(ids, sources)
        read = self.allowed[layer, token].nonzero()[:, 0]
        attention = self._ids.attention[0, layer, :, token, read].T  # (sources, heads)
        from_tokens = (below + read).repeat_interleave(self.n_heads)
        return InEdges(torch.cat([attention.flatten(), ids]), torch.cat([from_tokens, sources]))
