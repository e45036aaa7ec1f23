"""Choose the edges of every text, by s-Trace or by another method: texts in, bank out."""

from collections.abc import Callable, Sequence

from torch import Tensor

from masklearn.edges.bank import EdgeBank
from masklearn.edges.edge_lm import EdgeLM
from masklearn.edges.importance import Importance, importance
from masklearn.edges.sizes import edge_counts
from masklearn.edges.strace import grow
from masklearn.mask_file import ModelId
from masklearn.progress import ProgressBar, no_bar

Choose = Callable[[Tensor, Importance], Sequence[Tensor]]
"""From a text's token ids and its importances to the numbers of the edges kept, size by size."""


def by_strace(shares: Sequence[float]) -> Choose:
    """The choice of s-Trace at some sizes, given as shares of the edges."""

    def choose(_: Tensor, found: Importance) -> Sequence[Tensor]:
        counts = edge_counts(shares, found.graph.n_edges)
        order = grow(found.graph, found.weights, counts[-1])
        return [order[:n].sort().values for n in counts]

    return choose


def edge_bank(
    edge_lm: EdgeLM,
    texts: Sequence[Tensor],
    names: Sequence[str],
    shares: Sequence[float],
    model: ModelId,
    choose: Choose | None = None,
    method: str = "s-trace",
    positions: str = "last",
    bar: ProgressBar = no_bar,
) -> EdgeBank:
    """Choose the subgraphs of every text.

    Args:
        edge_lm: The model.
        texts: Token ids of every text up to the token whose prediction counts, shape (tokens,) each.
        names: Names of the texts.
        shares: Sizes as shares of the edges, ascending.
        model: Which model it is.
        choose: Chooses the edges of a text; s-Trace by default.
        method: Name of that choice.
        positions: Which position is scored, see `data.Positions`.
        bar: Shows progress over the texts.
    """
    choose = choose or by_strace(shares)
    kept: list[tuple[Tensor, ...]] = []
    n_edges: list[int] = []
    for index in bar(range(len(texts)), f"Edges ({method})"):
        input_ids = texts[index].to(edge_lm.device)
        found = importance(edge_lm, input_ids)
        kept.append(tuple(choose(input_ids, found)))
        n_edges.append(found.graph.n_edges)
    return EdgeBank(
        tuple(kept), tuple(shares), tuple(map(len, texts)), tuple(n_edges), edge_lm.layout.graph, model, tuple(names),
        method, positions,
    )  # fmt: skip
