"""Positions: gates on nodes at single tokens, what they do, and learning them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import copying_llama, refused, tiny_llama, without_mlps
from edge_reference import edge_lm, text
from families import BY_NAME
from torch import Tensor
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.edges import EdgeGraph
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM
from masklearn.positions import PositionGraph, PositionLM, attribution, best_first, norm
from masklearn.selection.attribution import attribution as node_attribution
from masklearn.selection.scorer import MaskScorer
from masklearn.shares import resolve_shares, share_counts
from masklearn.text_bank import EdgeBank, PositionBank, load_bank
from masklearn.training.position_learner import learn_positions
from masklearn.training.text_learner import TextLearnerConfig

BUILDS = ("llama", "gpt2", "gpt_neox", "gemma3_text", "olmo2", "falcon", "opt")
"""Grouped heads, biases, parallel layers, norms after the branches, sliding windows, and attention of their own."""


def position_lm(lm: PreTrainedModel) -> PositionLM:
    return PositionLM(MaskedLM(lm))


@pytest.fixture(scope="module")
def llama() -> PositionLM:
    return position_lm(tiny_llama(layers=2))


def uniform(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# --- gates ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand() -> PositionLM:
    """Attention copies its normed source, and MLPs add nothing."""
    lm = copying_llama()
    model = position_lm(lm)
    without_mlps(lm)  # after the verification, which wants MLPs that do something
    return model


@pytest.mark.parametrize(
    ("kept", "state"),
    [
        ([], (1, -1)),
        ([(0, 1)], (1 + 1, -1 + 0)),  # in layer 0 token 1 adds half of (1, 1) and half of (1, -1)
        ([(1, 1)], (1 + 1, -1 + 0)),  # in layer 1 it adds the same, as neither stream has changed
        ([(0, 0), (1, 1)], (1 + 1, -1 + 0)),  # token 0 becomes (2, 2), which the norm makes (1, 1) again
        ([(0, 1), (1, 1)], (2 + 0.5 + 1 / 2.5**0.5, -1 + 0.5 - 0.5 / 2.5**0.5)),  # it reads half of (2, -1) / sqrt(2.5)
    ],
)
def test_two_layers_by_hand(by_hand: PositionLM, kept: list[tuple[int, int]], state: tuple[float, float]) -> None:
    """Heads of single tokens, given as (layer, token); everything else is closed."""
    gates = torch.zeros(1, 2, 4)
    for layer, token in kept:
        gates[0, token, 2 * layer] = 1
    final = torch.tensor(state, dtype=torch.float32)
    expected = final / final.square().mean().sqrt()  # the norm before the output
    assert torch.allclose(by_hand.hidden(torch.tensor([3, 4]), gates)[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", BUILDS)
def test_equal_gates_of_all_tokens_are_gates_of_nodes_and_open_ones_change_nothing(name: str) -> None:
    model = position_lm(BY_NAME[name].build())
    nodes = uniform((4, model.layout.graph.n_nodes))
    nodes[0], nodes[1] = 1, nodes[1].round()
    found = model.hidden(text(6), nodes[:, None].expand(-1, 6, -1))
    expected = model.masked_lm(text(6)[None], torch.tensor([5]), nodes[:, None])[:, 0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found[0], model.full(text(6)), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3_text", "olmo2"])
def test_gates_of_tokens_are_gates_of_all_edges_into_them(name: str) -> None:
    """The edges of a head into a token are gated after its softmax, those of an MLP at its output."""
    model, n_tokens = position_lm(BY_NAME[name].build()), 6
    edges = edge_lm(model.layout.lm)
    graph = model.layout.graph
    gates = uniform((3, n_tokens, graph.n_nodes)).round()
    grid = graph.by_layer(gates).movedim(1, -1)  # (rows, layers, heads + 1, tokens)
    whole = EdgeGraph.causal(graph.n_layers, graph.n_heads, n_tokens, edges.sites.parallel)
    of_edges = whole.gates(torch.ones(3, whole.n_places))
    of_edges.attention[:] = grid[:, :, :-1, :, None]
    of_edges.mlp[:] = grid[:, :, -1]
    found = model.hidden(text(n_tokens), gates)
    assert torch.allclose(found, edges.hidden(text(n_tokens), of_edges), atol=1e-5)
    assert not torch.allclose(found, model.hidden(text(n_tokens), gates.flip(1)), atol=1e-3)


@pytest.mark.parametrize("name", BUILDS)
def test_closing_a_position_changes_the_output_if_and_only_if_a_path_leads_there(name: str) -> None:
    model = position_lm(BY_NAME[name].build())
    graph = model.graph(text())
    rows = torch.cat([torch.ones(1, graph.n_places), 1 - torch.eye(graph.n_places)])
    hidden = model.hidden(text(), graph.gates(rows)).detach()
    change = (hidden[1:] - hidden[0]).norm(dim=-1) / hidden[0].norm()
    assert change[~graph.exists].max() < 1e-6
    assert change[graph.exists].min() > 1e-6
    if name != "gemma3_text":  # whose window of three tokens leaves out some
        last_layer = graph.nodes.by_layer(graph.gates(graph.exists))[:, -1]
        assert not last_layer[:-1].any() and last_layer[-1].all()
        assert graph.n_positions == PositionGraph.count(graph.nodes, 4)


def test_sharp_attention_and_heads_that_add_nothing_hide_no_positions() -> None:
    """Weights that underflow to 0 have no gradient in the full model, but one as soon as other gates close."""
    lm = tiny_llama(layers=3)
    for layer in range(3):
        lm.get_parameter(f"model.layers.{layer}.self_attn.q_proj.weight").mul_(1e4)
        lm.get_parameter(f"model.layers.{layer}.self_attn.o_proj.weight")[:, :2] = 0
    model = position_lm(lm)
    graph = model.graph(text(7))
    assert graph.n_positions == PositionGraph.count(graph.nodes, 7)
    lm.config.sliding_window = 3  # of windows gradients tell, and never more than there are
    by_gradient = model.graph(text(7)).exists
    assert not (by_gradient & ~graph.exists).any() and by_gradient.sum() < graph.n_positions


def test_closed_positions_emit_zero_alone(llama: PositionLM) -> None:
    mean = llama.masked_lm.mean_ablation([(text()[None], torch.ones(1, 4, dtype=torch.bool))])
    assert "under mean ablation" in refused(lambda: PositionLM(MaskedLM(llama.layout.lm, mean)))


def test_what_is_no_text_is_refused(llama: PositionLM) -> None:
    edges = edge_lm(llama.layout.lm)
    mistakes = {
        "not shape (1, 4)": text()[None],
        "not list": text().tolist(),
        "a text has 0 tokens": text(0),
        "there is no token 1000000 among": torch.tensor([3, 10**6]),
    }
    for words, wrong in mistakes.items():
        for reads in (llama.full, llama.graph, edges.full, edges.record):
            assert words in refused(lambda wrong=wrong, reads=reads: reads(wrong))


def test_tokens_that_no_window_reaches_have_no_positions() -> None:
    """Two layers, the first with a window of three tokens, the second without: all first-layer positions count."""
    lm = BY_NAME["gemma3_text"].build()
    graph = position_lm(lm).graph(text(7))
    by_layer = graph.nodes.by_layer(graph.gates(graph.exists)).any(-1)  # (tokens, layers)
    assert by_layer[:, 0].all()
    lm.config.layer_types = ["sliding_attention", "sliding_attention"]
    windowed = type(lm)(lm.config).eval().requires_grad_(False)
    graph = position_lm(windowed).graph(text(7))
    assert graph.nodes.by_layer(graph.gates(graph.exists)).any(-1)[:, 0].tolist() == [False] * 4 + [True] * 3


def test_gates_of_tokens_do_not_fit_other_texts_or_a_cache(llama: PositionLM) -> None:
    lm, gates = llama.layout.lm, torch.ones(1, 4, llama.layout.graph.n_nodes)
    with ml.gated(lm, gates):
        assert "gates of 4 tokens do not fit texts of 6" in refused(lambda: lm(text(6)[None]))
        assert "without a cache" in refused(lambda: lm.generate(text(4)[None], max_new_tokens=2, do_sample=False))


def test_closed_mlps_are_skipped_only_where_no_token_needs_them(llama: PositionLM) -> None:
    """A forward without gradients, in which MLPs of closed rows do not run, equals one with gradients."""
    gates = uniform((3, 5, llama.layout.graph.n_nodes), 4).round()
    gates[1, :, -1] = 0  # no token
    gates[2, :3, -1] = 0
    with torch.no_grad():
        found = llama.hidden(text(5), gates)
    assert torch.allclose(found, llama.hidden(text(5), gates.requires_grad_()), atol=1e-6)


# --- scores, sizes and learning ---------------------------------------------------------------------------------------


def test_scores_of_nodes_are_sums_and_means_over_their_tokens(llama: PositionLM) -> None:
    ids, n_nodes = text(6), llama.layout.graph.n_nodes
    scored = torch.zeros(1, 6, dtype=torch.bool)
    scored[0, -1] = True
    batch = ml.data.Batch(ids[None], torch.ones_like(scored), scored, torch.tensor([0]), torch.tensor([0]))  # pyright: ignore
    scorer = MaskScorer(llama.masked_lm, [batch])
    by_position: list[tuple[Callable[[PositionLM, Tensor], Tensor], Tensor]] = [
        (attribution, node_attribution(scorer)[0]),
        (norm, 6 * ml.selection.attribution.norm(scorer)[0]),  # pyright: ignore
    ]
    for score, of_nodes in by_position:
        assert torch.allclose(score(llama, ids).view(6, n_nodes).sum(0), of_nodes, atol=1e-5)


def test_learned_subgraphs_have_their_sizes_and_are_nearer_to_the_full_model_than_their_start(
    llama: PositionLM,
) -> None:
    ids, shares = text(6), [0.0001, 0.1, 0.3, 1.0]
    graph = llama.graph(ids)
    kept = learn_positions(llama, ids, graph, shares, TextLearnerConfig(steps=40))
    counts = share_counts(shares, graph.n_positions)
    assert counts[0] == 1 and counts[-1] == graph.n_positions
    assert [len(positions.unique()) for positions in kept] == counts
    assert all(graph.exists[positions].all() for positions in kept)
    order = best_first(graph, attribution(llama, ids))

    def kl(subgraphs: list[Tensor]) -> Tensor:
        hidden = torch.cat([llama.hidden(ids, graph.gates(graph.masks(subgraphs))), llama.full(ids)[None]])
        logp = llama.layout.unembed(hidden).log_softmax(-1)
        return (logp[-1].exp() * (logp[-1] - logp[:-1])).sum(-1)

    learned, start = kl(kept), kl([order[:n] for n in counts])
    assert (learned <= start + 1e-6).all()
    assert learned[1:3].log().mean() < start[1:3].log().mean() - 0.3


def test_parts_and_nodes_of_a_subgraph_by_hand() -> None:
    """One layer of two heads, three tokens: token 0 keeps head 1, token 2 keeps head 1 and the MLP."""
    graph = PositionGraph(ml.NodeGraph(1, 2), torch.ones(9, dtype=torch.bool))
    kept = [torch.tensor([1, 7, 8])]
    assert graph.nodes_used(kept).tolist() == [[False, True, True]]
    assert graph.counts_by_part(kept).tolist() == [[[2, 1]]]
    assert graph.inverse(kept[0]).tolist() == [0, 2, 3, 4, 5, 6]


def test_a_bank_survives_its_file_and_fits_its_texts(llama: PositionLM, tmp_path: Path) -> None:
    def choose(input_ids: Tensor) -> tuple[int, list[Tensor]]:
        graph = llama.graph(input_ids)
        order = best_first(graph, norm(llama, input_ids))
        return graph.n_positions, [order[:n].sort().values for n in share_counts([0.1, 0.5], graph.n_positions)]

    bank = PositionBank.of_texts(
        [text(6), text(4)], ["a", "b"], [0.1, 0.5], llama.layout.graph, ModelId("tiny", None, "0"), choose, "norm"
    )
    bank.save(tmp_path / "bank.safetensors")
    loaded = load_bank(tmp_path / "bank.safetensors")
    assert isinstance(loaded, PositionBank)
    assert all(a.equal(b) for x, y in zip(bank.kept, loaded.kept, strict=True) for a, b in zip(x, y, strict=True))
    assert (loaded.shares, loaded.n_units, loaded.method) == ((0.1, 0.5), (35, 25), "norm")
    graph = llama.graph(text(6))
    loaded.require_graph(0, 6, graph.exists)
    assert "the positions of text b do not fit" in refused(lambda: loaded.require_graph(1, 6, graph.exists))
    assert "its graph is positions" in refused(lambda: EdgeBank.load(tmp_path / "bank.safetensors"))


def test_sizes_that_are_no_shares_are_refused() -> None:
    assert "asks for 8 positions" in refused(lambda: resolve_shares([8], "positions"))
    assert "with --model.graph positions give shares" in refused(lambda: resolve_shares("mib", "positions"))
