"""What edge graphs refuse, and the files of edge banks."""

import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT, refused, tiny_llama
from edge_reference import edge_lm, text
from families import BY_NAME, REFUSED, build
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaAttention

import masklearn as ml
from masklearn.edges import (
    EdgeBank,
    EdgeLM,
    edge_bank,
    edge_shares,
    importance,
    load_bank,
    require_memory,
    require_same_output,
    verified_edge_lm,
)
from masklearn.edges import attention as attention_module
from masklearn.edges.frozen import FrozenText
from masklearn.mask_file import ModelId
from masklearn.models import Layout

BYPASSING = ("falcon", "falcon new decoder", "falcon in sequence", "bloom", "gptj", "gpt_neo", "mpt", "codegen", "xglm")
NOT_SUMS = (
    "granite", "granite_swa", "bitnet", "doge", "afmoe", "beam", "laguna", "minicpm3", "nanochat", "openai-gpt",
    "opt norms after the sum",
)  # fmt: skip
"""Families whose vertices are not plain sums, most of them with attention through the interface."""
SELECTING = ("deepseek_v32",)
"""Families whose attention selects tokens."""


# --- models that are compiled, pruned, trained, or of a class of one's own -------------------------------------------


def test_compiled_layers_do_not_run_under_gates_of_edges() -> None:
    """Before and after the edges are verified: frozen norms and recorded attention would be compiled code's."""
    lm = tiny_llama(layers=2)
    ids = torch.arange(5, 14)
    model = verified_edge_lm(Layout.of(lm))
    found = importance(model, ids)
    gates = found.graph.gates(torch.rand(2, found.graph.n_places, generator=torch.Generator().manual_seed(0)))
    expected = model.hidden(ids, gates), FrozenText.of(model, ids).hidden(gates)
    lm.get_submodule("model.layers.1").compile(backend="eager")
    lm(ids[None])  # compiled here, without gates
    again = verified_edge_lm(Layout.of(lm))
    assert_close(importance(again, ids).weights, found.weights)
    assert_close((again.hidden(ids, gates), FrozenText.of(again, ids).hidden(gates)), expected)


def test_an_attention_that_adds_nothing_has_edges() -> None:
    lm = tiny_llama(layers=3)
    lm.get_parameter("model.layers.1.self_attn.o_proj.weight").zero_()
    assert verified_edge_lm(Layout.of(lm)).n_layers == 3


def test_a_model_in_training_mode_is_named_so(llama: EdgeLM) -> None:
    lm = tiny_llama(layers=2)
    model = edge_lm(lm)
    lm.train()
    for tries in (lambda: Layout.of(lm), lambda: importance(model, torch.arange(5, 14))):
        assert "Call lm.eval() first" in refused(tries)


def test_an_attention_class_of_ones_own_is_that_of_its_family() -> None:
    class OwnAttention(LlamaAttention):
        pass

    lm, plain = tiny_llama(layers=2), tiny_llama(layers=2)
    for layer in lm.model.layers:
        layer.self_attn.__class__ = OwnAttention
    ids = torch.arange(5, 14)
    found, expected = (importance(verified_edge_lm(Layout.of(one)), ids).weights for one in (lm, plain))
    assert_close(found, expected)


def test_a_bank_refuses_subgraphs_of_other_sizes(llama: EdgeLM) -> None:
    texts, model = [torch.arange(5, 14)], ModelId("a model", None, "f00d")
    choices = {
        "3 edges were chosen for text a, whose shares are 10": lambda ids, found: [torch.arange(3)],
        "torch.bool values edges": lambda ids, found: [torch.ones(10, dtype=torch.bool)],
    }
    shares = [10 / importance(llama, texts[0]).graph.n_edges]
    for words, choose in choices.items():
        assert words in refused(lambda choose=choose: edge_bank(llama, texts, ["a"], shares, model, choose))
    assert "1 texts and 2 names" in refused(lambda: edge_bank(llama, texts, ["a", "b"], shares, model))
    assert "0 texts" in refused(lambda: edge_bank(llama, [], [], shares, model))
    assert "asks for 3 edges" in refused(lambda: edge_bank(llama, texts, ["a"], [3], model))
    unsorted = edge_bank(llama, texts, ["a"], [0.5, 0.1], model)
    assert unsorted.shares == (0.1, 0.5) and len(unsorted.kept[0][0]) < len(unsorted.kept[0][1])


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


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in (*BYPASSING, *NOT_SUMS, *SELECTING)])
def test_all_other_families_have_edges(name: str) -> None:
    """Beyond the checks at loading, on another text: open gates change nothing, closed attention and MLP edges do."""
    edge_lm, ids = verified_edge_lm(Layout.of(BY_NAME[name].build())), torch.arange(5, 14)
    graph = importance(edge_lm, ids).graph
    kept = [graph.exists.nonzero()[:, 0], (graph.exists & graph.is_residual).nonzero()[:, 0]]
    with torch.no_grad():
        whole, streams = edge_lm.hidden(ids, graph.gates(graph.masks(kept)))
    full = edge_lm.full(ids)
    assert_close(whole, full, atol=1e-4, rtol=1e-4)
    assert (streams - full).norm() > 1e-2 * full.norm()


def test_the_page_of_families_says_which_have_no_edges() -> None:
    docs = (ROOT / "docs" / "families.md").read_text().split("## Edges", 1)[1].split("\n## ", 1)[0]
    refused_names = set(re.findall(r"`([^`]+)`", docs)) & set(BY_NAME)
    assert refused_names == {*BYPASSING, *NOT_SUMS, *SELECTING}
    assert f"{len(BY_NAME) - len(refused_names)} of the {len(BY_NAME)} builds" in docs


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
    graph = importance(llama, text(7)).graph
    loaded.require_graph(0, graph.n_tokens, graph.exists)
    other = importance(llama, text(5)).graph
    assert "is damaged" in refused(lambda: loaded.require_graph(1, other.n_tokens, other.exists))


def test_files_that_are_no_banks_are_refused(llama: EdgeLM, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_text("nothing")
    assert "cannot read the mask file" in refused(lambda: load_bank(tmp_path / "x.safetensors"))
    small_bank(llama).save(tmp_path / "bank.safetensors")
    assert "it holds edges of single texts" in refused(lambda: ml.Mask.load(tmp_path / "bank.safetensors"))
    content = bytearray((tmp_path / "bank.safetensors").read_bytes())
    (tmp_path / "cut.safetensors").write_bytes(content[:-40])
    assert "cut.safetensors" in refused(lambda: load_bank(tmp_path / "cut.safetensors"))


def test_a_model_type_that_nodes_refuse_stays_refused() -> None:
    model_type, config, _ = REFUSED[0]
    message = refused(lambda: Layout.of(build(model_type, **config)))
    assert len(message.splitlines()) == 1 and type(build(model_type, **config)).__name__ in message
