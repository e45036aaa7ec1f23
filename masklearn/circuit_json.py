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
        scores: Shape (nodes,). They are written from 0 up, since EAP-IG and MIB rank nodes by magnitude.
        width: Width of the residual stream, which their config has.
        parallel: Whether attention and MLP of a layer read the same stream.
    """
    content = _eap_nodes(graph, mask, scores - scores.min(), width, parallel)
    content["edges"] = {name: {"score": 1.0, "in_graph": True} for name in _eap_edges(graph, mask, parallel)}
    return content


def _eap_edges(graph: NodeGraph, mask: Tensor, parallel: bool) -> Iterator[str]:
    """The edges between open nodes in the names of EAP-IG."""
    for source, node in edges(graph, mask, parallel):
        ends = [LOGITS] if node is None else [node.name]
        if node is not None and node.head is not None:
            ends = [f"{node.name}<{read}>" for read in "qkv"]
        yield from (f"{source}->{end}" for end in ends)


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


def edge_pruning_edges(
    graph: NodeGraph, mask: Tensor, parallel: bool, positions: bool, n_kv_heads: int
) -> list[list[str]]:
    """The edges between open nodes in the names of Edge-Pruning (princeton-nlp/Edge-Pruning, `src/modeling`).

    Args:
        graph: The model's nodes.
        mask: Boolean, shape (nodes,).
        parallel: Whether attention and MLP of a layer read the same stream.
        positions: Whether the model adds learned positions to its tokens, which are then a source of their own.
        n_kv_heads: Key-value heads of a layer, by which keys and values are numbered.
    """
    found = dict[tuple[str, str], None]()  # in order; heads that share keys and values read by the same edges
    for source, node in edges(graph, mask, parallel):
        sources = [source] if source != INPUT else ["tok_embeds", "pos_embeds"] if positions else ["embeds"]
        ends = ["resid_post"] if node is None else [node.name]
        if node is not None and node.head is not None:
            shared = Node(node.layer, node.head * n_kv_heads // graph.n_heads).name
            ends = [f"{node.name}.q", f"{shared}.k", f"{shared}.v"]
        found |= dict.fromkeys((start, end) for end in ends for start in sources)
    return [[start, end] for start, end in found]


def read_eap(path: str | Path, sizes: Sequence[int | float] | None) -> tuple[NodeGraph, Tensor, Tensor]:
    """Read the nodes of an EAP-IG or MIB file.

    Args:
        path: The JSON file.
        sizes: Cut the scores to so many nodes, the highest first, with their sign; None for the circuit as it is.

    Returns:
        The node graph; a mask for each size, ascending, boolean of shape (sizes, nodes); and the scores of the nodes,
        shape (nodes,): 1 and 0 by membership if the file has none.

    Raises:
        UserError: If it is not such a file, nodes to cut have no scores, a score is not finite, a size is out of range,
            or the circuit is empty or lacks edges between its nodes.
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
    if sizes is None:
        _require_nodes_alone(path, graph, circuit, content)
        return graph, circuit[None], scores
    if unscored := [name for name, node in zip(graph.names, nodes, strict=True) if "score" not in node]:
        raise UserError(f"{path}: {unscored[0]} has no score to cut by. Its scores may be those of edges")
    order = scores.argsort(descending=True, stable=True)
    counts = torch.tensor(resolve_sizes(sizes, graph.n_nodes))
    return graph, order.argsort() < counts[:, None], scores


def _require_nodes_alone(path: Path, graph: NodeGraph, circuit: Tensor, content: dict[str, Any]) -> None:
    """Refuse a circuit without nodes, and one that leaves out edges between its nodes, all of which a mask keeps."""
    if not circuit.any():
        raise UserError(f"{path}: no node is in this circuit. Give sizes, to cut its scores")
    known, parallel = content.get("edges"), bool(content["cfg"].get("parallel_attn_mlp"))
    closed = (
        [name for name in _eap_edges(graph, circuit, parallel) if not known.get(name, {}).get("in_graph")]
        if known
        else []
    )
    if closed:
        raise UserError(
            f"{path} is a circuit of edges: it leaves out {len(closed)} of those between its nodes, such as "
            f"{closed[0]}, and a mask of nodes keeps them all. For a mask of its nodes: masklearn.circuit(lm, [names])"
        )
