"""Measure subgraphs of single texts: metrics of every size and of controls, as the content of `metrics.json`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from masklearn import ranks
from masklearn.data import MaskData, SplitName
from masklearn.edges import EdgeGraph
from masklearn.errors import UserError
from masklearn.evaluation.bank_report import CONTROL_METRICS
from masklearn.evaluation.measure import Row, nan_to_none, sum_over_ranks
from masklearn.evaluation.measured_bank import MeasuredBank
from masklearn.evaluation.metrics import BY_SUBGRAPH, DistributionPair, SubgraphMetrics, TextMetrics
from masklearn.evaluation.per_text import PerTextResults
from masklearn.models import Layout, input_device
from masklearn.objective import log_probabilities
from masklearn.positions import PositionGraph
from masklearn.shares import share_counts
from masklearn.text_bank import TextBank

N_TOP_TOKENS = 6
"""Tokens kept of every distribution."""
STRACE_KIND = "s-trace"
"""Subgraphs of s-Trace, also those that edge banks of another method are compared with."""
RANDOM_TEXT_KIND = "random"
"""Random subgraphs of single texts."""
N_RANDOM_SUBGRAPHS = 4
"""Independent random subgraphs of every text and size; results are means over them."""
PART_COUNTS, WHOLE_PART_COUNTS = "part_counts", "whole_part_counts"
"""Results of each text: units by layer and by the parts of its bank, of subgraphs (sizes, texts, layers, parts) and of
the whole graph (texts, layers, parts)."""

Graph = TypeVar("Graph", EdgeGraph, PositionGraph)
"""The graph of a text: its edges, or its positions."""


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
            f"data.positions {data.positions} scores {len(positions)} tokens of a text, but its graph ends at one. "
            "Choose --data.positions last, random or each"
        )
    ids, end = batch.input_ids[0], positions[0] + 1
    return ScoredText(ids[:end], int(ids[end]) if end < len(ids) else -1)


def n_draws(kind: str) -> int:
    """Independent subgraphs of a kind for every text and size."""
    return N_RANDOM_SUBGRAPHS if kind == RANDOM_TEXT_KIND else 1


def random_seeds(text: int, n_sizes: int) -> Iterator[tuple[int, int]]:
    """Yield the size, by its index, and the seed of every random subgraph of a text, draw by draw; no two are alike."""
    for i in range(N_RANDOM_SUBGRAPHS * n_sizes):
        yield i % n_sizes, text * N_RANDOM_SUBGRAPHS * n_sizes + i


@dataclass
class TextMeasurer(ABC, Generic[Graph]):
    """Measures subgraphs of the texts of one bank, kind by kind."""

    share_names: ClassVar[tuple[str, ...]]
    """The parts of the bank as in the names of metrics."""

    layout: Layout
    n_sizes: int
    n_texts: int
    counts: dict[int, int]
    """How often each token occurs in the corpus."""
    kinds: Sequence[str]
    """Kinds of subgraphs, the bank's own first."""
    meters: dict[str, tuple[SubgraphMetrics, TextMetrics]] = field(default_factory=dict)
    nodes: dict[str, list[Tensor]] = field(default_factory=dict)
    """Nodes used, by kind: (draws x sizes, nodes) for every text."""
    part_counts: dict[str, list[Tensor]] = field(default_factory=dict)
    """Units by layer and part, by kind: (draws x sizes, layers, parts) for every text."""
    whole_part_counts: list[Tensor] = field(default_factory=list)
    """Those of the whole graph: (layers, parts) for every text."""
    top: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """The most probable next tokens and their probabilities, by kind: (sizes + 1, tokens), the full model's last."""

    def __post_init__(self) -> None:
        device = input_device(self.layout.lm)
        for kind in self.kinds:
            n_subgraphs = n_draws(kind) * self.n_sizes
            by_text = TextMetrics(n_subgraphs, self.n_texts, self.counts, sync_on_compute=False).to(device)
            self.meters[kind] = SubgraphMetrics(n_subgraphs, self.n_texts, sync_on_compute=False).to(device), by_text
            self.nodes[kind], self.part_counts[kind], self.top[kind] = [], [], []

    @property
    def n_subgraphs(self) -> int:
        """Subgraphs of every text."""
        return self.n_sizes * sum(map(n_draws, self.kinds))

    @abstractmethod
    def nodes_used(self, graph: Graph, kept: Sequence[Tensor]) -> Tensor:
        """The nodes that subgraphs make use of. Boolean, shape (subgraphs, nodes)."""

    @abstractmethod
    def counts_by_part(self, graph: Graph, kept: Sequence[Tensor]) -> Tensor:
        """The units of subgraphs by layer and part: int64, shape (subgraphs, layers, parts)."""

    def add(
        self,
        index: int,
        text: ScoredText,
        full_hidden: Tensor,
        graph: Graph,
        kept_of: Mapping[str, Sequence[Tensor]],
        hidden_of: Callable[[Sequence[Tensor]], Tensor],
    ) -> None:
        """Measure the subgraphs of one text.

        Args:
            index: Number of the text.
            text: The text.
            full_hidden: Last hidden state of the full model, shape (width,).
            graph: The text's graph.
            kept_of: For every kind the numbers of the units of each size; of random ones draw by draw.
            hidden_of: From subgraphs to their last hidden states, shape (subgraphs, width).
        """
        unembed, device = self.layout.unembed, full_hidden.device
        full = log_probabilities(full_hidden[None], unembed)
        label, where = torch.tensor([text.next_token], device=device), torch.tensor([index], device=device)
        self.whole_part_counts.append(self.counts_by_part(graph, [graph.exists.nonzero()[:, 0]])[0])
        for kind, kept in kept_of.items():
            pair = DistributionPair(full, log_probabilities(hidden_of(kept), unembed)[:, None])
            meter, by_text = self.meters[kind]
            meter.update(pair, label, where)
            by_text.update(pair, label, where, text.input_ids[-1:].to(device))
            self.nodes[kind].append(self.nodes_used(graph, kept))
            self.part_counts[kind].append(self.counts_by_part(graph, kept))
            top = torch.cat([pair.masked[: self.n_sizes, 0], full]).exp().topk(N_TOP_TOKENS)
            self.top[kind].append((top.indices.cpu(), top.values.cpu()))

    def gather(self) -> None:
        """Take over what other ranks have measured of their share of the texts; every rank must call this."""
        self.whole_part_counts = ranks.collected(self.whole_part_counts)
        for kind in self.kinds:
            sum_over_ranks(*self.meters[kind])
            for of_kind in (self.nodes, self.part_counts):
                of_kind[kind] = ranks.collected(of_kind[kind])
            self.top[kind] = ranks.collected(self.top[kind])

    def rows(self, bank: TextBank) -> list[Row]:
        """One row for each size: means over the texts."""
        n_kept = torch.tensor([share_counts(bank.shares, n) for n in bank.n_units]).double().mean(0).tolist()
        measured = {kind: self._columns(kind) for kind in self.kinds}
        rows: list[Row] = []
        for i, share in enumerate(bank.shares):
            controls = {
                kind: {name: columns[name][i] for name in CONTROL_METRICS}
                for kind, columns in measured.items()
                if kind != self.kinds[0]
            }
            own = {name: values[i] for name, values in measured[self.kinds[0]].items()}
            rows.append({"s": share, "fraction": share, bank.unit: n_kept[i], **own, "controls": controls})
        return rows

    def _columns(self, kind: str) -> dict[str, list[float | None]]:
        found = self.meters[kind][0].compute()
        shape = n_draws(kind), self.n_sizes
        columns = {
            name: nan_to_none(values.reshape(shape).double().mean(0).tolist())
            for name, values in found.items()
            if not name.endswith("_by_group")
        }
        counts = torch.stack(self.part_counts[kind]).sum(-2).double()  # (texts, draws x sizes, parts)
        shares = (counts / counts.sum(-1, keepdim=True)).mean(0).unflatten(0, shape).mean(0).T
        for name, values in zip(self.share_names, shares, strict=True):
            columns[f"{name}_share"] = values.tolist()
        nodes = torch.stack(self.nodes[kind]).float().mean(0).unflatten(0, shape).mean(0)
        grid = self.layout.graph.by_layer(nodes)
        columns["heads"] = grid[..., :-1].sum((-2, -1)).tolist()
        columns["mlps"] = grid[..., -1].sum(-1).tolist()
        return columns

    def measured(self, rows: list[Row]) -> MeasuredBank:
        """All that was measured of the bank; its rows are those of `rows`."""
        results = self.results()
        own = results[self.kinds[0]].texts
        top = {
            kind: (torch.stack([ids for ids, _ in of_texts]), torch.stack([p for _, p in of_texts]))
            for kind, of_texts in self.top.items()
        }
        return MeasuredBank(rows, torch.stack([own["kl"][0], own["tv"][0]]), results, top)

    def results(self) -> dict[str, PerTextResults]:
        """The results of each text by kind, as a study takes them; their masks are those of the nodes used."""
        found = {}
        for kind, (_, by_text) in self.meters.items():
            draws = (n_draws(kind), self.n_sizes)
            shape = (*draws, self.n_texts)
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(BY_SUBGRAPH, shape)
            shapes["recovered"] = (*shape, -1)
            texts = {
                name: value.view(shapes.get(name, (self.n_texts,))).cpu() for name, value in by_text.compute().items()
            }
            texts[PART_COUNTS] = torch.stack(self.part_counts[kind], dim=1).unflatten(0, draws).double()
            texts[WHOLE_PART_COUNTS] = torch.stack(self.whole_part_counts).double()
            found[kind] = PerTextResults(torch.stack(self.nodes[kind], dim=1).unflatten(0, draws), texts)
        return found


def describe_texts(bank: TextBank, measured: MeasuredBank, data: dict[str, Any]) -> dict[str, Any]:
    """The content of `metrics.json` for a bank of single texts.

    Args:
        bank: The bank.
        measured: What was measured of its texts.
        data: Settings of the texts.
    """
    kl, tv = nan_to_none(measured.by_group.transpose(1, 2).tolist())
    return {
        "graph": bank.unit,
        "method": bank.method,
        "model": vars(bank.model) | {"n_layers": bank.graph.n_layers, "n_heads": bank.graph.n_heads},
        "data": data,
        "sizes": measured.rows,
        "groups": {
            name: {"tokens": tokens, bank.unit: n_units, "kl": kl[i], "tv": tv[i]}
            for i, (name, tokens, n_units) in enumerate(zip(bank.groups, bank.n_tokens, bank.n_units, strict=True))
        },
    }
