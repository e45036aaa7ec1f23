"""The edge graph of one text: gates on single edges of an unmodified model, and s-Trace, which chooses edges."""

from masklearn.edges.controls import inverse, nucleus, random_connected, threshold
from masklearn.edges.edge_lm import EdgeLM
from masklearn.edges.frozen import FrozenText
from masklearn.edges.graph import EdgeGates, EdgeGraph
from masklearn.edges.importance import Importance, importance
from masklearn.edges.liveness import counts_by_part, live, nodes_used, shares_by_kind
from masklearn.edges.memory import MEMORY_SHARE, require_memory
from masklearn.edges.refill import refilled
from masklearn.edges.select import Choose, by_strace, edge_bank
from masklearn.edges.strace import grow
from masklearn.edges.streams import longest_prefix, with_expected_streams, with_streams
from masklearn.edges.verification import require_same_output, verified_edge_lm
from masklearn.shares import DEFAULT_SHARES
from masklearn.shares import resolve_shares as edge_shares
from masklearn.shares import share_counts as edge_counts
from masklearn.text_bank import EdgeBank, load_bank

__all__ = [
    "DEFAULT_SHARES",
    "MEMORY_SHARE",
    "Choose",
    "EdgeBank",
    "EdgeGates",
    "EdgeGraph",
    "EdgeLM",
    "FrozenText",
    "Importance",
    "by_strace",
    "counts_by_part",
    "edge_bank",
    "edge_counts",
    "edge_shares",
    "grow",
    "importance",
    "inverse",
    "live",
    "longest_prefix",
    "load_bank",
    "nodes_used",
    "nucleus",
    "random_connected",
    "refilled",
    "require_memory",
    "require_same_output",
    "shares_by_kind",
    "threshold",
    "verified_edge_lm",
    "with_expected_streams",
    "with_streams",
]
