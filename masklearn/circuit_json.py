"""Circuits in the formats of other tools, as plain Python objects: EAP-IG and MIB graphs, Edge-Pruning edges.

EAP-IG's files are JSON with `cfg`, `nodes` and `edges` (hannamw/EAP-IG, `Graph.to_json`). MIB reads the same files.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masklearn.errors import UserError, one_line
from masklearn.graph import Node, NodeGraph
from masklearn.sizes import resolve_sizes

INPUT, LOGITS = "input", "logits"
"""The first and the last node of their graphs, which masks leave alone."""


def edges(graph: NodeGraph, mask: Tensor, parallel: bool) -> Iterator[tuple[str, Node | None]]:
    """The edges between open nodes: every one from an earlier to a later node.

    Args:
        graph: The model's nodes.
        mask: Open nodes, boolean of shape (nodes,).
        parallel: Whether attention and MLP of a layer read the same stream.

    Yields:
        The name of the source, and the node that reads it; None for the logits.
    """
    sources = [INPUT]
    is_open = dict(zip(graph.nodes, mask.tolist(), strict=True))
    for layer in range(graph.n_layers):
        heads = [Node(layer, head) for head in range(graph.n_heads) if is_open[Node(layer, head)]]
        mlp = [Node(layer)] if is_open[Node(layer)] else []
        for head in heads:
            yield from ((source, head) for source in sources)
        before_mlp = sources if parallel else sources + [head.name for head in heads]
        for node in mlp:
            yield from ((source, node) for source in before_mlp)
        sources = sources + [node.name for node in (*heads, *mlp)]
    yield from ((source, None) for source in sources)


def eap_circuit(graph: NodeGraph, mask: Tensor, scores: Tensor, width: int, parallel: bool) -> dict[str, Any]:
    """One mask as an EAP-IG graph: its open nodes, and the edges between them.

    Args:
        graph: The model's nodes.
        mask: Boolean, shape (nodes,).
        scores: Shape (nodes,).
        width: Width of the residual stream, which their config has.
        parallel: Whether attention and MLP of a layer read the same stream.
    """
    content = _eap_nodes(graph, mask, scores, width, parallel)
    for source, node in edges(graph, mask, parallel):
        ends = [LOGITS] if node is None else [node.name]
        if node is not None and node.head is not None:
            ends = [f"{node.name}<{read}>" for read in "qkv"]
        for end in ends:
            content["edges"][f"{source}->{end}"] = {"score": 1.0, "in_graph": True}
    return content


def eap_importances(
    graph: NodeGraph, scores: Tensor, width: int, parallel: bool, input_score: float | None = None
) -> dict[str, Any]:
    """Scores of all nodes as an EAP-IG graph without edges, which MIB cuts at its own sizes.

    Args:
        graph: The model's nodes.
        scores: Importances, shape (nodes,); MIB also ranks them by magnitude, so none should be negative.
        width: Width of the residual stream.
        parallel: Whether attention and MLP of a layer read the same stream.
        input_score: Importance of the embedding; without one it is in every circuit and does not count.
    """
    content = _eap_nodes(graph, torch.ones(graph.n_nodes, dtype=torch.bool), scores, width, parallel)
    if input_score is not None:
        content["nodes"][INPUT]["score"] = input_score
    return content


def _eap_nodes(graph: NodeGraph, mask: Tensor, scores: Tensor, width: int, parallel: bool) -> dict[str, Any]:
    config = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": parallel, "d_model": width}
    nodes: dict[str, Any] = {INPUT: {"in_graph": True}}
    for name, is_open, score in zip(graph.names, mask.tolist(), scores.tolist(), strict=True):
        nodes[name] = {"in_graph": is_open, "score": score}
    return {"cfg": config, "nodes": nodes | {LOGITS: {"in_graph": True}}, "edges": {}}


def edge_pruning_edges(graph: NodeGraph, mask: Tensor, parallel: bool, positions: bool) -> list[list[str]]:
    """The edges between open nodes in the names of Edge-Pruning.

    Args:
        graph: The model's nodes.
        mask: Boolean, shape (nodes,).
        parallel: Whether attention and MLP of a layer read the same stream.
        positions: Whether the model adds learned positions to its tokens, which are then a source of their own.
    """
    found = []
    for source, node in edges(graph, mask, parallel):
        sources = [source] if source != INPUT else ["tok_embeds", "pos_embeds"] if positions else ["tok_embeds"]
        ends = ["resid_post"] if node is None else [node.name]
        if node is not None and node.head is not None:
            ends = [f"{node.name}.{read}" for read in "qkv"]
        found += [[start, end] for end in ends for start in sources]
    return found


def read_eap(path: str | Path, sizes: Sequence[int | float] | None) -> tuple[NodeGraph, Tensor, Tensor]:
    """Read the nodes of an EAP-IG or MIB file.

    Args:
        path: The JSON file.
        sizes: Cut the scores to so many nodes, the highest first; None for the circuit as it is.

    Returns:
        The node graph; a mask for each size, ascending, boolean of shape (sizes, nodes); and the scores of the nodes,
        shape (nodes,): 1 and 0 by membership if the file has none.

    Raises:
        UserError: If it is not such a file, a score is not finite, a size out of range, or the circuit empty.
    """
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        graph = NodeGraph(int(content["cfg"]["n_layers"]), int(content["cfg"]["n_heads"]))
        nodes = [content["nodes"][name] for name in graph.names]
        circuit = torch.tensor([bool(node["in_graph"]) for node in nodes])
        scores = torch.tensor([float(node.get("score", node["in_graph"])) for node in nodes])
    except KeyError as error:
        raise UserError(f"{path} is not a graph of EAP-IG or MIB: it has no {error.args[0]!r}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path} as a graph of EAP-IG or MIB: {one_line(error)}") from error
    if not scores.isfinite().all():
        name, score = next((n, s) for n, s in zip(graph.names, scores.tolist(), strict=True) if not math.isfinite(s))
        raise UserError(f"{path}: the score of {name} is {score}, expected a finite number")
    if sizes is None and not circuit.any():
        raise UserError(f"{path}: no node is in this circuit. Give sizes, to cut its scores")
    if sizes is None:
        return graph, circuit[None], scores
    order = scores.argsort(descending=True, stable=True)
    counts = torch.tensor(resolve_sizes(sizes, graph.n_nodes))
    return graph, order.argsort() < counts[:, None], scores
