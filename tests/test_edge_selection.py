"""Edges of a subgraph: importance, s-Trace, its controls, and learning."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import copying_llama, without_mlps
from edge_reference import BUILDS, LlamaReference, all_edges, edge_lm, grow_slowly, text
from families import BY_NAME
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import masklearn as ml
from masklearn.edges import (
    EdgeGraph,
    EdgeLM,
    edge_bank,
    edge_counts,
    edge_shares,
    grow,
    importance,
    inverse,
    live,
    longest_prefix,
    nodes_used,
    nucleus,
    random_connected,
    shares_by_kind,
    threshold,
    verified_edge_lm,
    with_expected_streams,
    with_streams,
)
from masklearn.mask_file import ModelId
from masklearn.models import Layout
from masklearn.training.edge_learner import EdgeLearnerConfig, learn_edges

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
    """Attention copies its normed source, and MLPs add nothing."""
    lm = copying_llama()
    without_mlps(lm)
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


def test_sizes_too_small_for_a_path_keep_the_subgraphs_of_s_trace(llama: EdgeLM) -> None:
    found = importance(llama, text(6))
    shares = [1 / found.graph.n_edges, (found.graph.path_edges - 1) / found.graph.n_edges]
    kept = learn_edges(llama, text(6), found, shares, EdgeLearnerConfig(steps=2))
    order = grow(found.graph, found.weights, found.graph.path_edges)
    assert [edges.tolist() for edges in kept] == [sorted(order[:n].tolist()) for n in (1, found.graph.path_edges - 1)]


# --- streams ----------------------------------------------------------------------------------------------------------


def test_an_attention_edge_brings_the_stream_of_its_source_by_hand() -> None:
    """Two sequential layers, one head, three tokens: the last token reads token 1 in the second layer."""
    graph = EdgeGraph.causal(2, 1, 3)
    ids = graph.gates(torch.arange(graph.n_places)[None])
    read = ids.attention[0, 1, 0, 2, 1]
    chosen = torch.zeros(graph.n_places, dtype=torch.bool)
    chosen[torch.stack([read, ids.mlp[0, 0, 0], ids.attention[0, 0, 0, 1, 0]])] = (
        True  # token 0's MLP is read by nothing
    )
    own = [*ids.residual_attention[0, :, 2], *ids.residual_mlp[0, :, 2]]
    of_source = [ids.residual_attention[0, 0, 1], ids.residual_mlp[0, 0, 1]]  # not in the layer that reads it
    expected = sorted(map(int, [read, ids.attention[0, 0, 0, 1, 0], *own, *of_source]))
    assert with_streams(graph, chosen).nonzero()[:, 0].tolist() == expected
    # four edges for the last token's stream, and two more and the edge itself: six places do not suffice for it
    order = torch.stack([read, ids.mlp[0, 1, 2], ids.mlp[0, 0, 2]])
    kept, length = longest_prefix(graph, order, 6)
    assert length == 0 and kept.tolist() == sorted(map(int, [*own, ids.mlp[0, 1, 2], ids.mlp[0, 0, 2]]))
    kept, length = longest_prefix(graph, order, 8)
    assert length == 2 and kept.tolist() == sorted(map(int, [*own, *of_source, read, ids.mlp[0, 1, 2]]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(2, 5), st.booleans(), st.integers(0, 10**6), st.floats(0, 1))
def test_every_edge_beside_its_streams_is_live_and_more_edges_need_no_fewer(
    layers: int, heads: int, tokens: int, parallel: bool, seed: int, share: float
) -> None:
    graph = EdgeGraph.causal(layers, heads, tokens, parallel)
    uniform = torch.rand(graph.n_places, generator=torch.Generator().manual_seed(seed))
    fewer, more = (with_streams(graph, (uniform < s) & graph.exists) for s in (share / 2, share))
    assert torch.equal(live(graph, [more.nonzero()[:, 0]])[0], more)
    assert (fewer <= more).all() and fewer.sum() >= graph.path_edges
    order = graph.exists.nonzero()[:, 0]
    order = order[~graph.is_residual[order]]
    order = order[uniform[order].argsort()]
    n_edges = graph.path_edges + int(share * (graph.n_edges - graph.path_edges))
    kept, length = longest_prefix(graph, order, n_edges)
    assert len(kept) <= n_edges
    flags = torch.zeros(graph.n_places, dtype=torch.bool)
    flags[order[: length + 1]] = True
    assert length == len(order) or with_streams(graph, flags).sum() > n_edges
    certain = with_expected_streams(graph, (more & ~graph.is_residual).float()[None])
    torch.testing.assert_close(certain[0], more.float(), atol=1e-5, rtol=0)


def test_the_probability_of_a_stream_is_that_of_an_open_reader_by_hand() -> None:
    """Token 1's stream: its MLP in layer 0 reads level 1, and the last token's attention in layer 1 reads level 2."""
    graph = EdgeGraph.causal(2, 1, 3)
    flat = torch.zeros(1, graph.n_places)
    gates = graph.gates(flat)
    gates.mlp[0, 0, 1], gates.attention[0, 1, 0, 2, 1] = 0.25, 0.5
    found = graph.gates(with_expected_streams(graph, flat))
    torch.testing.assert_close(found.residual_attention[0], torch.tensor([[0, 1 - 0.75 * 0.5, 1], [0, 0, 1]]))
    torch.testing.assert_close(found.residual_mlp[0], torch.tensor([[0, 0.5, 1], [0, 0, 1]]))
    assert torch.equal(found.mlp, gates.mlp) and torch.equal(found.attention, gates.attention)
