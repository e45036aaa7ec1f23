"""Masks in the files of circuit tools: read by hand here, and by EAP-IG's own code where there is a checkout of it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Run, refused, tiny_gpt2, tiny_llama
from families import FAMILIES, Family
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

import masklearn as ml
from masklearn.circuit_json import eap_circuit, edge_pruning_edges
from masklearn.cli import export
from masklearn.edges.sites import find_sites
from masklearn.export import to_circuits
from masklearn.export.circuits import reads_in_parallel
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM
from masklearn.models import Layout

SMALL_GRAPH = ml.NodeGraph(2, 2)
OPEN = torch.tensor([True, False, True, False, True, False])
"""a0.h0 and m0, then a1.h1."""
A_MODEL = ModelId("a model", None, "f")


def bank(masks: list[list[int]], graph: ml.NodeGraph = SMALL_GRAPH) -> ml.Mask:
    mask = torch.tensor(masks, dtype=torch.bool)[None]
    scores = torch.arange(mask.numel(), dtype=torch.float32).view(mask.shape)
    return ml.Mask(mask, scores, mask[0].sum(-1), graph, A_MODEL)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.name != "bloom"], ids=lambda f: f.name)
def test_circuits_are_parallel_where_the_layers_of_the_model_are(family: Family) -> None:
    """By the config, as by the modules that read and write the stream; BLOOM's modules add to it themselves."""
    lm = family.build()
    try:
        sites = find_sites(Layout.of(lm))
    except ml.UserError:
        pytest.skip("its layers are not built as one attention and one MLP")
    assert reads_in_parallel(lm.config) == sites.parallel


def test_the_edges_of_a_circuit_by_hand() -> None:
    """Every open node reads the input and all open nodes before it; in parallel, an MLP not the heads of its layer."""
    circuit = eap_circuit(SMALL_GRAPH, OPEN, torch.arange(6.0) - 3, 24, parallel=False)  # EAP-IG ranks by magnitude
    into_heads = {f"{source}->{head}<{read}>" for read in "qkv" for source, head in (
        ("input", "a0.h0"), ("input", "a1.h1"), ("a0.h0", "a1.h1"), ("m0", "a1.h1"))}  # fmt: skip
    others = {"input->m0", "a0.h0->m0", "input->logits", "a0.h0->logits", "m0->logits", "a1.h1->logits"}
    assert set(circuit["edges"]) == into_heads | others
    assert circuit["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 24}
    assert circuit["nodes"]["a1.h1"] == {"in_graph": True, "score": 4.0}
    assert circuit["nodes"]["m1"] == {"in_graph": False, "score": 5.0}
    parallel = eap_circuit(SMALL_GRAPH, OPEN, torch.arange(6.0), 24, parallel=True)
    assert set(circuit["edges"]) - set(parallel["edges"]) == {"a0.h0->m0"}


def test_edge_pruning_names_embeddings_apart() -> None:
    only = torch.tensor([False, False, False, False, True, False])
    assert edge_pruning_edges(SMALL_GRAPH, only, False, positions=True, n_kv_heads=2) == [
        *(["tok_embeds", "a1.h1.q"], ["pos_embeds", "a1.h1.q"], ["tok_embeds", "a1.h1.k"], ["pos_embeds", "a1.h1.k"]),
        *(["tok_embeds", "a1.h1.v"], ["pos_embeds", "a1.h1.v"]),
        *(["tok_embeds", "resid_post"], ["pos_embeds", "resid_post"], ["a1.h1", "resid_post"]),
    ]
    without = edge_pruning_edges(SMALL_GRAPH, only, False, positions=False, n_kv_heads=2)
    assert without == [[start, end] for start, end in (
        ("embeds", "a1.h1.q"), ("embeds", "a1.h1.k"), ("embeds", "a1.h1.v"), ("embeds", "resid_post"),
        ("a1.h1", "resid_post"))]  # fmt: skip


def test_edge_pruning_numbers_keys_and_values_by_their_own_heads() -> None:
    """As `reader_idx_to_name` of its Llama does. Heads that share them read by one edge."""
    both = torch.tensor([False, False, False, True, True, False])
    found = edge_pruning_edges(SMALL_GRAPH, both, False, positions=False, n_kv_heads=1)
    assert [end for start, end in found if start == "embeds"] == [
        "a1.h0.q", "a1.h0.k", "a1.h0.v", "a1.h1.q", "resid_post",
    ]  # fmt: skip


def test_a_circuit_comes_back_as_the_mask_it_was(tmp_path: Path) -> None:
    mask = bank([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0]])
    files = to_circuits(mask, tiny_llama().config, tmp_path / "out")
    assert [file.name for file in files] == ["circuit-1.json", "circuit-3.json"]
    back = ml.Mask.from_eap(files[1], A_MODEL)
    assert torch.equal(back.select(3), mask.select(3))
    assert torch.equal(back.scores[0, 0], mask.scores[0, 1] - mask.scores[0, 1].min())
    assert back.ablation.name == "resample"
    cut = ml.Mask.from_eap(files[1], A_MODEL, sizes=[1, 2])
    assert cut.select(2).tolist() == [False] * 4 + [True] * 2  # the highest scores
    cut.save(tmp_path / "mask.safetensors")
    assert torch.equal(ml.Mask.load(tmp_path / "mask.safetensors").mask, cut.mask)


def test_nested_masks_are_one_ranking_for_mib_and_others_one_file_each(tmp_path: Path) -> None:
    config = tiny_llama().config
    (file,) = to_circuits(bank([[1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0]]), config, tmp_path / "nested", "mib")
    content = json.loads(file.read_text())
    scores = [content["nodes"][name]["score"] for name in SMALL_GRAPH.names]
    assert [int(score) for score in scores] == [2, 0, 1, 0, 0, 0]
    assert scores[1] < scores[3] < scores[4] < scores[5]  # at other cuts, by the scores that were learned
    assert content["edges"] == {}
    assert len(to_circuits(bank([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]), config, tmp_path / "other", "mib")) == 2


def test_what_is_not_a_circuit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    for text, reason in (("{", "cannot read"), ("{}", "no 'cfg'"), ("[]", "cannot read")):
        file.write_text(text)
        assert reason in refused(lambda: ml.Mask.from_eap(file, A_MODEL))
    file.write_text(json.dumps(eap_circuit(SMALL_GRAPH, OPEN & False, torch.zeros(6), 24, False)))
    assert "no node is in this circuit" in refused(lambda: ml.Mask.from_eap(file, A_MODEL))


def test_graphs_of_edges_are_not_masks_of_nodes(tmp_path: Path) -> None:
    """EAP-IG scores edges by default: its nodes then have no score, and a circuit leaves out edges between them."""
    content, file = eap_circuit(SMALL_GRAPH, OPEN, torch.arange(6.0), 24, False), tmp_path / "graph.json"
    content["edges"]["a0.h0->m0"]["in_graph"] = False
    file.write_text(json.dumps(content))
    message = refused(lambda: ml.Mask.from_eap(file, A_MODEL))
    assert "it leaves out 1 of those between its nodes, such as a0.h0->m0" in message
    assert ml.Mask.from_eap(file, A_MODEL, sizes=[2]).select(2).tolist() == [False] * 4 + [True] * 2
    del content["nodes"]["m0"]["score"]
    file.write_text(json.dumps(content))
    assert "m0 has no score to cut by" in refused(lambda: ml.Mask.from_eap(file, A_MODEL, sizes=[2]))


@pytest.mark.parametrize("score", [float("nan"), float("-inf"), 1e39])
def test_a_score_that_is_not_finite_is_refused(score: float, tmp_path: Path) -> None:
    """NaN would rank first."""
    content = eap_circuit(SMALL_GRAPH, OPEN, torch.arange(6.0), 24, False)
    content["nodes"]["m0"]["score"] = score
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(content))
    assert "graph.json: the score of m0 is " in refused(lambda: ml.Mask.from_eap(file, A_MODEL, sizes=[1]))


@pytest.mark.parametrize("form", ["eap", "mib", "edge-pruning", "list"])
def test_the_command_writes_every_format(
    run: Run, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--mask", str(run.folder / "mask.safetensors"), "--to", form]
    assert export([*args, str(tmp_path / "out")]) == 0
    assert ("these masks were learned under zero ablation" in capsys.readouterr().out) == (form in ("eap", "mib"))
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) in ((1, 3) if form == "mib" else (3,))
    if form == "list":
        mask = ml.Mask.load(run.folder / "mask.safetensors")
        found = json.loads((tmp_path / "out" / "circuit-18.json").read_text())
        assert found == [name for name, is_open in zip(mask.graph.names, mask.select(18), strict=True) if is_open]


# --- EAP-IG's own code ------------------------------------------------------------------------------------------------


def half(graph: ml.NodeGraph, seed: int) -> Tensor:
    return torch.rand(graph.n_nodes, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.peers
@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_eap_ig_computes_our_faithfulness_from_our_file(build: Any, tmp_path: Path) -> None:
    """Their `Graph.from_json` and `evaluate_graph` on the same weights, closed nodes at the corrupted text's values."""
    checkout, python = os.environ.get("PEERS_EAP"), os.environ.get("PEERS_PYTHON")
    if not checkout or not python:
        pytest.skip("set PEERS_EAP to a checkout of hannamw/EAP-IG, and PEERS_PYTHON to a Python with its packages")
    lm: PreTrainedModel = build()
    graph, texts = ml.NodeGraph.of(lm), torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    clean, corrupted = texts[:1], texts[1:]
    lm.save_pretrained(tmp_path / "lm")
    masks = [half(graph, seed) for seed in range(3)] + [torch.ones(graph.n_nodes, dtype=torch.bool)]
    masks = sorted({int(mask.sum()): mask for mask in masks}.items())
    mask = bank([gates.tolist() for _, gates in masks], graph)
    files = to_circuits(mask, AutoConfig.from_pretrained(tmp_path / "lm"), tmp_path / "circuits")
    command = [python, str(ROOT / "tests" / "peers_eap.py"), checkout, str(tmp_path / "lm"), json.dumps(texts.tolist())]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    resampled = MaskedLM(lm, ml.Ablation("resample")).resampled(corrupted)
    for theirs, (_, gates) in zip(found, masks, strict=True):
        with ml.gated(lm, gates, resampled), torch.no_grad():
            ours = lm(clean).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
