"""The gates that a caller gives (tensor, array, list or node names) as a tensor with one gate for each node."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from masklearn.errors import UserError, nearest
from masklearn.graph import NodeGraph


def gate_values(graph: NodeGraph, gates: Any, without: Any = None) -> Tensor:
    """Return the gates as floating point numbers, shape (nodes,), (rows, nodes) or (rows, tokens, nodes).

    Args:
        graph: The nodes of the model.
        gates: A tensor, an array or nested lists of numbers; or the names of the nodes to keep, all others are closed;
            or None for all nodes.
        without: Names of nodes to close; the gates of the others are unchanged.

    Raises:
        UserError: If a name is not that of a node, or if the gates do not fit the graph.
    """
    if gates is None and without is None:
        raise UserError("no gates are given. Give one gate for each node, the names of nodes, or without=[names]")
    values = torch.ones(graph.n_nodes) if gates is None else _as_tensor(graph, gates)
    values = values if values.dtype == torch.float64 else values.float()
    if values.dim() not in (1, 2, 3) or values.shape[-1] != graph.n_nodes:
        raise UserError(f"gates of shape {tuple(values.shape)} do not fit a model of {graph.n_nodes} nodes")
    if without is None:
        return values
    return values * (1 - _indicator(graph, without)).to(values)


def _as_tensor(graph: NodeGraph, gates: Any) -> Tensor:
    if isinstance(gates, Tensor):
        return gates
    if hasattr(gates, "select") and hasattr(gates, "groups"):
        raise UserError("a bank holds several masks. Select one: gated(lm, bank.select(s=...))")
    if isinstance(gates, Mapping):
        raise UserError("gates by name are not read. Give one for each node, or the names of those to keep")
    gates = list(gates) if isinstance(gates, Iterator) else gates
    names = [gates] if isinstance(gates, str) else gates
    if isinstance(names, Iterable) and all(isinstance(name, str) for name in names):
        return _indicator(graph, names)
    try:
        return torch.as_tensor(gates)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"gates of type {type(gates).__name__} are not numbers. Give one for each of {graph.n_nodes} nodes, or "
            "the names of nodes"
        ) from error


def _indicator(graph: NodeGraph, names: Any) -> Tensor:
    """Return 1 for the named nodes and 0 for the others, shape (nodes,)."""
    index_of = {name: index for index, name in enumerate(graph.names)}
    values = torch.zeros(graph.n_nodes)
    for name in [names] if isinstance(names, str) else names:
        if name not in index_of:
            similar = nearest(str(name), graph.names) or graph.names[0]
            raise UserError(
                f"{name!r} is not a node of this model of {graph.n_layers} layers and {graph.n_heads} heads. "
                f"Did you mean {similar}?"
            )
        values[index_of[name]] = 1
    return values
