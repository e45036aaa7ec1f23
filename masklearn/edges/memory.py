"""How long a text's edge graph may be: its memory, compared with what is free."""

import psutil

from masklearn.edges.graph import EdgeGraph
from masklearn.errors import UserError
from masklearn.graph import NodeGraph

BYTES_PER_PLACE = 40
"""Of a flat vector: importances, gates of one row, weights before and after gating."""
BYTES_PER_EDGE = 200
"""Of an edge while a subgraph grows: sorted lists of numbers."""
MEMORY_SHARE = 0.6
"""Share of the free memory that a text's graph may take."""


def bytes_needed(graph: NodeGraph, n_tokens: int) -> int:
    """Memory that the edges of one text need at most."""
    length = graph.n_layers * n_tokens * (graph.n_heads * n_tokens + 3)
    return BYTES_PER_PLACE * length + BYTES_PER_EDGE * length // 2


def require_memory(graph: NodeGraph, n_tokens: int, free: int | None = None) -> None:
    """Refuse texts whose edge graph does not fit into memory.

    Args:
        graph: The model's layers and heads.
        n_tokens: Tokens of the longest text.
        free: Free bytes; those of this machine by default.

    Raises:
        UserError: Names the edges, the memory, and how long a text would do.
    """
    allowed = MEMORY_SHARE * (psutil.virtual_memory().available if free is None else free)
    if bytes_needed(graph, n_tokens) <= allowed:
        return
    fits = max((t for t in range(1, n_tokens) if bytes_needed(graph, t) <= allowed), default=1)
    edges = EdgeGraph.count(graph.n_layers, graph.n_heads, n_tokens)
    raise UserError(
        f"model.graph edges: a text of {n_tokens} tokens has {edges:,} edges, which need "
        f"{bytes_needed(graph, n_tokens) / 1e9:.1f} GB, and {allowed / 1e9:.1f} GB may be used. Texts of up to {fits} "
        f"tokens fit: --data.max_length {fits}"
    )
