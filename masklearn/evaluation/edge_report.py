"""Measure edge subgraphs of single texts: metrics of every size and of controls, as the content of `metrics.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from masklearn.data import MaskData, SplitName
from masklearn.edges import (
    EdgeBank,
    EdgeGraph,
    EdgeLM,
    counts_by_part,
    edge_counts,
    grow,
    importance,
    inverse,
    nodes_used,
    random_connected,
    require_same_output,
)
from masklearn.errors import UserError
from masklearn.evaluation.bank_report import CONTROL_METRICS
from masklearn.evaluation.measure import Row, nan_to_none
from masklearn.evaluation.metrics import DistributionPair, SubgraphMetrics, TextMetrics
from masklearn.evaluation.per_text import PerTextResults
from masklearn.objective import log_probabilities
from masklearn.progress import ProgressBar, no_bar

PLACES_PER_FORWARD = 2**26
"""Gates of the subgraphs that share a forward: 256 MB in float32."""
N_TOP_TOKENS = 6
"""Tokens kept of every distribution."""
EDGE_CONTROLS = ("random", "inverse")
"""Kinds of subgraphs that every edge bank is compared with: random connected ones, and all other edges."""
STRACE_KIND = "s-trace"
"""Subgraphs of s-Trace, also those that banks of another method are compared with."""
EDGE_PARTS = ("attention", "MLPs", "residual")
"""Kinds of edges, in the order in which they are counted."""
PART_COUNTS, WHOLE_PART_COUNTS = "part_counts", "whole_part_counts"
"""Results of each text: edges by layer and by `EDGE_PARTS`, of subgraphs (sizes, texts, layers, 3) and of the whole
graph (texts, layers, 3)."""


class ScoredText(NamedTuple):
    """One text up to its scored token."""

    input_ids: Tensor
    """Shape (tokens,)."""
    next_token: int
    """The token that follows, or -1 where the text ends."""


def scored_text(data: MaskData, split: SplitName, index: int) -> ScoredText:
    """Cut a text of a split after its only scored token.

    Raises:
        UserError: If several tokens are scored.
    """
    batch = data.collate([data.parts[split][index]])
    positions = batch.scored[0].nonzero()[:, 0].tolist()
    if len(positions) != 1:
        raise UserError(
            f"data.positions {data.positions} scores {len(positions)} tokens of a text, but an edge graph ends at one. "
            "Choose --data.positions last, random or each"
        )
    ids, end = batch.input_ids[0], positions[0] + 1
    return ScoredText(ids[:end], int(ids[end]) if end < len(ids) else -1)


@dataclass
class EdgeMeasurer:
    """Measures subgraphs of the texts of one bank, kind by kind."""

    edge_lm: EdgeLM
    n_sizes: int
    n_texts: int
    counts: dict[int, int]
    """How often each token occurs in the corpus."""
    kinds: Sequence[str]
    """Kinds of subgraphs, the bank's own first."""
    meters: dict[str, tuple[SubgraphMetrics, TextMetrics]] = field(default_factory=dict)
    nodes: dict[str, list[Tensor]] = field(default_factory=dict)
    """Nodes used, by kind: (sizes, nodes) for every text."""
    part_counts: dict[str, list[Tensor]] = field(default_factory=dict)
    """Edges by layer and by `EDGE_PARTS`, by kind: (sizes, layers, 3) for every text."""
    whole_part_counts: list[Tensor] = field(default_factory=list)
    """Those of the whole graph: (layers, 3) for every text."""
    top: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """The most probable next tokens and their probabilities, by kind: (sizes + 1, tokens), the full model's last."""

    def __post_init__(self) -> None:
        device = self.edge_lm.device
        for kind in self.kinds:
            by_text = TextMetrics(self.n_sizes, self.n_texts, self.counts).to(device)
            self.meters[kind] = SubgraphMetrics(self.n_sizes, self.n_texts).to(device), by_text
            self.nodes[kind], self.part_counts[kind], self.top[kind] = [], [], []

    def add(
        self,
        index: int,
        text: ScoredText,
        full_hidden: Tensor,
        graph: EdgeGraph,
        kept_of: Mapping[str, Sequence[Tensor]],
    ) -> None:
        """Measure the subgraphs of one text: for every kind the edges of each size."""
        unembed, device = self.edge_lm.layout.unembed, self.edge_lm.device
        input_ids = text.input_ids.to(device)
        full = log_probabilities(full_hidden[None], unembed)
        label, where = torch.tensor([text.next_token], device=device), torch.tensor([index], device=device)
        self.whole_part_counts.append(counts_by_part(graph, [graph.exists.nonzero()[:, 0]])[0])
        for kind, kept in kept_of.items():
            hidden = subgraphs_hidden(self.edge_lm, input_ids, graph, kept)
            pair = DistributionPair(full, log_probabilities(hidden, unembed)[:, None])
            meter, by_text = self.meters[kind]
            meter.update(pair, label, where)
            by_text.update(pair, label, where, input_ids[-1:])
            self.nodes[kind].append(nodes_used(graph, kept))
            self.part_counts[kind].append(counts_by_part(graph, kept))
            top = torch.cat([pair.masked[:, 0], full]).exp().topk(N_TOP_TOKENS)
            self.top[kind].append((top.indices.cpu(), top.values.cpu()))

    def rows(self, shares: Sequence[float], n_edges: Sequence[int]) -> list[Row]:
        """One row for each size: means over the texts."""
        edges = torch.tensor([edge_counts(shares, n) for n in n_edges]).double().mean(0).tolist()
        measured = {kind: self._columns(kind) for kind in self.kinds}
        rows: list[Row] = []
        for i, share in enumerate(shares):
            controls = {
                kind: {name: columns[name][i] for name in CONTROL_METRICS}
                for kind, columns in measured.items()
                if kind != self.kinds[0]
            }
            own = {name: values[i] for name, values in measured[self.kinds[0]].items()}
            rows.append({"s": share, "fraction": share, "edges": edges[i], **own, "controls": controls})
        return rows

    def _columns(self, kind: str) -> dict[str, list[float | None]]:
        found = self.meters[kind][0].compute()
        columns = {
            name: [nan_to_none(value) for value in values.reshape(-1).tolist()]
            for name, values in found.items()
            if not name.endswith("_by_group")
        }
        counts = torch.stack(self.part_counts[kind]).sum(-2).double()  # (texts, sizes, 3)
        shares = (counts / counts.sum(-1, keepdim=True)).mean(0).T
        for name, values in zip(("attention", "mlp", "residual"), shares, strict=True):
            columns[f"{name}_share"] = values.tolist()
        grid = self.edge_lm.layout.graph.by_layer(torch.stack(self.nodes[kind]).float()).mean(0)
        columns["heads"] = grid[..., :-1].sum((-2, -1)).tolist()
        columns["mlps"] = grid[..., -1].sum(-1).tolist()
        return columns

    def results(self) -> dict[str, PerTextResults]:
        """The results of each text by kind, as a study takes them; their masks are those of the nodes used."""
        shape = (1, self.n_sizes, self.n_texts)
        found = {}
        for kind, (_, by_text) in self.meters.items():
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("kl", "tv", "unigram_kl"), shape)
            shapes["recovered"] = (*shape, -1)
            texts = {
                name: value.view(shapes.get(name, (self.n_texts,))).cpu() for name, value in by_text.compute().items()
            }
            texts[PART_COUNTS] = torch.stack(self.part_counts[kind], dim=1)[None].double()
            texts[WHOLE_PART_COUNTS] = torch.stack(self.whole_part_counts).double()
            found[kind] = PerTextResults(torch.stack(self.nodes[kind], dim=1)[None], texts)
        return found


def evaluate_edges(
    edge_lm: EdgeLM,
    bank: EdgeBank,
    data: MaskData,
    split: SplitName,
    keep_residual: bool = False,
    bar: ProgressBar = no_bar,
) -> tuple[EdgeMeasurer, list[Row]]:
    """Evaluate an edge bank: every text under its own subgraphs and under controls of the same sizes.

    Args:
        edge_lm: The model.
        bank: The bank.
        data: The texts, set up.
        split: The split that holds the bank's texts.
        keep_residual: Whether the controls keep all residual edges, as the paper's do.
        bar: Shows progress over the texts.

    Returns:
        What was measured, and one row for each size.

    Raises:
        UserError: If the bank does not fit the texts, or is damaged.
    """
    kinds = [bank.method, *EDGE_CONTROLS] + [STRACE_KIND] * (bank.method != STRACE_KIND)
    measurer = EdgeMeasurer(edge_lm, len(bank.shares), len(bank.groups), data.token_counts, kinds)
    for index in bar(range(len(bank.groups)), "Evaluation"):
        text = scored_text(data, split, index)
        found = importance(edge_lm, text.input_ids.to(edge_lm.device))
        full = edge_lm.full(text.input_ids.to(edge_lm.device))
        require_same_output(edge_lm, found.hidden, full)
        graph, kept = found.graph, bank.kept[index]
        bank.require_edges(index, graph)
        counts = edge_counts(bank.shares, graph.n_edges)
        kept_of = {
            bank.method: kept,
            "random": [random_connected(graph, n, index, keep_residual) for n in counts],
            "inverse": [inverse(graph, ids, keep_residual) for ids in kept],
        }
        if bank.method != STRACE_KIND:
            order = grow(graph, found.weights, counts[-1])
            kept_of[STRACE_KIND] = [order[:n] for n in counts]
        measurer.add(index, text, full, graph, kept_of)
    return measurer, measurer.rows(bank.shares, bank.n_edges)


def describe_edges(bank: EdgeBank, rows: list[Row], measurer: EdgeMeasurer, data: dict[str, Any]) -> dict[str, Any]:
    """The content of `metrics.json` for an edge bank.

    Args:
        bank: The bank.
        rows: One row for each size.
        measurer: What was measured of each text.
        data: Settings of the texts.
    """
    own = measurer.results()[bank.method].texts
    kl, tv = (own[name][0].T.tolist() for name in ("kl", "tv"))
    return {
        "graph": "edges",
        "method": bank.method,
        "model": vars(bank.model) | {"n_layers": bank.graph.n_layers, "n_heads": bank.graph.n_heads},
        "data": data,
        "sizes": rows,
        "groups": {
            name: {"tokens": tokens, "edges": edges, "kl": kl[i], "tv": tv[i]}
            for i, (name, tokens, edges) in enumerate(zip(bank.groups, bank.n_tokens, bank.n_edges, strict=True))
        },
    }


@torch.no_grad()
def subgraphs_hidden(edge_lm: EdgeLM, input_ids: Tensor, graph: EdgeGraph, kept: Sequence[Tensor]) -> Tensor:
    """Last hidden states of subgraphs, as many at once as memory allows: shape (subgraphs, width)."""
    rows = max(1, PLACES_PER_FORWARD // graph.n_places)
    parts = [kept[i : i + rows] for i in range(0, len(kept), rows)]
    return torch.cat(
        [edge_lm.hidden(input_ids, graph.gates(graph.masks(list(part)).to(input_ids.device))) for part in parts]
    )
