"""Masks as hooks of TransformerLens and nnsight: the same logits as `gated`, where these are installed."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, refused, tiny_gpt2, tiny_llama
from families import BY_NAME
from safetensors.torch import save_file
from test_export import ablations
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.mask_file import ModelId

ABLATION_NAMES = ["zero", "mean", "learned"]
MAX_GAP = 1e-4


def bank(graph: ml.NodeGraph, ablation: ml.Ablation = ml.Ablation()) -> ml.Mask:
    """A random mask of half the nodes; layer 1 has no open head, layer 0 all of them."""
    gates = graph.by_layer(torch.rand(graph.n_nodes, generator=torch.Generator().manual_seed(0)) < 0.5)
    gates[1, :-1], gates[0, :-1] = False, True
    sizes, scores = gates.sum().view(1), torch.zeros(1, 1, graph.n_nodes)
    return ml.Mask(gates.flatten()[None, None], scores, sizes, graph, ModelId("a model", None, "f"), ablation=ablation)


def texts() -> Tensor:
    return torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))


def expected_logits(lm: PreTrainedModel, mask: ml.Mask, ablation: ml.Ablation) -> Tensor:
    with ml.gated(lm, mask.mask[0, 0], ablation), torch.no_grad():
        return lm(texts()).logits


def test_hooks_replace_what_closed_nodes_emit() -> None:
    """By hand: two heads of width 2, of which the second is closed, and an MLP of one number."""
    graph = ml.NodeGraph(1, 2)
    values = ml.Ablation("mean", (torch.tensor([[[[8.0, 8.0], [5.0, 6.0]]]]),), (torch.tensor([[[[7.0]]]]),))
    mask = ml.Mask(
        torch.tensor([[[True, False, False]]]), torch.zeros(1, 1, 3), torch.tensor([1]), graph,
        ModelId("a model", None, "f"), ablation=values,
    )  # fmt: skip
    (z_point, z_hook), (mlp_point, mlp_hook) = mask.hooks("transformer_lens")
    assert (z_point, mlp_point) == ("blocks.0.attn.hook_z", "blocks.0.hook_mlp_out")
    z = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    assert z_hook(z).tolist() == [[[1, 2, 5, 6]]]
    assert z_hook(z.view(1, 1, 2, 2), hook=None).tolist() == [[[[1, 2], [5, 6]]]]
    assert mlp_hook(torch.tensor([[[3.0]]])).tolist() == [[[7]]]
    (_, z_hook), _ = mask.hooks("transformer_lens", ablation=ml.Ablation())
    assert z_hook(z).tolist() == [[[1, 2, 0, 0]]]
    layer = SimpleNamespace(self_attn=SimpleNamespace(o_proj=SimpleNamespace(input=z)), mlp=SimpleNamespace(output=z))
    model = SimpleNamespace(model=SimpleNamespace(layers=[layer]))
    mask.hooks("nnsight", ablation=ml.Ablation())(model)
    assert layer.self_attn.o_proj.input.tolist() == [[[1, 2, 0, 0]]]
    assert not layer.mlp.output.any()


def test_hooks_that_cannot_be_given_are_refused() -> None:
    graph = ml.NodeGraph(2, 2)
    mask = bank(graph)
    assert "transformer_lens, nnsight" in refused(lambda: mask.hooks("baukit"))
    assert "has no mask of 5 nodes" in refused(lambda: mask.hooks("nnsight", s=5))
    assert "ablation=MaskedLM" in refused(lambda: bank(graph, ml.Ablation("resample")).hooks("nnsight"))
    two = ml.Mask(
        torch.eye(6).bool().cumsum(0).bool()[None, :2], torch.zeros(1, 1, 6), torch.tensor([1, 2]), graph, mask.model
    )
    assert "has 2 sizes" in refused(lambda: two.hooks("nnsight"))
    assert "its family is not known" in refused(lambda: mask.hooks("nnsight")(SimpleNamespace()))


@pytest.mark.tools
@pytest.mark.parametrize("kind", ABLATION_NAMES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_the_bridge_of_transformer_lens_gives_the_same_logits(name: str, kind: str) -> None:
    lens = pytest.importorskip("transformer_lens", reason="pip install transformer-lens")
    lm, other = BY_NAME[name].build(), BY_NAME[name].build()
    mask, ablation = bank(ml.NodeGraph.of(lm)), ablations(lm)[kind]
    expected = expected_logits(lm, mask, ablation)
    bridge = lens.TransformerBridge.boot_transformers(
        "of this test", hf_model=other, tokenizer=ml.load_tokenizer(), device="cpu"
    )
    with torch.no_grad():
        found = bridge.run_with_hooks(texts(), fwd_hooks=mask.hooks("transformer_lens", ablation=ablation))
        assert (bridge(texts()) - expected).abs().max() > 1e-2
    assert_close(found, expected, atol=MAX_GAP, rtol=0)


@pytest.mark.tools
@pytest.mark.parametrize("kind", ABLATION_NAMES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gemma3_text", "olmo2", "gpt_neox"])
def test_nnsight_gives_the_same_logits(name: str, kind: str) -> None:
    nnsight = pytest.importorskip("nnsight", reason="pip install nnsight")
    lm = BY_NAME[name].build()
    mask, ablation = bank(ml.NodeGraph.of(lm)), ablations(lm)[kind]
    expected = expected_logits(lm, mask, ablation)
    model, edit, ids = nnsight.NNsight(lm), mask.hooks("nnsight", ablation=ablation), texts()
    with torch.no_grad(), model.trace(ids):
        edit(model)
        found = model.output.logits.save()
    assert_close(found, expected, atol=MAX_GAP, rtol=0)


@pytest.mark.peers
@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_a_hooked_transformer_gives_the_same_logits(build: Any, tmp_path: Path) -> None:
    """The class that TransformerLens had until version 3, with weights converted without folding."""
    python = os.environ.get("PEERS_PYTHON")
    if not python:
        pytest.skip("set PEERS_PYTHON to a Python with TransformerLens 2")
    lm: PreTrainedModel = build()
    mask, mean = bank(ml.NodeGraph.of(lm)), ablations(lm)["mean"]
    lm.save_pretrained(tmp_path / "lm")
    save_file({"mask": mask.mask[0, 0]} | mean.to_tensors(), tmp_path / "values.safetensors")
    arguments = [ROOT / "masklearn", tmp_path / "lm", tmp_path / "values.safetensors", json.dumps(texts().tolist())]
    command = [python, str(ROOT / "tests" / "peers_lens.py"), *map(str, arguments), json.dumps(mask.graph.names)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    for theirs, ablation in zip(found, (ml.Ablation(), mean), strict=True):
        gap = theirs.log_softmax(-1) - expected_logits(lm, mask, ablation).log_softmax(-1)
        assert gap.abs().max() < MAX_GAP  # their conversion centres the logits
