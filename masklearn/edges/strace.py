"""s-Trace: grow a subgraph backward from the output, always by the most important edge into what is reached.

Source: Kervadec et al. 2026 (arXiv 2605.27033). One pass gives the subgraphs of all sizes, each inside the next.
"""

import heapq

import numpy as np
import torch
from torch import Tensor

from masklearn.edges.graph import EdgeGraph


def grow(graph: EdgeGraph, weights: Tensor, n_edges: int) -> Tensor:
    """Keep edge after edge; the edges into a source become candidates when the source is first reached.

    Of equal weights, the edge that became a candidate first is kept first; among those into one vertex, the earlier
    source, then the lower head.

    Args:
        graph: The text's graph.
        weights: Importance of the edges, shape (flat,).
        n_edges: How many edges to keep.

    Returns:
        Numbers of the edges in the order in which they are kept, int64, shape (n_edges,). Every prefix is a connected
        subgraph that holds the output.
    """
    values = weights.numpy()
    # A vertex has its edges sorted, and only the best of them is in the heap: (minus weight, when reached, rank, ...)
    heap: list[tuple[float, int, int, list[float], list[int], list[int]]] = []
    reached: set[int] = set()

    def reach(vertex: int) -> None:
        reached.add(vertex)
        ids, sources = (column.numpy() for column in graph.in_edges(vertex))
        if len(ids):
            order = np.argsort(-values[ids], kind="stable")
            by_weight = (-values[ids[order]]).tolist()
            heapq.heappush(
                heap, (by_weight[0], len(reached), 0, by_weight, ids[order].tolist(), sources[order].tolist())
            )

    reach(graph.output)
    kept: list[int] = []
    while heap and len(kept) < n_edges:
        _, when, rank, by_weight, ids, sources = heap[0]
        kept.append(ids[rank])
        if rank + 1 < len(ids):
            heapq.heapreplace(heap, (by_weight[rank + 1], when, rank + 1, by_weight, ids, sources))
        else:
            heapq.heappop(heap)
        if sources[rank] not in reached:
            reach(sources[rank])
    return torch.tensor(kept)
