"""Edges with the full model's attention patterns and norms, in which the contributions into a vertex add up.

With patterns and the scale of every norm held at their values in the full model, a head and a norm are linear in the
stream. So closing one edge leaves what the others carry as it is, until the next MLP, which is still run. Otherwise the
zero vector of a vertex without edges takes part in every softmax, and a norm scales up what is left of a stream.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from masklearn.edges.attention import attention_gates
from masklearn.edges.edge_lm import EdgeLM
from masklearn.edges.graph import EdgeGates
from masklearn.edges.linear_norm import LinearNorm
from masklearn.masking.hooks import edit_input
from masklearn.models import has_weight_matrix, override_forward


@dataclass(frozen=True)
class FrozenText:
    """One text under gates on its edges, with the full model's attention patterns and norms."""

    edge_lm: EdgeLM
    input_ids: Tensor
    """Shape (tokens,)."""
    patterns: dict[int, Tensor]
    """Attention weights of the full model by layer, shape (1, heads, targets, sources)."""
    norms: dict[nn.Module, LinearNorm]
    """The norms that read or write the stream, linearised at the full model's activations."""

    @classmethod
    @torch.no_grad()
    def of(cls, edge_lm: EdgeLM, input_ids: Tensor) -> "FrozenText":
        """Run the full model on a text, shape (tokens,), and keep its patterns and the scales of its norms.

        Raises:
            UserError: If these are not the tokens of one text.
        """
        edge_lm.layout.require_text(input_ids)
        lm, inputs = edge_lm.layout.lm, dict[nn.Module, Tensor]()

        def keep(norm: nn.Module) -> Callable[[Tensor], Tensor]:
            def run(value: Tensor) -> Tensor:
                inputs[norm] = value.reshape(len(input_ids), -1).clone()
                return value

            return run

        with ExitStack() as stack:
            reads = stack.enter_context(attention_gates(lm, edge_lm.n_layers, None, record=True))
            for norm in _norms(edge_lm):
                stack.callback(edit_input(norm, keep(norm)).remove)
            edge_lm.layout.hidden(input_ids[None])
        assert reads.records is not None
        patterns = {layer: record.pattern for layer, record in reads.records.items()}
        return cls(edge_lm, input_ids, patterns, {norm: LinearNorm.of(norm, x) for norm, x in inputs.items()})

    def hidden(self, gates: EdgeGates) -> Tensor:
        """Return the last hidden states under gates: of the last token, shape (rows, width)."""
        with self._norms_frozen():
            return self.edge_lm.hidden(self.input_ids, gates, self.patterns)

    @contextmanager
    def _norms_frozen(self) -> Iterator[None]:
        with ExitStack() as stack:
            for norm, linear in self.norms.items():
                stack.enter_context(override_forward(norm, _linear(linear)))
            yield


def _norms(edge_lm: EdgeLM) -> list[nn.Module]:
    """The norms in front of attention and MLP, behind them, and at the end: modules without parts or matrices."""
    found = list[nn.Module]()
    for site in edge_lm.sites.blocks:
        found += [*site.first_readers, *site.attention_norms, site.mlp_end]
        found += [site.second_reader] if site.second_reader else []
    found += [edge_lm.sites.final_norm] if edge_lm.sites.final_norm else []
    lm = edge_lm.layout.lm
    return [part for part in dict.fromkeys(found) if not (list(part.children()) or has_weight_matrix(lm, part))]


def _linear(norm: LinearNorm) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(_: Callable[..., Any]) -> Callable[..., Any]:
        def run(vectors: Tensor) -> Tensor:
            by_token = vectors.reshape(-1, len(norm.scale), vectors.shape[-1]).float()
            return (norm(by_token) + norm.bias).to(vectors.dtype).view(vectors.shape)

        return run

    return wrap
