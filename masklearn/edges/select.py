"""Choose the edges of every text, by s-Trace or by another method: texts in, bank out."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from masklearn.edges.edge_lm import EdgeLM
from masklearn.edges.importance import Importance, importance
from masklearn.edges.refill import refilled
from masklearn.edges.strace import grow
from masklearn.mask_file import ModelId
from masklearn.progress import ProgressBar, no_bar
from masklearn.shares import resolve_shares, share_counts
from masklearn.text_bank import EdgeBank

Choose = Callable[[Tensor, Importance], Sequence[Tensor]]
"""From a text's token ids and its importances to the numbers of the edges kept, size by size."""


def by_strace(shares: Sequence[float]) -> Choose:
    """The choice of s-Trace at some sizes, given as shares of the edges: live edges, as far as a size holds a path."""

    def choose(_: Tensor, found: Importance) -> Sequence[Tensor]:
        order = grow(found.graph, found.weights, found.graph.n_edges)
        return refilled(found.graph, order[:0], order, share_counts(shares, found.graph.n_edges))

    return choose


def edge_bank(
    edge_lm: EdgeLM,
    texts: Sequence[Tensor],
    names: Sequence[str],
    shares: Sequence[float] | str,
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
        shares: Sizes as shares of the edges, see `resolve_shares`.
        model: Which model it is.
        choose: Chooses the edges of a text; s-Trace by default.
        method: Name of that choice.
        positions: Which position is scored, see `data.Positions`.
        bar: Shows progress over the texts.

    Raises:
        UserError: If there is no text, or not one name for each; if a size is no share; or if `choose` gives subgraphs
            of other sizes.
    """
    choose = choose or by_strace(resolve_shares(shares))

    def of_text(input_ids: Tensor) -> tuple[int, Sequence[Tensor]]:
        input_ids = input_ids.to(edge_lm.device)
        found = importance(edge_lm, input_ids)
        return found.graph.n_edges, choose(input_ids, found)

    graph = edge_lm.layout.graph
    bank = EdgeBank.of_texts(texts, names, shares, graph, model, of_text, method, positions, bar)
    return replace(bank, parallel=edge_lm.sites.parallel)
