"""The edge graph: gates on single edges, their importance, s-Trace, and its controls."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import refused, tiny_llama
from edge_reference import LlamaReference, all_edges, grow_slowly
from families import BY_NAME, REFUSED, build
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import masklearn as ml
from masklearn.edges import (
    EdgeBank,
    EdgeGraph,
    EdgeLM,
    edge_bank,
    edge_counts,
    edge_shares,
    grow,
    importance,
    inverse,
    live,
    load_bank,
    nodes_used,
    nucleus,
    random_connected,
    require_memory,
    require_same_output,
    shares_by_kind,
    threshold,
    verified_edge_lm,
)
from masklearn.edges import attention as attention_module
from masklearn.mask_file import ModelId
from masklearn.models import Layout
from masklearn.training.edge_learner import EdgeLearnerConfig, learn_edges, refilled

BUILDS = ("llama", "llama biases, tied", "gpt2", "gpt_neox", "phi", "olmo2", "gemma2", "gemma3_text", "cohere", "qwen2")
"""Sequential and parallel layers, norms before and after, biases, grouped heads, sliding windows, soft caps."""
BYPASSING = ("falcon", "bloom", "gptj", "gpt_neo", "mpt", "codegen", "xglm")
NOT_SUMS = ("granite", "bitnet", "doge", "afmoe")
"""Families with attention through the interface whose vertices are not plain sums."""


def text(n_tokens: int = 4) -> Tensor:
    return torch.tensor([5, 9, 17, 4, 31, 8, 22])[:n_tokens]


def edge_lm(lm: PreTrainedModel) -> EdgeLM:
    return EdgeLM(Layout.of(lm))


@pytest.fixture(scope="module")
def llama() -> EdgeLM:
    return edge_lm(tiny_llama(layers=2))


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


def test_edges_outside_a_sliding_window_do_not_exist() -> None:
    graph = importance(edge_lm(BY_NAME["gemma3_text"].build()), text(7)).graph
    assert graph.allowed[0].tolist() == [[t - 3 < j <= t for j in range(7)] for t in range(7)]
    assert graph.allowed[1].equal(torch.ones(7, 7, dtype=torch.bool).tril())


# --- importance -------------------------------------------------------------------------------------------------------


def test_importances_are_those_of_explicit_contributions(llama: EdgeLM) -> None:
    found = importance(llama, text(5))
    expected = LlamaReference(llama.layout.lm, text(5)).importance(found.graph)
    assert torch.allclose(found.weights, expected, atol=1e-5)


@pytest.mark.parametrize("name", BUILDS)
def test_importances_into_a_vertex_sum_to_one(name: str) -> None:
    found = importance(edge_lm(BY_NAME[name].build()), text(7))
    graph = found.graph
    vertices = range(graph.n_tokens, graph.output)
    sums = [float(found.weights[graph.in_edges(vertex).ids].sum()) for vertex in vertices]
    sums = [total for total in sums if total]  # those beside the last token of the last layer are not in the graph
    assert sums == pytest.approx([1.0] * len(sums), abs=1e-5)
    assert len(sums) + 1 + graph.n_tokens == graph.n_vertices
    assert not found.weights[~graph.exists].any()


@pytest.fixture(scope="module")
def by_hand() -> EdgeLM:
    """Two layers, one head, width 2: attention is uniform and copies its normed source; MLPs add nothing.

    Token 3 is embedded as (1, 1) and token 4 as (1, -1), both of root mean square 1.
    """
    config = LlamaConfig(
        vocab_size=8, hidden_size=2, intermediate_size=2, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, head_dim=2, rms_norm_eps=1e-12, tie_word_embeddings=False,
    )  # fmt: skip
    lm = LlamaForCausalLM(config).eval().requires_grad_(False)
    for block in lm.model.layers:
        for name in ("q_proj", "k_proj"):
            getattr(block.self_attn, name).weight.zero_()
        block.mlp.down_proj.weight.zero_()
        for name in ("v_proj", "o_proj"):
            getattr(block.self_attn, name).weight.copy_(torch.eye(2))
    lm.model.embed_tokens.weight[3] = torch.tensor([1.0, 1.0])
    lm.model.embed_tokens.weight[4] = torch.tensor([1.0, -1.0])
    return edge_lm(lm)


def test_a_two_layer_model_by_hand(by_hand: EdgeLM) -> None:
    """Layer 0: token 0 gets (1, 1) from itself; token 1 half of (1, 1) and half of (1, -1), so its stream is (2, -1).

    Layer 1: the normed streams are (1, 1) and (2, -1) / sqrt(2.5), each weighs one half.
    """
    found = importance(by_hand, torch.tensor([3, 4]))
    weights = found.graph.gates(found.weights[None])
    assert weights.attention[0, 0, 0].tolist() == [[0.5, 0], [0.25, 0.25]]
    assert weights.residual_attention[0, 0].tolist() == [0.5, 0.5]
    assert weights.residual_mlp[0, 0].tolist() == [1, 1]
    total = 1 + 1.5 / 2.5**0.5 + 3
    assert weights.attention[0, 1, 0, 1].tolist() == pytest.approx([1 / total, 1.5 / 2.5**0.5 / total])
    assert weights.residual_attention[0, 1, 1].item() == pytest.approx(3 / total)
    ids = found.graph.gates(torch.arange(found.graph.n_places)[None])
    first, second = ids.attention[0, :, 0]
    expected = [
        ids.residual_mlp[0, 1, 1], ids.residual_attention[0, 1, 1],  # 1, then .61
        ids.residual_mlp[0, 0, 1], ids.residual_attention[0, 0, 1],  # 1, then .5: a path to the text
        first[1, 0], first[1, 1],  # a tie at .25: the earlier source first
        second[1, 0], ids.residual_mlp[0, 0, 0],  # .20 reaches token 0 after layer 0, whose residual weighs 1
        first[0, 0], ids.residual_attention[0, 0, 0],  # a tie at .5: attention before residual
        second[1, 1],  # .19
    ]  # fmt: skip
    assert grow(found.graph, found.weights, 11).tolist() == [int(edge) for edge in expected]
    path = grow(found.graph, found.weights, 4)  # passes the embedding (1, -1) alone to the final norm
    assert torch.allclose(by_hand.hidden(torch.tensor([3, 4]), found.graph.gates(found.graph.masks([path])))[0],
                          torch.tensor([1.0, -1.0]))  # fmt: skip


# --- s-Trace and controls ---------------------------------------------------------------------------------------------


def test_growth_is_that_of_a_full_scan_at_every_size(llama: EdgeLM) -> None:
    found = importance(llama, text(5))
    expected = grow_slowly(found.graph, found.weights, found.graph.n_edges)
    assert grow(found.graph, found.weights, found.graph.n_edges).tolist() == expected


def test_subgraphs_of_all_sizes_have_exactly_their_size_and_are_nested(llama: EdgeLM) -> None:
    shares = edge_shares("log:7")
    bank = edge_bank(llama, [text(7), text(4)], ["a", "b"], shares, ModelId("tiny", None, "0"))
    for by_size, n_edges in zip(bank.kept, bank.n_edges, strict=True):
        assert [len(ids.unique()) for ids in by_size] == [max(1, int(share * n_edges)) for share in shares]
        assert all(set(small.tolist()) <= set(large.tolist()) for small, large in pairwise(by_size))


def test_thresholds_give_the_prefixes_before_each_new_lowest_weight(llama: EdgeLM) -> None:
    found = importance(llama, text(6))
    order = grow(found.graph, found.weights, found.graph.n_edges)
    popped = found.weights[order]
    new_lowest = [i for i in range(1, len(popped)) if popped[i] < popped[:i].min()]
    assert len(new_lowest) > 10
    for i in new_lowest:
        assert set(threshold(found.graph, found.weights, float(popped[i])).tolist()) == set(order[:i].tolist())


def test_a_nucleus_holds_its_share_and_no_more_than_it_needs(llama: EdgeLM) -> None:
    found = importance(llama, text(6))
    graph, weights = found.graph, found.weights
    kept = set(nucleus(graph, weights, 0.6).tolist())
    into_output = [edge for edge in graph.in_edges(graph.output).ids.tolist() if edge in kept]
    assert sum(weights[into_output]) >= 0.6 > sum(weights[into_output]) - min(weights[into_output])
    assert set(nucleus(graph, weights, 1.0).tolist()) == set((weights > 0).nonzero()[:, 0].tolist())


def test_random_subgraphs_are_connected_and_seeded(llama: EdgeLM) -> None:
    graph = EdgeGraph.causal(2, 4, 6)
    for n in (1, 9, 60):
        ids = random_connected(graph, n, seed=3)
        assert len(ids.unique()) == n
        assert ids.equal(random_connected(graph, n, seed=3))
        targets = {edge: target for edge, _, target in all_edges(graph)}
        sources = {source for edge, source, _ in all_edges(graph) if edge in ids.tolist()} | {(4, 5)}
        assert all(targets[edge] in sources for edge in ids.tolist())
    assert not random_connected(graph, 60, seed=3).equal(random_connected(graph, 60, seed=4))
    first = random_connected(graph, 2, seed=0)  # of the output: both of its edges, none of which is attention's
    assert set(first.tolist()) <= set(graph.in_edges(graph.output).ids.tolist()) | {
        *graph.in_edges(graph.vertex(3, 5)).ids[-1:].tolist()
    }


def test_an_inverse_is_the_rest_with_or_without_all_residual_edges() -> None:
    graph = EdgeGraph.causal(2, 4, 6)
    kept = random_connected(graph, 50, seed=1)
    rest = inverse(graph, kept)
    assert len(rest) == graph.n_edges - 50
    assert not set(rest.tolist()) & set(kept.tolist())
    with_residual = graph.gates(graph.masks([inverse(graph, kept, keep_residual=True)]))
    assert with_residual.residual_mlp[0, 0].all()
    assert with_residual.residual_attention[0, 1].tolist() == [0, 0, 0, 0, 0, 1]


def test_live_edges_are_those_on_a_path_from_an_embedding_to_the_output() -> None:
    graph = EdgeGraph.causal(2, 2, 3)
    for seed in range(6):
        order = torch.randperm(graph.n_edges, generator=torch.Generator().manual_seed(seed))
        kept = graph.exists.nonzero()[:, 0][order[: graph.n_edges // 3]]
        edges = [edge for edge in all_edges(graph) if edge[0] in kept.tolist()]
        from_text, to_output = {(0, t) for t in range(3)}, {(4, 2)}
        for _ in range(5):
            from_text |= {target for _, source, target in edges if source in from_text}
            to_output |= {source for _, source, target in edges if target in to_output}
        expected = {number for number, source, target in edges if source in from_text and target in to_output}
        assert set(live(graph, [kept])[0].nonzero()[:, 0].tolist()) == expected


def test_nodes_used_and_shares_of_kinds_by_hand() -> None:
    graph = EdgeGraph.causal(2, 2, 2)
    ids = graph.gates(torch.arange(graph.n_places)[None])
    kept = torch.stack([
        ids.mlp[0, 1, 1], ids.residual_attention[0, 1, 1], ids.residual_mlp[0, 0, 1], ids.attention[0, 0, 1, 1, 0],
        ids.attention[0, 1, 0, 1, 0],  # its source, token 0 after layer 0, gets nothing
    ])  # fmt: skip
    assert nodes_used(graph, [kept])[0].tolist() == [False, True, False, False, False, True]
    shares = {kind: share.item() for kind, share in shares_by_kind(graph, [kept]).items()}
    assert shares == pytest.approx({"attention": 0.4, "mlp": 0.2, "residual": 0.4})


def test_the_table_of_the_specification_on_a_pretrained_model(stories: Path) -> None:
    """TV at 0.001, 0.01, 0.1 and 1 of the edges: .632 .308 .066 .000 on the first 16 texts of 48 tokens."""
    path = str(stories / "models" / "stories260k")
    model, tokenizer = verified_edge_lm(Layout.of(ml.load_lm(path))), ml.load_tokenizer(path)
    tv = []
    for line in (stories / "data" / "stories.jsonl").read_text().splitlines()[:16]:
        ids = torch.tensor(tokenizer(json.loads(line)["text"])["input_ids"][:48])
        found = importance(model, ids)
        counts = edge_counts([1e-3, 1e-2, 1e-1], found.graph.n_edges)
        order = grow(found.graph, found.weights, counts[-1])
        kept = [*(order[:n] for n in counts), found.graph.exists.nonzero()[:, 0]]
        hidden = torch.cat([model.hidden(ids, found.graph.gates(found.graph.masks(kept))), found.hidden[None]])
        p = model.layout.unembed(hidden).softmax(-1)
        tv.append((p[:-1] - p[-1]).abs().sum(-1) / 2)
    assert torch.stack(tv).mean(0).tolist() == pytest.approx([0.632, 0.308, 0.066, 0], abs=0.02)


# --- learning ---------------------------------------------------------------------------------------------------------


def test_learned_subgraphs_have_their_sizes_and_are_nearer_to_the_full_model_than_s_trace(llama: EdgeLM) -> None:
    shares, ids = [0.03, 0.1, 0.3], text(6)
    found = importance(llama, ids)
    kept = learn_edges(llama, ids, found, shares, EdgeLearnerConfig(steps=40))
    counts = edge_counts(shares, found.graph.n_edges)
    assert [len(edges.unique()) for edges in kept] == counts
    assert all(found.graph.exists[edges].all() for edges in kept)
    order = grow(found.graph, found.weights, counts[-1])

    def kl(subgraphs: list[Tensor]) -> Tensor:
        hidden = torch.cat([llama.hidden(ids, found.graph.gates(found.graph.masks(subgraphs))), found.hidden[None]])
        logp = llama.layout.unembed(hidden).log_softmax(-1)
        return (logp[-1].exp() * (logp[-1] - logp[:-1])).sum(-1)

    learned, grown = kl(kept), kl([order[:n] for n in counts])
    assert (learned <= grown + 1e-6).all()
    assert learned.log().mean() < grown.log().mean() - 0.3


def test_dead_edges_are_replaced_by_the_first_of_s_trace(llama: EdgeLM) -> None:
    found = importance(llama, text(5))
    graph = found.graph
    order = grow(graph, found.weights, graph.n_edges)
    ids = graph.gates(torch.arange(graph.n_places)[None])
    path = torch.cat([ids.residual_attention[0, :, 4], ids.residual_mlp[0, :, 4]])  # of the last token
    dead = torch.cat([ids.mlp[0, 0, :3], ids.residual_mlp[0, 0, :2]])  # nothing reads the tokens before it
    assert live(graph, [torch.cat([path, dead])])[0].nonzero()[:, 0].tolist() == sorted(path.tolist())
    added = [edge for edge in order.tolist() if edge not in path.tolist()][:5]
    assert refilled(graph, torch.cat([path, dead]), order).tolist() == sorted([*path.tolist(), *added])


# --- bad input and files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BYPASSING)
def test_families_that_bypass_the_attention_interface_are_refused(name: str) -> None:
    lm = BY_NAME[name].build()
    before = lm.config._attn_implementation
    message = refused(lambda: verified_edge_lm(Layout.of(lm)))
    assert message.startswith("model.graph edges: the attention of ")
    assert "--model.graph nodes" in message
    assert lm.config._attn_implementation == before


@pytest.mark.parametrize("name", NOT_SUMS)
def test_families_whose_vertices_are_no_sums_are_refused(name: str) -> None:
    assert "cannot be taken apart into edges" in refused(lambda: verified_edge_lm(Layout.of(BY_NAME[name].build())))


@pytest.mark.parametrize("n_selected", [4, 2048])
def test_sparse_attention_is_refused(n_selected: int) -> None:
    """Also where it selects more tokens than verification reads, as the released DeepSeek V3.2 does: 2,048."""
    lm = BY_NAME["deepseek_v32"].build(index_topk=n_selected)
    assert "a selection of the tokens" in refused(lambda: verified_edge_lm(Layout.of(lm)))


def test_verification_reads_a_longer_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse attention that says nothing shows in its output, on texts longer than the tokens that it selects."""
    monkeypatch.setattr(attention_module, "SELECTED_TOKENS", ())
    layout = Layout.of(BY_NAME["deepseek_v32"].build())
    assert "off with all edges open" in refused(lambda: verified_edge_lm(layout))


def test_a_text_with_another_output_is_refused(llama: EdgeLM) -> None:
    full = llama.full(text(7))
    require_same_output(llama, importance(llama, text(7)).hidden, full)
    assert "off on a whole text" in refused(lambda: require_same_output(llama, 1.1 * full, full))


def test_activations_that_are_not_finite_are_refused_with_their_layer() -> None:
    lm = tiny_llama()
    layout = Layout.of(lm)
    lm.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    assert "not finite in layer 1" in refused(lambda: verified_edge_lm(layout))


def test_texts_too_long_for_memory_are_refused_with_a_length_that_fits() -> None:
    graph = ml.NodeGraph(12, 12)
    require_memory(graph, 64, free=10**9)
    message = refused(lambda: require_memory(graph, 1024, free=10**9))
    assert "a text of 1024 tokens has 69," in message
    fits = int(message.rsplit(" ", 1)[1])
    require_memory(graph, fits, free=10**9)
    refused(lambda: require_memory(graph, fits + 1, free=10**9))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [([8], "asks for 8 edges"), ([], "is empty"), ("mib", "'mib'"), ([0.1, 0.1], "twice"), ("log:1", "'log:1'")],
)
def test_sizes_that_are_no_shares_are_refused(sizes: list[float] | str, words: str) -> None:
    assert words in refused(lambda: edge_shares(sizes))


def small_bank(llama: EdgeLM) -> EdgeBank:
    return edge_bank(llama, [text(7), text(4)], ["a", "b"], [0.01, 0.1, 0.5], ModelId("tiny", None, "0"))


def test_a_bank_survives_its_file_and_fits_its_texts(llama: EdgeLM, tmp_path: Path) -> None:
    bank = small_bank(llama)
    bank.save(tmp_path / "bank.safetensors")
    loaded = load_bank(tmp_path / "bank.safetensors")
    assert isinstance(loaded, EdgeBank)
    assert all(a.equal(b) for x, y in zip(bank.kept, loaded.kept, strict=True) for a, b in zip(x, y, strict=True))
    assert (loaded.shares, loaded.n_edges, loaded.model, loaded.method) == (
        bank.shares, bank.n_edges, bank.model, "s-trace",
    )  # fmt: skip
    loaded.require_edges(0, importance(llama, text(7)).graph)
    assert "is damaged" in refused(lambda: loaded.require_edges(1, importance(llama, text(5)).graph))


def test_files_that_are_no_banks_are_refused(llama: EdgeLM, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_text("nothing")
    assert "cannot read the mask file" in refused(lambda: load_bank(tmp_path / "x.safetensors"))
    small_bank(llama).save(tmp_path / "bank.safetensors")
    assert "is not a mask file" in refused(lambda: ml.Mask.load(tmp_path / "bank.safetensors"))
    content = bytearray((tmp_path / "bank.safetensors").read_bytes())
    (tmp_path / "cut.safetensors").write_bytes(content[:-40])
    assert "cut.safetensors" in refused(lambda: load_bank(tmp_path / "cut.safetensors"))


def test_a_model_type_that_nodes_refuse_stays_refused() -> None:
    model_type, config, _ = REFUSED[0]
    refused(lambda: Layout.of(build(model_type, **config)))
