"""Choose the edges of every text with s-Trace: texts in, bank out."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from masklearn.edges.bank import EdgeBank
from masklearn.edges.edge_lm import EdgeLM
from masklearn.edges.importance import importance
from masklearn.edges.sizes import edge_counts
from masklearn.edges.strace import grow
from masklearn.mask_file import ModelId

ProgressBar = Callable[[Iterable[int]], Iterable[int]]
"""Shows progress over texts."""


def strace_bank(
    edge_lm: EdgeLM,
    texts: Sequence[Tensor],
    names: Sequence[str],
    shares: Sequence[float],
    model: ModelId,
    positions: str = "last",
    bar: ProgressBar = iter,
) -> EdgeBank:
    """Grow the subgraphs of every text by s-Trace.

    Args:
        edge_lm: The model.
        texts: Token ids of every text up to the token whose prediction counts, shape (tokens,) each.
        names: Names of the texts.
        shares: Sizes as shares of the edges, ascending.
        model: Which model it is.
        positions: Which position is scored, see `data.Positions`.
        bar: Shows progress over the texts.
    """
    kept: list[tuple[Tensor, ...]] = []
    n_edges: list[int] = []
    for index in bar(range(len(texts))):
        found = importance(edge_lm, texts[index].to(edge_lm.device))
        counts = edge_counts(shares, found.graph.n_edges)
        order = grow(found.graph, found.weights, counts[-1])
        kept.append(tuple(order[:n].sort().values for n in counts))
        n_edges.append(found.graph.n_edges)
    return EdgeBank(
        tuple(kept), tuple(shares), tuple(map(len, texts)), tuple(n_edges), edge_lm.layout.graph, model, tuple(names),
        "s-trace", positions,
    )  # fmt: skip
