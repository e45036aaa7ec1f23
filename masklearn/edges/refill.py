"""Fill the places of a subgraph's dead edges, which lie on no path from the text to the output.

The next edges of s-Trace's growth take the places, each with the edges that it needs to lie on a path.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from masklearn.edges.graph import EdgeGraph
from masklearn.edges.liveness import live


def refilled(graph: EdgeGraph, kept: Tensor, order: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """The live edges of a subgraph, filled up to some sizes with the first edges of an order that are live beside them.

    The edges of the order come as if growth went on: an edge whose source nothing reaches waits until something does.
    Where the next path does not fit any more, edges between vertices that are on a path take the places left, and stay
    at the larger sizes. Where they do not suffice, that path takes the places of edges that no other one needs; and
    where these do not suffice either, as below the length of a path, the first edges of the order fill the size.

    Args:
        graph: The text's graph.
        kept: Numbers of the edges of a subgraph, as many as the first size at most; none for s-Trace's own.
        order: All edges in the order of growth, see `grow`.
        counts: The sizes in edges, ascending.

    Returns:
        Numbers of the edges kept, ascending, for every size.
    """
    is_kept = live(graph, [kept])[0]
    ids = is_kept.nonzero()[:, 0].tolist()
    taken, path, found = set(ids), list[int](), list[Tensor]()
    paths = _paths(graph, taken, order)
    for n in counts:
        n_smaller = len(ids)
        while len(ids) < n:
            path = path or next(paths, [])
            if not path or len(ids) + len(path) > n:
                break
            ids += path
            path = []
        is_kept[ids] = True
        fill = _beside(graph, is_kept, order)[: n - len(ids)].tolist()
        taken.update(fill)
        ids += fill
        exchanged = _cut_back(graph, ids + path, n_smaller, n) if 0 < len(ids) < n else []
        if len(exchanged) == n:
            ids, path = exchanged, []
        is_kept.fill_(False)[ids] = True
        dead = order[~is_kept[order]][: n - len(ids)]
        found.append(torch.cat([torch.tensor(ids, dtype=torch.long), dead]).sort().values)
    return found


def _cut_back(graph: EdgeGraph, ids: list[int], first: int, n: int) -> list[int]:
    """The live edges without the last ones, from index `first` on, that no other one needs, until n are left."""
    for edge in reversed(ids[first:]):
        if len(ids) == n:
            break
        rest = [other for other in ids if other != edge]
        if int(live(graph, [torch.tensor(rest)]).sum()) == len(rest):
            ids = rest
    return ids


def _beside(graph: EdgeGraph, is_kept: Tensor, order: Tensor) -> Tensor:
    """The edges, in an order, that are not kept and lead from a vertex of a live subgraph to another one."""
    source, target = graph.ends
    on_path = torch.zeros(graph.output + 1, dtype=torch.bool)
    on_path[source[is_kept]] = on_path[target[is_kept]] = True
    return order[on_path[source[order]] & on_path[target[order]] & ~is_kept[order]]


def _paths(graph: EdgeGraph, taken: set[int], order: Tensor) -> Iterator[list[int]]:
    """Yield the edges that become live as an order is kept, each with the way on to a live vertex.

    Args:
        graph: The text's graph.
        taken: Edges that are live already; those yielded are added.
        order: All edges, those into a vertex after the first one out of it.
    """
    sources, targets = (ends[order].tolist() for ends in graph.ends)
    onward, waiting = dict[int, tuple[int, int]](), defaultdict[int, list[tuple[int, int]]](list)
    """By vertex the first edge out of it with its target; and all of them, as long as nothing reaches the vertex."""
    reached = set(range(graph.n_tokens)) | {int(graph.ends[1][edge]) for edge in taken}
    for edge, source, target in zip(order.tolist(), sources, targets, strict=True):
        onward.setdefault(source, (edge, target))
        if source not in reached:
            waiting[source].append((edge, target))
            continue
        ready = [(edge, target)]
        while ready:
            path = list[int]()
            step = ready.pop(0)
            while step and step[0] not in taken:
                path.append(step[0])
                taken.add(step[0])
                end = step[1]
                is_new = end not in reached
                reached.add(end)
                ready += waiting.pop(end, []) if is_new else []
                step = onward.get(end) if is_new else None
            if path:
                yield path
