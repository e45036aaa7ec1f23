"""A frozen model that runs on one text under gates on its edges."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masklearn.edges.attention import AttentionRecord, attention_gates
from masklearn.edges.graph import EdgeGates, EdgeGraph
from masklearn.edges.linear_norm import LinearNorm
from masklearn.edges.sites import BlockSites, find_sites
from masklearn.errors import UserError
from masklearn.masking.hooks import edit_input, edit_output
from masklearn.models import Layout, input_device
from masklearn.models.diagnostics import dtype_name


@dataclass
class StreamRecord:
    """The streams of one layer in a forward without gates, each of shape (rows, tokens, width)."""

    before: Tensor
    """The layer's input."""
    attention: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the attention adds."""
    middle: Tensor = field(default_factory=lambda: torch.empty(0))
    """The stream after the attention; empty in parallel layers."""
    mlp: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the MLP adds."""
    projected: Tensor = field(default_factory=lambda: torch.empty(0))
    """Output of the attention's projection, before any norm."""


@dataclass
class EdgeRecord:
    """A forward of one text without gates: all that edge importances are made of."""

    graph: EdgeGraph
    streams: list[StreamRecord]
    attention: list[AttentionRecord]
    last: Tensor
    """Output of the last layer, shape (tokens, width)."""
    hidden: Tensor
    """Last hidden states, after the final norm, shape (tokens, width)."""


class EdgeLM:
    """A frozen model under one gate for every edge of a text's graph.

    Args:
        layout: The model's layout.

    Raises:
        UserError: If the model's edges cannot be gated.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.sites = layout, find_sites(layout)

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.layout.graph.n_layers

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return input_device(self.layout.lm)

    @torch.no_grad()
    def full(self, input_ids: Tensor) -> Tensor:
        """Return the last hidden state of the untouched model after one text: (tokens,) to (width,).

        Raises:
            UserError: If these are not the tokens of one text.
        """
        self.layout.require_text(input_ids)
        return self.layout.hidden(input_ids[None])[0, -1]

    def hidden(self, input_ids: Tensor, gates: EdgeGates, patterns: dict[int, Tensor] | None = None) -> Tensor:
        """Return the last hidden states of one text under gates.

        Args:
            input_ids: Shape (tokens,).
            gates: One row for each subgraph; differentiable.
            patterns: Attention weights to gate in place of those of the masked stream, by layer.

        Returns:
            Of the last token, shape (rows, width).
        """
        rows = input_ids.expand(len(gates.mlp), -1)
        reads = attention_gates(self.layout.lm, self.n_layers, gates.attention, record=False, patterns=patterns)
        with reads, self._gated(gates):
            return self.layout.hidden(rows)[:, -1]

    @torch.no_grad()
    def record(self, input_ids: Tensor) -> EdgeRecord:
        """Run one text, shape (tokens,), without gates, and keep what edge importances are made of.

        Raises:
            UserError: If the model gives numbers that are not finite, or if these are not the tokens of one text.
        """
        self.layout.require_text(input_ids)
        streams: list[StreamRecord] = []
        with (
            attention_gates(self.layout.lm, self.n_layers, None, record=True) as reads,
            self._recorded(streams) as last,
        ):
            hidden = self.layout.hidden(input_ids[None])
        assert reads.records is not None
        require_finite(self.layout.lm, streams)
        attention = [reads.records[layer] for layer in range(self.n_layers)]
        allowed = torch.stack([record.allowed for record in attention]).cpu()
        graph = EdgeGraph(allowed, self.layout.graph.n_heads, self.sites.parallel)
        return EdgeRecord(graph, streams, attention, last[0][0], hidden[0])

    def final_norm(self, record: EdgeRecord) -> LinearNorm | None:
        """The norm that reads the last level, linearised at a recorded text; None if there is none."""
        norm = self.sites.final_norm
        return None if norm is None else LinearNorm.of(norm, record.last)

    @contextmanager
    def _gated(self, gates: EdgeGates) -> Iterator[None]:
        """Gate the residual and MLP edges of every layer while the context is open."""
        with ExitStack() as stack:
            for layer, site in enumerate(self.sites.blocks):
                of_layer = (gates.residual_attention[:, layer], gates.residual_mlp[:, layer], gates.mlp[:, layer])
                gate = _gate_parallel if self.sites.parallel else _gate_sequential
                gate(stack, site, *(values[..., None] for values in of_layer))
            yield

    @contextmanager
    def _recorded(self, streams: list[StreamRecord]) -> Iterator[list[Tensor]]:
        """Append the streams of every layer while the context is open; yield a list that gets the last output."""
        last: list[Tensor] = []
        with ExitStack() as stack:
            for layer, site in enumerate(self.sites.blocks):

                def keep(name: str, layer: int = layer) -> Callable[[Tensor], Tensor]:
                    def run(value: Tensor) -> Tensor:
                        setattr(streams[layer], name, value.reshape(streams[layer].before.shape).clone())
                        return value

                    return run

                def begin(value: Tensor) -> Tensor:
                    streams.append(StreamRecord(value.clone()))
                    return value

                stack.callback(edit_input(site.layer, begin).remove)
                stack.callback(edit_output(site.projection, keep("projected")).remove)
                stack.callback(edit_output(site.attention_end, keep("attention")).remove)
                if site.second_reader:
                    stack.callback(edit_input(site.second_reader, keep("middle")).remove)
                stack.callback(edit_output(site.mlp_end, keep("mlp")).remove)
            stack.callback(edit_output(self.sites.blocks[-1].layer, lambda value: last.append(value) or value).remove)
            yield last


def require_finite(lm: PreTrainedModel, streams: Sequence[StreamRecord]) -> None:
    """Refuse a forward with streams that are NaN or infinite.

    Raises:
        UserError: Names the first such layer, and which dtype to use instead.
    """
    for layer, stream in enumerate(streams):
        if not all(values.isfinite().all() for values in (stream.before, stream.attention, stream.mlp)):
            advice = "Check its weights" if lm.dtype == torch.float32 else "Choose --model.dtype float32"
            raise UserError(
                f"model.lm: {type(lm).__name__} gives numbers that are not finite in layer {layer} in "
                f"{dtype_name(lm)}. {advice}"
            )


def _gate_sequential(
    stack: ExitStack, site: BlockSites, residual_attention: Tensor, residual_mlp: Tensor, mlp: Tensor
) -> None:
    """Gate a layer whose MLP reads the stream after the attention; every gate has shape (rows, tokens, 1).

    The block itself adds its input, the attention and the MLP. It gets the input times both residual gates, and the
    attention returns its output times the second, so that the sum is the gated stream. The readers get the streams
    themselves. Adding (gate - 1) times the stream to a branch instead would lose the branch in half precision.
    """
    stream: dict[str, Tensor] = {}

    def enter(before: Tensor) -> Tensor:
        stream["before"] = before
        return before * (residual_attention * residual_mlp).to(before.dtype)

    def attend(attention: Tensor) -> Tensor:
        stream["middle"] = residual_attention.to(attention.dtype) * stream["before"] + attention
        return attention * residual_mlp.to(attention.dtype)

    stack.callback(edit_input(site.layer, enter).remove)
    for reader in site.first_readers:
        stack.callback(edit_input(reader, lambda _: stream["before"]).remove)
    stack.callback(edit_output(site.attention_end, attend).remove)
    assert site.second_reader is not None
    stack.callback(edit_input(site.second_reader, lambda value: stream["middle"].reshape(value.shape)).remove)
    stack.callback(edit_output(site.mlp_end, lambda value: _times(value, mlp)).remove)


def _gate_parallel(stack: ExitStack, site: BlockSites, residual: Tensor, _: Tensor, mlp: Tensor) -> None:
    """Gate a layer whose attention and MLP both read its input; every gate has shape (rows, tokens, 1)."""
    stream: dict[str, Tensor] = {}

    def enter(before: Tensor) -> Tensor:
        stream["before"] = before
        return before * residual.to(before.dtype)

    stack.callback(edit_input(site.layer, enter).remove)
    for reader in site.first_readers:
        stack.callback(edit_input(reader, lambda _: stream["before"]).remove)
    stack.callback(edit_output(site.mlp_end, lambda value: _times(value, mlp)).remove)


def _times(value: Tensor, gate: Tensor) -> Tensor:
    """An MLP's output times gates (rows, tokens, 1); some families have rows and tokens in one dimension."""
    return value * (gate if value.dim() > 2 else gate.flatten(0, 1)).to(value.dtype)
