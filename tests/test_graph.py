import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import masklearn as ml
from masklearn.graph import Node, NodeGraph


def test_nodes_of_two_layers_with_two_heads() -> None:
    graph = NodeGraph(n_layers=2, n_heads=2)
    assert graph.names == ("a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
    assert graph.nodes[2] == Node(0, None)
    assert graph.n_nodes == 6


@given(layers=st.integers(1, 40), heads=st.integers(1, 40))
def test_names_determine_the_graph(layers: int, heads: int) -> None:
    graph = NodeGraph(layers, heads)
    assert NodeGraph.from_names(graph.names) == graph
    assert len(graph.names) == graph.n_nodes == len(set(graph.names))
    assert all(Node.parse(name).name == name for name in graph.names)


@pytest.mark.parametrize("names", [[], ["a0.h0"], ["m0", "a0.h0"], ["a0.h0", "m0", "m1"], ["a0.h0", "x"]])
def test_names_of_an_incomplete_graph_are_rejected(names: list[str]) -> None:
    with pytest.raises(ml.UserError):
        NodeGraph.from_names(names)


def test_heads_and_mlps_are_counted_separately() -> None:
    graph = NodeGraph(2, 2)
    mask = torch.tensor([1, 1, 0, 0, 1, 1]).bool()
    heads, mlps = graph.count(mask)
    assert (heads, mlps) == (3, 1)


def test_graph_of_a_loaded_model() -> None:
    graph = ml.NodeGraph.of(ml.load_lm())
    assert graph.names[:2] == ("a0.h0", "a0.h1")
    assert graph.names[8] == "m0"
