"""What runs and evaluations of single texts do differently for edges and for positions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masklearn import evaluation
from masklearn.data import MaskData, SplitName
from masklearn.edges import EdgeGraph, EdgeLM, by_strace, edge_bank, require_memory, verified_edge_lm
from masklearn.evaluation import EdgeMode
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM
from masklearn.models import Layout
from masklearn.positions import PositionGraph, PositionLM
from masklearn.progress import ProgressBar
from masklearn.shares import TextUnit, path_edges
from masklearn.text_bank import PositionBank, TextBank
from masklearn.training.block_store import BlockStore
from masklearn.training.edge_learner import learn_edges
from masklearn.training.memory import kept_bytes
from masklearn.training.position_learner import learn_positions
from masklearn.training.text_learner import LogStep, TextLearnerConfig
from masklearn.training.text_memory import TextMemory
from masklearn.training.text_store import stored

SPLIT: SplitName = "test"
"""With scope input every split holds all texts."""


class ScoredTexts(NamedTuple):
    """ScoredTexts up to their scored tokens."""

    ids: Sequence[Tensor]
    """Token ids, shape (tokens,) each."""
    names: Sequence[str]
    positions: str
    """Which token is scored, see `data.Positions`."""


@dataclass(frozen=True)
class Choice:
    """How subgraphs are chosen."""

    method: str
    shares: Sequence[float]
    model: ModelId
    config: TextLearnerConfig
    store: BlockStore
    """Keeps the texts that are learned."""
    log: LogStep | None = None


class TextMethod(ABC):
    """Chooses and evaluates subgraphs of single texts, on one model."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The model's layout."""

    @classmethod
    @abstractmethod
    def load(cls, lm: PreTrainedModel, n_tokens: int) -> Self:
        """Verify that a model can be gated, on texts of up to so many tokens.

        Raises:
            UserError: If it cannot, or if the texts do not fit into memory.
        """

    @property
    @abstractmethod
    def layers(self) -> str:
        """The model's layers, in words."""

    def memory(self, n_sizes: int) -> TextMemory:
        """The memory that learning so many sizes takes, measured on short texts."""
        return TextMemory.probed(self.row_bytes, self.n_units, n_sizes, self.layout.context)

    @property
    def path_units(self) -> int:
        """Edges of a path from a token to the output; 0 where units need no others to have an effect."""
        return 0

    @abstractmethod
    def n_units(self, n_tokens: int) -> int:
        """Edges or positions of a text of so many tokens."""

    @abstractmethod
    def row_bytes(self, n_tokens: int) -> int:
        """What a forward of one size of a text keeps for its backward."""

    @abstractmethod
    def choose(self, texts: ScoredTexts, choice: Choice, bar: ProgressBar) -> TextBank:
        """Choose the subgraphs of every text."""

    @abstractmethod
    def evaluate(
        self, bank: Any, data: MaskData, bar: ProgressBar, keep_residual: bool = False, edges: EdgeMode = "recomputed"
    ) -> tuple[evaluation.TextMeasurer[Any], list[evaluation.Row]]:
        """Evaluate every text of a bank under its own subgraphs and under controls."""

    def measure(
        self, bank: Any, data: MaskData, bar: ProgressBar, keep_residual: bool = False, edges: EdgeMode = "recomputed"
    ) -> evaluation.MeasuredBank:
        """All that `evaluate` measures."""
        measurer, rows = self.evaluate(bank, data, bar, keep_residual, edges)
        return measurer.measured(rows)


@dataclass(frozen=True)
class EdgeMethod(TextMethod):
    """Subgraphs of edges."""

    edge_lm: EdgeLM

    @classmethod
    def load(cls, lm: PreTrainedModel, n_tokens: int) -> Self:
        """Verify every kind of edge gate."""
        layout = Layout.of(lm)
        require_memory(layout.graph, n_tokens)
        return cls(verified_edge_lm(layout))

    @property
    def layout(self) -> Layout:
        """The model's layout."""
        return self.edge_lm.layout

    @property
    def layers(self) -> str:
        """Such as `12 sequential layers x 12 heads`."""
        kind = "parallel" if self.edge_lm.sites.parallel else "sequential"
        return f"{self.layout.graph.n_layers} {kind} layers x {self.layout.graph.n_heads} heads"

    @property
    def path_units(self) -> int:
        """See `shares.path_edges`."""
        return path_edges(self.layout.graph.n_layers, self.edge_lm.sites.parallel)

    def n_units(self, n_tokens: int) -> int:
        """Edges, where the attention reads every earlier token."""
        graph = self.layout.graph
        return EdgeGraph.count(graph.n_layers, graph.n_heads, n_tokens, self.edge_lm.sites.parallel)

    def row_bytes(self, n_tokens: int) -> int:
        """Measured."""
        graph, device = self.layout.graph, self.edge_lm.device
        whole = EdgeGraph.causal(graph.n_layers, graph.n_heads, n_tokens, self.edge_lm.sites.parallel)
        gates = whole.gates(torch.ones(1, whole.n_places, device=device, requires_grad=True))
        input_ids = torch.zeros(n_tokens, dtype=torch.long, device=device)
        return kept_bytes(self.layout, lambda: self.edge_lm.hidden(input_ids, gates))

    def choose(self, texts: ScoredTexts, choice: Choice, bar: ProgressBar) -> TextBank:
        """Choose edges by s-Trace, or learn them."""
        choose = by_strace(choice.shares)
        if choice.method == "learned":
            learned = partial(learn_edges, self.edge_lm, shares=choice.shares, config=choice.config, log=choice.log)
            choose = stored(learned, choice.store)
        return edge_bank(
            self.edge_lm, texts.ids, texts.names, choice.shares, choice.model, choose, choice.method,
            texts.positions, bar,
        )  # fmt: skip

    def evaluate(
        self, bank: Any, data: MaskData, bar: ProgressBar, keep_residual: bool = False, edges: EdgeMode = "recomputed"
    ) -> tuple[evaluation.TextMeasurer[Any], list[evaluation.Row]]:
        """Compare with random, inverse and s-Trace subgraphs."""
        return evaluation.evaluate_edges(self.edge_lm, bank, data, SPLIT, keep_residual, bar, edges)


@dataclass(frozen=True)
class PositionMethod(TextMethod):
    """Subgraphs of positions: of nodes at single tokens."""

    position_lm: PositionLM

    @classmethod
    def load(cls, lm: PreTrainedModel, n_tokens: int) -> Self:
        """Verify the gates of nodes."""
        del n_tokens
        return cls(PositionLM(MaskedLM(lm)))

    @property
    def layout(self) -> Layout:
        """The model's layout."""
        return self.position_lm.layout

    @property
    def layers(self) -> str:
        """Such as `12 layers x (12 heads + 1 MLP)`."""
        return f"{self.layout.graph.n_layers} layers x ({self.layout.graph.n_heads} heads + 1 MLP)"

    def n_units(self, n_tokens: int) -> int:
        """Positions, where the attention reads every earlier token."""
        return PositionGraph.count(self.layout.graph, n_tokens)

    def row_bytes(self, n_tokens: int) -> int:
        """Measured."""
        device = self.position_lm.device
        gates = torch.ones(1, n_tokens, self.layout.graph.n_nodes, device=device, requires_grad=True)
        input_ids = torch.zeros(n_tokens, dtype=torch.long, device=device)
        return kept_bytes(self.layout, lambda: self.position_lm.hidden(input_ids, gates))

    def choose(self, texts: ScoredTexts, choice: Choice, bar: ProgressBar) -> TextBank:
        """Learn positions."""
        learn = partial(learn_positions, self.position_lm, shares=choice.shares, config=choice.config, log=choice.log)
        choose = stored(learn, choice.store)

        def of_text(input_ids: Tensor) -> tuple[int, Sequence[Tensor]]:
            input_ids = input_ids.to(self.position_lm.device)
            graph: PositionGraph = self.position_lm.graph(input_ids)
            return graph.n_positions, choose(input_ids, graph)

        return PositionBank.of_texts(
            texts.ids, texts.names, choice.shares, self.layout.graph, choice.model, of_text, choice.method,
            texts.positions, bar,
        )  # fmt: skip

    def evaluate(
        self, bank: Any, data: MaskData, bar: ProgressBar, keep_residual: bool = False, edges: EdgeMode = "recomputed"
    ) -> tuple[evaluation.TextMeasurer[Any], list[evaluation.Row]]:
        """Compare with random and inverse subgraphs, and with those of the highest scores."""
        del keep_residual, edges
        return evaluation.evaluate_positions(self.position_lm, bank, data, SPLIT, bar)


TEXT_METHODS: dict[TextUnit, type[TextMethod]] = {"edges": EdgeMethod, "positions": PositionMethod}
"""By what the subgraphs are made of."""
