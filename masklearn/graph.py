"""The node graph of a model: every attention head and every MLP, named and in forward order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from masklearn.errors import UserError

_NODE_NAME = re.compile(r"a(\d+)\.h(\d+)|m(\d+)")


@dataclass(frozen=True)
class Node:
    """One attention head, or one MLP (`head` is None)."""

    layer: int
    head: int | None = None

    @property
    def name(self) -> str:
        """`a<layer>.h<head>` or `m<layer>`, as in the EAP and MIB circuit tools."""
        return f"m{self.layer}" if self.head is None else f"a{self.layer}.h{self.head}"

    @classmethod
    def parse(cls, name: str) -> "Node":
        """The node of a name.

        Raises:
            UserError: If the name is not that of a node.
        """
        match = _NODE_NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{name!r} is not a node name; heads have names like a0.h3, MLPs like m0")
        layer, head, mlp = match.groups()
        return cls(int(mlp)) if mlp else cls(int(layer), int(head))


@dataclass(frozen=True)
class NodeGraph:
    """All nodes of a model: layer 0 heads, layer 0 MLP, layer 1 heads, and so on."""

    n_layers: int
    n_heads: int
    """Attention (query) heads in every layer."""

    @classmethod
    def of(cls, lm: Any) -> "NodeGraph":
        """The graph of a Hugging Face causal language model, from its config.

        Raises:
            UserError: If the config has no number of layers or of attention heads.
        """
        config = lm.config.get_text_config(decoder=True)
        try:
            return cls(config.num_hidden_layers, config.num_attention_heads)
        except AttributeError as error:
            raise UserError(
                f"model.lm: {type(lm).__name__} cannot be gated: its config has no {error.name}, expected layers of "
                "attention heads. Choose a decoder with attention heads and an MLP in every layer"
            ) from error

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "NodeGraph":
        """The graph whose nodes have these names in this order.

        Raises:
            UserError: If the names are not those of a complete graph in forward order.
        """
        nodes = [Node.parse(name) for name in names]
        n_layers = sum(node.head is None for node in nodes)
        n_heads = sum(node.layer == 0 for node in nodes) - 1
        graph = cls(n_layers, n_heads)
        if not n_layers or graph.names != tuple(names):
            raise UserError(f"{len(names)} node names are not those of a complete model in forward order")
        return graph

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes in forward order."""
        heads = (*range(self.n_heads), None)
        return tuple(Node(layer, head) for layer in range(self.n_layers) for head in heads)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all nodes in forward order."""
        return tuple(node.name for node in self.nodes)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.n_layers * (self.n_heads + 1)

    def by_layer(self, values: Tensor) -> Tensor:
        """Values of the nodes as a grid: (..., nodes) to (..., layers, heads + 1), with the MLP last."""
        return values.unflatten(-1, (self.n_layers, self.n_heads + 1))

    def count(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Open heads and open MLPs of masks of shape (..., nodes), each of shape (...)."""
        grid = self.by_layer(mask.long())
        return grid[..., :-1].sum((-2, -1)), grid[..., -1].sum(-1)
