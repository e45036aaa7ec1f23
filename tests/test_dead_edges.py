"""Edges on no path from the text to the output, and what takes their places in subgraphs."""

from itertools import pairwise

import torch
from edge_reference import text
from hypothesis import example, given, settings
from hypothesis import strategies as st

from masklearn.edges import (
    EdgeGraph,
    EdgeLM,
    edge_bank,
    edge_counts,
    grow,
    importance,
    live,
    random_connected,
    refilled,
)
from masklearn.evaluation.text_report import N_RANDOM_SUBGRAPHS, random_seeds
from masklearn.mask_file import ModelId
from masklearn.training.edge_learner import EdgeLearnerConfig, learn_edges


def test_the_first_path_and_the_edges_beside_it_take_the_places_of_dead_edges_by_hand() -> None:
    """One head, two tokens and layers; growth reaches the text only with its sixth edge."""
    graph = EdgeGraph.causal(2, 1, 2)
    ids = graph.gates(torch.arange(graph.n_places)[None])
    attention, mlp, past_attention, past_mlp = ids.attention[0, :, 0], ids.mlp[0], *ids[2:]
    out, down = past_mlp[0, 1, 1], past_attention[0, 1, 1]
    first = [out, mlp[1, 1], down, mlp[0, 1], past_mlp[0, 0, 1], past_attention[0, 0, 1], attention[0, 1, 1]]
    rest = [edge for edge in graph.exists.nonzero()[:, 0] if edge not in torch.stack(first)]
    order = torch.stack([*first, *rest])
    kept = refilled(graph, order[:0], order, [3, 4, 5, 7, graph.n_edges])
    assert set(kept[0].tolist()) == set(order[:3].tolist())  # no path is so short
    path = [past_attention[0, 0, 1], mlp[0, 1], down, out]  # the way on from a vertex is by the first edge out of it
    assert set(kept[1].tolist()) == set(map(int, path))
    assert set(kept[2].tolist()) == set(map(int, [*path, past_mlp[0, 0, 1]]))
    assert set(kept[3].tolist()) == set(order[:7].tolist())
    assert kept[4].tolist() == graph.exists.nonzero()[:, 0].tolist()


@settings(max_examples=12, deadline=None)
@example(3, 3, 4, False, 6842)  # at 30 edges the next path is too long, and nothing beside the kept ones is left
@given(st.integers(1, 3), st.integers(3, 4), st.integers(2, 5), st.booleans(), st.integers(0, 10**6))
def test_refilled_subgraphs_have_their_sizes_live_edges_alone_and_are_those_of_growth_where_it_has_as_many(
    layers: int, heads: int, tokens: int, parallel: bool, seed: int
) -> None:
    graph = EdgeGraph.causal(layers, heads, tokens, parallel)
    weights = torch.rand(graph.n_places, generator=torch.Generator().manual_seed(seed)) ** 4
    order = grow(graph, weights, graph.n_edges)
    counts = [1, *range(graph.path_edges, graph.n_edges, 1 + graph.n_edges // 9), graph.n_edges]
    subgraphs = refilled(graph, order[:0], order, counts)
    assert [len(ids.unique()) for ids in subgraphs] == counts
    assert all(live(graph, [ids])[0][ids].all() for ids in subgraphs[1:])
    assert all(set(small.tolist()) <= set(large.tolist()) for small, large in pairwise(subgraphs[1:]))
    for n in counts[1:]:
        of_growth = live(graph, [order[:n]])[0].nonzero()[:, 0]
        if len(of_growth):
            assert torch.equal(refilled(graph, order[:0], order, [len(of_growth)])[0], of_growth)
        (from_dead,) = refilled(graph, order[:n], order, [n])
        assert live(graph, [from_dead])[0][from_dead].all() and set(of_growth.tolist()) <= set(from_dead.tolist())


def test_the_ends_of_edges_are_those_of_the_edges_into_each_vertex() -> None:
    for graph in (EdgeGraph.causal(2, 3, 4), EdgeGraph.causal(3, 2, 3, parallel=True)):
        for vertex in range(graph.n_tokens, graph.output + 1):
            ids, sources = graph.in_edges(vertex)
            assert torch.equal(graph.ends[0][ids], sources)
            assert (graph.ends[1][ids] == vertex).all()


def test_random_subgraphs_have_draws_of_their_own_for_every_text_and_size(llama: EdgeLM) -> None:
    """Grown with one seed, they would be nested."""
    seeds = [seed for text in range(3) for _, seed in random_seeds(text, 5)]
    assert sorted(seeds) == list(range(3 * 5 * N_RANDOM_SUBGRAPHS))
    graph = EdgeGraph.causal(2, 4, 6)
    for draws in zip(*[iter(random_seeds(0, 2))] * 2, strict=True):
        small, large = (set(random_connected(graph, (9, 40)[i], seed).tolist()) for i, seed in draws)
        assert not small <= large


def test_banks_of_s_trace_and_learned_subgraphs_hold_no_dead_edges(llama: EdgeLM) -> None:
    ids = text(6)
    found = importance(llama, ids)
    shares = [n / found.graph.n_edges for n in (found.graph.path_edges, 13, 40)]
    counts = edge_counts(shares, found.graph.n_edges)
    grown = grow(found.graph, found.weights, counts[-1])
    assert not all(live(found.graph, [grown[:n]])[0][grown[:n]].all() for n in counts)  # growth itself leaves some
    (of_bank,) = edge_bank(llama, [ids], ["a"], shares, ModelId("tiny", None, "0")).kept
    for kept in (of_bank, learn_edges(llama, ids, found, shares, EdgeLearnerConfig(steps=2))):
        assert [len(edges) for edges in kept] == counts
        assert all(live(found.graph, [edges])[0][edges].all() for edges in kept)
