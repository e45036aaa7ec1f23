"""The edge graph: gates on single edges, and what they do."""

import pytest
import torch
from conftest import refused, tiny_llama
from edge_reference import BUILDS, LlamaReference, all_edges, edge_lm, text
from families import BY_NAME
from torch import Tensor

import masklearn as ml
from masklearn.edges import (
    EdgeGraph,
    EdgeLM,
    grow,
    importance,
    live,
    verified_edge_lm,
)
from masklearn.edges import attention as attention_module
from masklearn.models import Layout

# --- mutation: what a gate on a path does, and off it ----------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDS)
def test_closing_an_edge_changes_the_output_and_closing_anything_else_does_not(name: str) -> None:
    """Every edge of a whole graph, one at a time, and every place that is no edge."""
    model = edge_lm(BY_NAME[name].build())
    found = importance(model, text())
    graph = found.graph
    rows = 1 - torch.eye(graph.n_places)
    hidden = model.hidden(text(), graph.gates(torch.cat([torch.ones(1, graph.n_places), rows])))
    change = (hidden[1:] - hidden[0]).norm(dim=-1) / hidden[0].norm()
    assert change[~graph.exists].max() < 1e-6
    assert change[graph.exists & (found.weights > 1e-3)].min() > 2e-6
    assert (found.weights[graph.exists] > 1e-3).float().mean() > 0.8


def test_in_a_subgraph_only_edges_on_a_path_matter(llama: EdgeLM) -> None:
    """Closing a live edge changes the output, closing a dead one does not, nor opening one into an unreached vertex."""
    found = importance(llama, text())
    graph = found.graph
    kept = grow(graph, found.weights, 40)
    base = graph.masks([kept])[0]
    rows = base.repeat(graph.n_places, 1)
    rows[torch.arange(graph.n_places), torch.arange(graph.n_places)] = 1 - base  # each toggles one
    hidden = llama.hidden(text(), graph.gates(torch.cat([base[None], rows])))
    change = (hidden[1:] - hidden[0]).norm(dim=-1) / hidden[0].norm()
    is_live = live(graph, [kept])[0]
    targets = {edge: target for edge, _, target in all_edges(graph)}
    reached = {source for edge, source, _ in all_edges(graph) if base[edge]} | {(4, 3)}
    unreached = [e for e, target in targets.items() if not base[e] and target not in reached]
    assert change[is_live].min() > 1e-5
    assert is_live.sum() > 30
    assert unreached
    assert change[unreached].max() < 1e-6


def ungated(*args: object, **kwargs: object) -> object:
    """An attention that reads its gates and forgets them, as the paper's released code does."""
    reads = attention_module._reads.get()
    gates, reads.gates = reads.gates, None
    result = attention_module.gated_attention(*args, **kwargs)  # pyright: ignore
    reads.gates = gates
    return result


def transposed(*args: object, **kwargs: object) -> object:
    """An attention that confuses target and source."""
    reads = attention_module._reads.get()
    gates = reads.gates
    reads.gates = None if gates is None else gates.transpose(-1, -2)
    result = attention_module.gated_attention(*args, **kwargs)  # pyright: ignore
    reads.gates = gates
    return result


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(ungated, "an attention edge of layer 0 does not change"), (transposed, "edges off every path changes")],
)
def test_verification_refuses_wrong_gates(wrong: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout.of(tiny_llama())
    verified_edge_lm(layout)
    register = attention_module.AttentionInterface.register
    monkeypatch.setattr(
        attention_module.AttentionInterface, "register", classmethod(lambda cls, name, _: register(name, wrong))
    )
    found = refused(lambda: verified_edge_lm(layout))
    assert message in found or "with all edges open" in found
    monkeypatch.undo()
    verified_edge_lm(layout)


def test_verification_refuses_gates_that_skip_the_residual_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout.of(tiny_llama())
    original = EdgeLM.hidden

    def open_residual(self: EdgeLM, input_ids: Tensor, gates: ml.edges.EdgeGates) -> Tensor:  # pyright: ignore
        return original(self, input_ids, gates._replace(residual_mlp=torch.ones_like(gates.residual_mlp)))

    monkeypatch.setattr(EdgeLM, "hidden", open_residual)
    assert "closing the residual mlp edge of layer 0 does not change" in refused(lambda: verified_edge_lm(layout))


# --- gates are exact --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDS)
def test_families_are_verified(name: str) -> None:
    lm = BY_NAME[name].build()
    before = lm.config._attn_implementation
    verified_edge_lm(Layout.of(lm))
    assert lm.config._attn_implementation == before


def test_gated_streams_are_those_of_a_model_run_edge_by_edge(llama: EdgeLM) -> None:
    ids = text(5)
    graph = EdgeGraph.causal(2, 4, 5)
    flat = torch.rand(3, graph.n_places, generator=torch.Generator().manual_seed(0))
    flat[1] = flat[1].round()
    found = llama.hidden(ids, graph.gates(flat))
    for row, hidden in zip(flat, found, strict=True):
        expected, _ = LlamaReference(llama.layout.lm, ids).run(graph.gates(row[None]))
        assert torch.allclose(hidden, expected, atol=1e-5)


@pytest.mark.parametrize("name", BUILDS)
def test_masks_of_nodes_are_gates_of_all_their_edges(name: str) -> None:
    """Closing a head at every target and source, or an MLP at every token, is zero ablation of the node."""
    model = edge_lm(BY_NAME[name].build())
    nodes = torch.rand(4, model.layout.graph.n_nodes, generator=torch.Generator().manual_seed(3)) > 0.4
    grid = model.layout.graph.by_layer(nodes.float())
    graph = EdgeGraph.causal(2, 4, 7, model.sites.parallel)
    flat = torch.ones(4, graph.n_places)
    gates = graph.gates(flat)
    gates.attention[:] = grid[..., :-1, None, None]
    gates.mlp[:] = grid[..., -1:]
    with ml.gated(model.layout.lm, nodes):
        expected = model.layout.hidden(text(7).expand(4, -1))[:, -1]
    assert torch.allclose(model.hidden(text(7), gates), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma3_text", "olmo2", "gpt_neox"])
def test_gradients_of_gates_are_slopes_and_survive_norms_after_the_branches(name: str) -> None:
    lm = BY_NAME[name].build().double()
    model = edge_lm(lm)
    graph = model.record(text()).graph
    flat = (0.2 + 0.6 * torch.rand(graph.n_places, generator=torch.Generator().manual_seed(1))).double()
    direction = torch.randn(lm.config.hidden_size, generator=torch.Generator().manual_seed(2)).double()

    def value(rows: Tensor) -> Tensor:
        return model.hidden(text(), graph.gates(rows)) @ direction

    flat.requires_grad_()
    (gradient,) = torch.autograd.grad(value(flat[None]).sum(), flat)
    step = 1e-3 * torch.eye(graph.n_places).double()  # large, since softmaxes run in float32
    with torch.no_grad():
        slope = (value(flat + step) - value(flat - step)) / 2e-3
    assert torch.allclose(gradient, slope, atol=1e-3 * float(slope.abs().max()))
    assert (gradient[graph.exists].abs() > 1e-6).float().mean() > 0.9


# --- the graph --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "heads", "tokens"), [(2, 1, 2), (5, 8, 48), (3, 2, 7)])
def test_numbers_of_vertices_and_edges(layers: int, heads: int, tokens: int) -> None:
    graph = EdgeGraph.causal(layers, heads, tokens)
    below = heads * tokens * (tokens + 1) // 2 + 3 * tokens
    assert graph.n_edges == (layers - 1) * below + heads * tokens + 3 == EdgeGraph.count(layers, heads, tokens)
    assert graph.n_vertices == tokens * (2 * layers + 1) - 2 * (tokens - 1)
    parallel = EdgeGraph.causal(layers, heads, tokens, parallel=True)
    assert parallel.n_edges == EdgeGraph.count(layers, heads, tokens, parallel=True)
    assert parallel.n_edges == graph.n_edges - (layers - 1) * tokens - 1


@pytest.mark.parametrize("parallel", [False, True])
def test_edges_run_upward_and_all_are_found_backward_from_the_output(parallel: bool) -> None:
    graph = EdgeGraph.causal(3, 2, 4, parallel)
    found, waiting = set[int](), {graph.output}
    while waiting:
        vertex = waiting.pop()
        ids, sources = graph.in_edges(vertex)
        assert all(source < vertex for source in sources.tolist())
        found |= set(ids.tolist())
        waiting |= set(sources.tolist())
    assert found == set(graph.exists.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("parallel", [False, True])
def test_edges_into_tokens_that_no_window_carries_to_the_output_do_not_exist(parallel: bool) -> None:
    """Two layers of one head read two tokens each: of four tokens the last two, then the last three, are read."""
    window = torch.ones(4, 4, dtype=torch.bool).tril().triu(-1).expand(2, 4, 4)
    graph = EdgeGraph(window, 1, parallel)
    direct = 2 if parallel else 3
    assert graph.n_edges == (4 + 2 * direct) + (2 + direct)
    assert graph.n_vertices == 3 + graph.levels_per_layer * (2 + 1)
    weights = torch.rand(graph.n_places) * graph.exists
    assert sorted(grow(graph, weights, graph.n_edges).tolist()) == graph.exists.nonzero()[:, 0].tolist()


def test_edges_outside_a_sliding_window_do_not_exist() -> None:
    graph = importance(edge_lm(BY_NAME["gemma3_text"].build()), text(7)).graph
    assert graph.allowed[0].tolist() == [[t - 3 < j <= t for j in range(7)] for t in range(7)]
    assert graph.allowed[1].equal(torch.ones(7, 7, dtype=torch.bool).tril())
