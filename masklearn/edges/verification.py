"""Verify edge gates on every model that is loaded: exact when open, effective on a path, and without effect off it.

Four things are checked on a few tokens. Open gates leave the model as it is, on a longer text too. The contributions
into a vertex sum to it. The numbers of vertices and edges are those of the formula, and the importances into a vertex
sum to 1. Closing one edge on a path to the output changes it, in every layer and for every kind of edge; closing edges
off every path does not.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masklearn.edges.attention import attention_function
from masklearn.edges.edge_lm import EdgeLM, EdgeRecord
from masklearn.edges.graph import EdgeGates, EdgeGraph
from masklearn.edges.importance import LayerContributions, importance_of, layers_contributions
from masklearn.edges.sites import no_edges
from masklearn.models import Layout, require_plain, running_eagerly
from masklearn.models.diagnostics import dummy_input_ids

MAX_ERROR = 1e-5
"""Relative error of a sum of contributions that counts as rounding in float32."""
MAX_ERROR_EPSILONS = 8
"""The same in half precision, in machine epsilons."""
LONGER_TOKENS = 16
"""Tokens of the longer text."""
MAX_TEXT_ERROR = 0.05
"""The same of the output for a whole text in any precision: only another attention exceeds it."""


@torch.no_grad()
def verified_edge_lm(layout: Layout) -> EdgeLM:
    """Return a model whose edges can be gated, after checking that they can.

    Raises:
        UserError: What was found, and what was expected.
    """
    require_plain(layout.lm, "a graph of edges")
    edge_lm = EdgeLM(layout)
    input_ids = dummy_input_ids(layout.lm, 1)[0]
    longer = dummy_input_ids(layout.lm, 1, min(LONGER_TOKENS, layout.context or LONGER_TOKENS))[0]
    _require_open_gates_change_nothing(edge_lm, edge_lm.record(longer), longer)
    record = edge_lm.record(input_ids)
    _require_open_gates_change_nothing(edge_lm, record, input_ids)
    for layer, contributions in enumerate(layers_contributions(edge_lm, record)):
        _require_sums(edge_lm, record, layer, contributions)
    weights = importance_of(edge_lm, record).weights
    _require_counts(edge_lm, record.graph, weights)
    _require_effects(edge_lm, record.graph, weights, input_ids)
    return edge_lm


def require_same_output(edge_lm: EdgeLM, found: Tensor, untouched: Tensor) -> None:
    """Refuse a text on which the attention that edges go through is not the model's own, as in sparse attention.

    Args:
        edge_lm: The model.
        found: Its last hidden state through that attention, shape (width,).
        untouched: That of the untouched model.

    Raises:
        UserError: How far they are apart.
    """
    error = ((found - untouched).float().norm() / untouched.float().norm()).item()
    if error > MAX_TEXT_ERROR:
        raise no_edges(edge_lm.layout.lm, f"an output that is {error:.2g} off on a whole text", "that of the model")


def _differ(lm: PreTrainedModel, found: Tensor, expected: Tensor) -> float | None:
    """The relative error of a tensor; None if it is within rounding."""
    eps = torch.finfo(lm.dtype).eps
    allowed = MAX_ERROR if eps < 1e-6 else MAX_ERROR_EPSILONS * eps
    gap, norm = (found - expected).float().norm().item(), expected.float().norm().item()
    return None if gap <= allowed * norm else gap / max(norm, torch.finfo(torch.float32).tiny)


def _require_open_gates_change_nothing(edge_lm: EdgeLM, record: EdgeRecord, input_ids: Tensor) -> None:
    layout = edge_lm.layout
    with running_eagerly(), attention_function(layout.lm, "eager"):
        untouched = layout.hidden(input_ids[None])[0, -1]
    gates = record.graph.gates(record.graph.exists[None].float().to(input_ids.device))
    error = _differ(layout.lm, edge_lm.hidden(input_ids, gates)[0], untouched)
    if error is not None:
        raise no_edges(edge_lm.layout.lm, f"an output that is {error:.2g} off with all edges open", "that of the model")


def _require_sums(edge_lm: EdgeLM, record: EdgeRecord, layer: int, parts: LayerContributions) -> None:
    """Refuse a layer whose vertices are not the sums of the contributions into them."""
    lm, stream, site = edge_lm.layout.lm, record.streams[layer], edge_lm.sites.blocks[layer]
    bias = site.projection_bias
    is_last = layer == edge_lm.n_layers - 1
    after = record.last if is_last else record.streams[layer + 1].before[0]
    sums = [("the layer's output", stream.before[0] + stream.attention[0] + stream.mlp[0], after)]
    if not (is_last and edge_lm.sites.parallel):  # there the final norm is part of the contributions
        bias = torch.zeros(()) if bias is None or site.attention_norms else bias
        sums.append(("what the attention adds", parts.attention + bias.to(parts.values), stream.attention[0]))
    if parts.middle is not None:
        sums.append(("the stream after the attention", stream.before[0] + stream.attention[0], stream.middle[0]))
    if is_last:
        total = parts.mlp + (parts.before + parts.attention if parts.middle is None else parts.middle)
        sums.append(("the final state", total + _outside(edge_lm, record), record.hidden))
    for name, found, expected in sums:
        error = _differ(lm, found, expected)
        if error is not None:
            raise no_edges(lm, f"contributions in layer {layer} that miss {name} by {error:.2g}", "their sum")


def _outside(edge_lm: EdgeLM, record: EdgeRecord) -> Tensor:
    """What belongs to no edge into the last level: the final norm's bias, and in parallel layers the projection's."""
    final, bias = edge_lm.final_norm(record), edge_lm.sites.blocks[-1].projection_bias
    zero = torch.zeros_like(record.last, dtype=torch.float32)
    if final is None:
        return zero
    through = final(bias.float().expand_as(zero)) if edge_lm.sites.parallel and bias is not None else zero
    return through + final.bias


def _require_counts(edge_lm: EdgeLM, graph: EdgeGraph, weights: Tensor) -> None:
    """Refuse a graph that is not the formula's, or importances that do not sum to 1 at every vertex."""
    tokens = graph.n_tokens
    edges = EdgeGraph.count(graph.n_layers, graph.n_heads, tokens, graph.parallel)
    is_causal = bool((graph.allowed == graph.allowed[0].tril()).all() and graph.allowed[0].tril().all())
    if graph.n_edges > edges or (is_causal and graph.n_edges != edges):
        raise no_edges(edge_lm.layout.lm, f"{graph.n_edges} edges in a text of {tokens} tokens", str(edges))
    targets = graph.n_targets
    if abs(weights.sum().item() - targets) > 1e-4 * targets:
        found, expected = f"importances that sum to {weights.sum():.6g}", f"1 for each of {targets} vertices"
        raise no_edges(edge_lm.layout.lm, found, expected)


def _require_effects(edge_lm: EdgeLM, graph: EdgeGraph, weights: Tensor, input_ids: Tensor) -> None:
    """Refuse a model in which an edge on a path has no effect, or edges off every path have one."""
    names, rows = zip(*_mutations(graph, weights, torch.finfo(edge_lm.layout.lm.dtype).eps), strict=True)
    hidden = edge_lm.hidden(input_ids, graph.gates(torch.stack(rows).to(input_ids.device))).float()
    change = (hidden - hidden[0]).norm(dim=-1) / hidden[0].norm()
    off_path = [index for index, name in enumerate(names) if name.startswith("edges off")]
    noise = change[off_path].max()
    if _differ(edge_lm.layout.lm, hidden[off_path], hidden[0].expand(len(off_path), -1)) is not None:
        found = f"that closing edges off every path changes the output by {noise:.2g}"
        raise no_edges(edge_lm.layout.lm, found, "no change")
    for name, effect in list(zip(names, change.tolist(), strict=True))[1 + len(off_path) :]:
        if effect <= 2 * noise:
            raise no_edges(edge_lm.layout.lm, f"that closing {name} does not change the output", "a change")


def _mutations(graph: EdgeGraph, weights: Tensor, eps: float) -> Iterator[tuple[str, Tensor]]:
    """Yield open gates, two rows with edges closed that are off every path, and rows with one edge closed on a path.

    An edge whose contribution may be lost in rounding is not closed.
    """
    last = graph.n_tokens - 1
    yield "no edge", torch.ones(graph.n_places)
    for name, closed in (("edges off every path", ~graph.exists), ("edges off to later tokens", _future(graph))):
        yield name, (~closed).float()
    of_edges = graph.gates(weights[None])
    ids = graph.gates(torch.arange(graph.n_places)[None])
    for layer in range(graph.n_layers):
        into_last = of_edges.attention[0, layer, :, last]
        strongest = int(ids.attention[0, layer, :, last].flatten()[into_last.argmax()])
        edges = {"an attention edge": strongest}
        kinds = EdgeGates._fields[1:3] if graph.parallel else EdgeGates._fields[1:]
        edges |= {f"the {kind.replace('_', ' ')} edge": int(getattr(ids, kind)[0, layer, last]) for kind in kinds}
        for name, edge in edges.items():
            if weights[edge] > 8 * eps:
                gates = torch.ones(graph.n_places)
                gates[edge] = 0
                yield f"{name} of layer {layer}", gates


def _future(graph: EdgeGraph) -> Tensor:
    """Places of attention to later tokens, which a swap of target and source would confuse with edges."""
    flat = torch.zeros(1, graph.n_places, dtype=torch.bool)
    tokens = torch.ones(graph.n_tokens, graph.n_tokens, dtype=torch.bool)
    graph.gates(flat).attention[:] = tokens.triu(1)
    return flat[0]
