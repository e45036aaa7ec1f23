"""The positions of one text: which there are, and where each stands in a flat vector of gates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masklearn.graph import NodeGraph


@dataclass(frozen=True)
class PositionGraph:
    """The positions of one text, (node, token) pairs, without those that cannot reach the scored token's output.

    Positions are numbered by their place in a flat vector that has places for all pairs: token by token, each with the
    nodes in forward order.
    """

    nodes: NodeGraph
    """The model's heads and MLPs."""
    exists: Tensor
    """Whether each pair can reach the output. Boolean, shape (flat,)."""

    @staticmethod
    def count(nodes: NodeGraph, n_tokens: int) -> int:
        """Positions in a model whose attention reads every earlier token: in the last layer, those of one token."""
        return n_tokens * nodes.n_nodes - (n_tokens - 1) * (nodes.n_heads + 1)

    @property
    def n_places(self) -> int:
        """Length of a flat vector: the positions, and the places of pairs that cannot reach the output."""
        return len(self.exists)

    @property
    def n_tokens(self) -> int:
        """Tokens of the text."""
        return self.n_places // self.nodes.n_nodes

    @property
    def n_positions(self) -> int:
        """Number of positions."""
        return int(self.exists.sum())

    def gates(self, flat: Tensor) -> Tensor:
        """Flat vectors (rows, flat) as gates of every token: (rows, tokens, nodes), without a copy."""
        return flat.unflatten(-1, (self.n_tokens, self.nodes.n_nodes))

    def masks(self, kept: Sequence[Tensor]) -> Tensor:
        """Gates of subgraphs given by the numbers of their positions: float32, shape (subgraphs, flat)."""
        flat = torch.zeros(len(kept), self.n_places)
        for row, ids in zip(flat, kept, strict=True):
            row[ids] = 1
        return flat

    def inverse(self, kept: Tensor) -> Tensor:
        """Numbers of the positions that a subgraph leaves out."""
        mask = self.exists.clone()
        mask[kept] = False
        return mask.nonzero()[:, 0]

    def nodes_used(self, kept: Sequence[Tensor]) -> Tensor:
        """The nodes that subgraphs keep at some token. Boolean, shape (subgraphs, nodes)."""
        return self.gates(self.masks(kept)).bool().any(1)

    def counts_by_part(self, kept: Sequence[Tensor]) -> Tensor:
        """Count the positions of heads and of MLPs by layer: int64, shape (subgraphs, layers, 2)."""
        grid = self.nodes.by_layer(self.gates(self.masks(kept)).sum(1))
        return torch.stack([grid[..., :-1].sum(-1), grid[..., -1]], dim=-1).long()
