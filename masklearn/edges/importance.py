"""How much every edge contributes to its target in the full model: the L1 norm of its vector, as a share of all.

Source: Kervadec et al. 2026 (arXiv 2605.27033). Contributions are vectors of the residual stream's width: the stream
itself, the MLP's output, and of every head and source the attention weight times the value, projected. A norm after the
attention is linearised, and so is the final norm for the last level.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from masklearn.edges.edge_lm import EdgeLM, EdgeRecord
from masklearn.edges.graph import EdgeGraph
from masklearn.edges.linear_norm import LinearNorm
from masklearn.edges.sites import BlockSites


@dataclass(frozen=True)
class Importance:
    """The graph of one text, the importance of its edges, and the full model's output."""

    graph: EdgeGraph
    weights: Tensor
    """Float32, shape (flat,): between 0 and 1; those into one vertex sum to 1; 0 where there is no edge."""
    hidden: Tensor
    """Last hidden state of the full model at the last token, shape (width,)."""


@torch.no_grad()
def importance(edge_lm: EdgeLM, input_ids: Tensor) -> Importance:
    """Compute the importance of every edge of one text, with one forward.

    No tensor of targets x sources x width is made: an attention edge's norm is its weight times the norm of its
    projected value, so heads x tokens norms a layer suffice.

    Args:
        edge_lm: The model.
        input_ids: Shape (tokens,).

    Raises:
        UserError: If the model gives numbers that are not finite.
    """
    return importance_of(edge_lm, edge_lm.record(input_ids))


def importance_of(edge_lm: EdgeLM, record: EdgeRecord) -> Importance:
    """The importance of every edge of a recorded forward: see `importance`."""
    graph = record.graph
    flat = torch.zeros(1, graph.n_places, device=record.last.device)
    norms = graph.gates(flat)
    for layer, contributions in enumerate(layers_contributions(edge_lm, record)):
        attention = contributions.pattern * contributions.scale[:, None] * _l1(contributions.values)[:, None]
        norms.attention[0, layer] = attention
        norms.residual_attention[0, layer] = _l1(contributions.before)
        norms.mlp[0, layer] = _l1(contributions.mlp)
        if contributions.middle is not None:
            norms.residual_mlp[0, layer] = _l1(contributions.middle)
    flat *= graph.exists.to(flat.device)
    _normalise(graph, flat)
    return Importance(graph, flat[0].cpu(), record.hidden[-1])


def _l1(vectors: Tensor) -> Tensor:
    return vectors.abs().sum(-1)


def _normalise(graph: EdgeGraph, flat: Tensor) -> None:
    """Divide, in place, the norms of the edges (1, flat) by the sum over all edges into the same vertex."""
    norms = graph.gates(flat)
    into_attention = norms.attention.sum((2, 4)) + norms.residual_attention
    into_mlp = norms.mlp + norms.residual_mlp
    if graph.parallel:
        into_attention = into_mlp = into_attention + norms.mlp
    into_attention, into_mlp = (total.masked_fill(total == 0, 1) for total in (into_attention, into_mlp))
    norms.attention.div_(into_attention[:, :, None, :, None])
    norms.residual_attention.div_(into_attention)
    for kind in (norms.mlp, norms.residual_mlp):
        kind.div_(into_mlp)


@dataclass(frozen=True)
class LayerContributions:
    """The vectors that make one layer's streams, in float32."""

    before: Tensor
    """Shape (tokens, width)."""
    pattern: Tensor
    """Attention weights, shape (heads, targets, sources)."""
    values: Tensor
    """Projected values without bias, under the linearised norm but for its scale: (heads, sources, width)."""
    scale: Tensor
    """Of the norm after the attention at every target, shape (targets,); ones if there is none."""
    middle: Tensor | None
    """The stream after the attention, shape (tokens, width); None in parallel layers."""
    mlp: Tensor
    """Shape (tokens, width)."""

    @property
    def attention(self) -> Tensor:
        """The sum over heads and sources, shape (tokens, width)."""
        return self.scale[:, None] * torch.einsum("hts,hsw->tw", self.pattern, self.values)


def layers_contributions(edge_lm: EdgeLM, record: EdgeRecord) -> Iterator[LayerContributions]:
    """Yield the contributions of every layer; into the last level, under the final norm."""
    last_layer, final = edge_lm.n_layers - 1, edge_lm.final_norm(record)
    for layer, (site, stream, attention) in enumerate(
        zip(edge_lm.sites.blocks, record.streams, record.attention, strict=True)
    ):
        values = projected_values(site, attention.values[0])
        norm = None
        if site.attention_norms:
            norm = LinearNorm.of(site.attention_norms[-1], stream.projected[0])
            values = norm.direction(values)
        ends = final if final is not None and layer == last_layer else _identity
        before, scale = stream.before[0].float(), torch.ones(len(record.last), device=values.device)
        scale = norm.scale if norm else scale
        middle = None if edge_lm.sites.parallel else ends(stream.middle[0].float())
        if edge_lm.sites.parallel and isinstance(ends, LinearNorm):
            before, values, scale = ends(before), ends.direction(values), scale * ends.scale
        yield LayerContributions(
            before, attention.pattern[0].float(), values, scale, middle, ends(stream.mlp[0].float())
        )


def _identity(vectors: Tensor) -> Tensor:
    return vectors


def projected_values(site: BlockSites, values: Tensor) -> Tensor:
    """Every head's values through the output projection alone: (heads, sources, head width) to (heads, sources, width).

    The projection is called as the module that it is, on inputs in which all other heads are zero.
    """
    n_heads, n_tokens, width = values.shape
    alone = values.new_zeros(n_heads, n_tokens, n_heads, width)
    heads = torch.arange(n_heads, device=values.device)
    alone[heads, :, heads] = values
    projected = site.projection(alone.flatten(2)).float()
    return projected if site.projection_bias is None else projected - site.projection_bias.float()
