"""Exported folders compute what gated models compute, without the weights of what is closed."""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refused, tiny_gpt2, tiny_llama
from families import BY_NAME, FAMILIES, Family
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

import masklearn as ml
from masklearn.cli import export
from masklearn.export import HFExport, subgraph_model, to_hf
from masklearn.export.anatomy import ANATOMIES
from masklearn.export.measurement import compare_costs
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM

VARIED = {"gpt2", "gpt_neox", "gptj", "opt", "falcon", "phi", "phi3", "llama", "gemma3_text", "olmo2", "qwen3_moe"}
"""Families that differ in how nodes are removed, for which every kind of mask is tried; one is tried for the others."""
REMOVABLE = [family for family in FAMILIES if family.model_type in ANATOMIES and not family.config.get("alibi")]
MIXED = [[1, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
"""Key-value heads that serve different numbers of queries and no MLP; then an MLP alone."""
HEADLESS_START = [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
"""No heads in the layer by which a cache counts its tokens; then a head alone."""
WITH_BIASES = {"gpt2", "gpt_neox", "gpt_neox in sequence", "opt", "opt norms after the sum", "phi", "llama",
               "llama biases, tied"}  # fmt: skip
"""Families whose attention and MLPs can have a bias at their end."""
EVEN = [[1, 0, 1, 0, 1], [0, 1, 0, 1, 1]]
"""As many heads in every layer, one of each group, and every MLP: a stock class holds that."""


def bank(lm: PreTrainedModel, rows: list[list[int]], ablation: ml.Ablation = ml.Ablation()) -> ml.Mask:
    """A bank of one mask, given as a row for each layer with the MLP last."""
    gates, graph = torch.tensor(rows, dtype=torch.bool).flatten(), ml.NodeGraph.of(lm)
    sizes, scores = gates.sum().view(1), torch.zeros(1, 1, graph.n_nodes)
    return ml.Mask(gates[None, None], scores, sizes, graph, ModelId("a model", None, "f"), ablation=ablation)


def ablations(lm: PreTrainedModel) -> dict[str, ml.Ablation]:
    """Zero, mean and learned ablation; the constants of the last are random."""
    ids = torch.randint(3, 50, (4, 9), generator=torch.Generator().manual_seed(2))
    mean = MaskedLM(lm).mean_ablation([(ids, torch.ones_like(ids, dtype=torch.bool))])
    torch.manual_seed(0)
    learned = (tuple(torch.randn_like(value) for value in values) for values in (mean.heads, mean.mlps))
    return {"zero": ml.Ablation(), "mean": mean, "learned": ml.Ablation("learned", *learned)}


def exported(lm: PreTrainedModel, mask: ml.Mask, folder: Path) -> tuple[HFExport, Any]:
    """The export, and its model as users load it."""
    export = to_hf(lm, None, mask, int(mask.sizes[0]), folder, time=False)
    smaller = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=not export.stock)
    return export, smaller.eval()


@pytest.mark.parametrize("family", REMOVABLE, ids=lambda family: family.name)
def test_the_logits_of_a_folder_are_those_of_the_gated_model(family: Family, tmp_path: Path) -> None:
    lm = family.build()
    found = ablations(lm)
    ids = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(5))
    cases = [("learned", MIXED), ("mean", HEADLESS_START), ("zero", MIXED)]
    for index, (name, rows) in enumerate(cases if family.model_type in VARIED else cases[:1]):
        mask = bank(lm, rows, found[name])
        export, smaller = exported(lm, mask, tmp_path / str(index))
        with torch.no_grad(), ml.gated(lm, mask.mask[0, 0], mask.ablation):
            expected = lm(ids).logits
        assert_close(smaller(ids).logits, expected, atol=1e-5 * expected.abs().max().clamp(min=1).item(), rtol=0)
        assert export.max_logit_gap < 1e-5  # with a cache and padding on the left
        assert not export.stock


def generated(lm: Any, ids: Tensor, real: Tensor, **options: Any) -> Tensor:
    torch.manual_seed(0)
    return lm.generate(ids, attention_mask=real, max_new_tokens=6, min_new_tokens=6, eos_token_id=None, **options)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "olmo2", "falcon", "opt"])
def test_a_folder_generates_what_the_gated_model_does(name: str, tmp_path: Path) -> None:
    lm = BY_NAME[name].build()
    mask = bank(lm, HEADLESS_START, ablations(lm)["mean"])
    _, smaller = exported(lm, mask, tmp_path / "out")
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(5))
    real = torch.ones_like(ids)
    real[0, :2] = 0
    for options in ({"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"do_sample": True}):
        with ml.gated(lm, mask.mask[0, 0], mask.ablation):
            expected = generated(lm, ids, real, **options)
        assert generated(smaller, ids, real, **options).tolist() == expected.tolist()
        assert generated(smaller, ids, real, use_cache=False, **options).tolist() == expected.tolist()


def test_what_is_closed_is_gone_and_a_key_value_head_goes_with_its_group(tmp_path: Path) -> None:
    """By hand: 4 query heads of width 8 in groups of 2, stream 24, MLP 40."""
    lm = tiny_llama(layers=2)
    rows = [[1, 0, 0, 0, 0], [0, 1, 1, 0, 1]]
    export, smaller = exported(lm, bank(lm, rows), tmp_path / "out")
    weights = {name: tuple(tensor.shape) for name, tensor in smaller.named_parameters()}
    first, second = "model.layers.0.self_attn", "model.layers.1.self_attn"
    assert weights[f"{first}.q_proj.weight"] == weights[f"{first}.k_proj.weight"] == (8, 24)
    assert weights[f"{first}.o_proj.weight"] == (24, 8)
    assert weights[f"{second}.q_proj.weight"] == weights[f"{second}.v_proj.weight"] == (16, 24)
    assert not any(name.startswith("model.layers.0.mlp") for name in weights)
    removed = 3 * 8 * 24 * 2 + 2 * 8 * 24 + 3 * 24 * 40 + 24 + 2 * 8 * 24 * 2  # the 24: the norm before the MLP
    assert export.before.parameters - export.after.parameters == removed
    assert export.before.cache_bytes == 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes
    assert export.after.cache_bytes == 3 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("name", "fused", "n_slices"),
    [
        ("falcon", "self_attention.query_key_value", 3 + 1 + 1),
        ("falcon new decoder", "self_attention.query_key_value", 3 + 2 + 2),
        ("phi3", "self_attn.qkv_proj", 3 + 2 + 2),
        ("gpt_neox", "attention.query_key_value", 3 + 3 + 3),
    ],
)
def test_a_matrix_of_queries_keys_and_values_is_narrowed(name: str, fused: str, n_slices: int, tmp_path: Path) -> None:
    """Three of four heads are left, which read one key-value head, two, or one each."""
    lm = BY_NAME[name].build()
    _, smaller = exported(lm, bank(lm, MIXED), tmp_path / "out")
    first, second = smaller.get_submodule(BY_NAME[name].module_paths[0])
    assert first.get_submodule(fused).weight.shape == (n_slices * 8, 32)
    assert not [*first.mlp.parameters()]
    assert [*second.mlp.parameters()]


@pytest.mark.parametrize("name", ["gpt2", "phi3", "llama"])
def test_a_folder_follows_when_its_attention_is_switched(name: str, tmp_path: Path) -> None:
    """One implementation builds the causal mask by itself, and another needs it from the model."""
    lm = BY_NAME[name].build()
    graph = ml.NodeGraph.of(lm)
    rows = torch.ones(graph.n_layers, graph.n_heads + 1, dtype=torch.int)
    rows[0, 1] = 0
    exported(lm, bank(lm, rows.tolist()), folder := tmp_path / "smaller")
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(2))
    for first, then in (("eager", "sdpa"), ("sdpa", "eager")):
        smaller: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, attn_implementation=first
        ).eval()
        before = smaller(ids).logits
        smaller.set_attn_implementation(then)
        assert_close(smaller(ids).logits, before, atol=1e-5, rtol=1e-4)


def test_the_experts_and_the_router_of_a_closed_mlp_are_gone(tmp_path: Path) -> None:
    lm = BY_NAME["mixtral"].build()
    _, smaller = exported(lm, bank(lm, MIXED), tmp_path / "out")
    names = [name for name, _ in smaller.named_parameters() if "experts" in name or ".gate." in name]
    assert names
    assert not any(name.startswith("model.layers.0.") for name in names)


def test_plain_transformers_loads_what_its_config_can_say(tmp_path: Path) -> None:
    lm = BY_NAME["mistral"].build()
    export, smaller = exported(lm, bank(lm, EVEN), tmp_path / "out")
    assert export.stock
    assert type(smaller) is type(lm)
    assert smaller.config.num_attention_heads == 2
    assert not list((tmp_path / "out").glob("*.py"))
    assert "trust_remote_code" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("family", [f for f in REMOVABLE if f.model_type in VARIED], ids=lambda family: family.name)
def test_a_stock_folder_has_zeros_where_a_class_cannot_do_without(family: Family, tmp_path: Path) -> None:
    """Constants go into biases; a family that has none refuses them."""
    lm = family.build()
    ids = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(5))
    for name, ablation in ablations(lm).items():
        mask, out = bank(lm, HEADLESS_START, ablation), tmp_path / name
        if ablation.known and family.name not in WITH_BIASES:
            message = refused(lambda mask=mask, out=out: to_hf(lm, None, mask, 2, out, stock=True))
            assert f"constants of {name} ablation" in message
            continue
        export = to_hf(lm, None, mask, 2, out, stock=True)
        smaller = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
        with torch.no_grad(), ml.gated(lm, mask.mask[0, 0], mask.ablation):
            expected = lm(ids).logits
        assert_close(smaller(ids).logits, expected, atol=1e-5 * expected.abs().max().clamp(min=1).item(), rtol=0)
        assert export.stock and export.padded
        assert export.after.prefill_ms is None
        assert export.after.parameters >= export.before.parameters
        assert "It is as large and as slow as the" in (out / "README.md").read_text()


def test_a_stock_folder_without_zeros_is_smaller(tmp_path: Path) -> None:
    lm = BY_NAME["mistral"].build()
    export = to_hf(lm, None, bank(lm, EVEN), 6, tmp_path / "out", time=False, stock=True)
    assert export.stock and not export.padded
    assert export.after.parameters < export.before.parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_and_compared_in_float32(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong weight is noticed although it changes logits by less than half precision rounds them."""
    lm = tiny_llama(layers=2)
    found = ablations(lm)
    lm = lm.to(dtype)
    for name in ("zero", "mean"):
        export, smaller = exported(lm, bank(lm, MIXED, found[name]), tmp_path / name)
        assert {tensor.dtype for tensor in smaller.parameters()} == {dtype}
        assert export.max_logit_gap < torch.finfo(dtype).eps / 2
        written = load_file(tmp_path / name / "model.safetensors").values()
        assert {tensor.dtype for tensor in written if tensor.is_floating_point()} == {dtype}
    assert {tensor.dtype for tensor in lm.parameters()} == {dtype}
    right = subgraph_model.remove_closed

    def slightly_wrong(model: Any, subgraph: dict[str, Any]) -> None:
        right(model, subgraph)
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 0.25

    monkeypatch.setattr(subgraph_model, "remove_closed", slightly_wrong)
    message = refused(lambda: to_hf(lm, None, bank(lm, MIXED), 4, tmp_path / "wrong", time=False))
    assert "differ from those of the gated model" in message


def test_a_folder_with_code_is_refused_without_trust_and_needs_no_masklearn(tmp_path: Path) -> None:
    """A stock class would take it for the whole model, and fill what is missing at random."""
    lm, out = tiny_llama(layers=2), tmp_path / "out"
    exported(lm, bank(lm, MIXED), out)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    tree = ast.parse((out / "modeling_subgraph.py").read_text())
    froms = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert froms | imports == {"copy", "functools", "sys", "typing", "torch", "transformers"}


def test_a_folder_can_be_saved_again(tmp_path: Path) -> None:
    lm = tiny_gpt2()
    _, smaller = exported(lm, bank(lm, [[1, 0, 1, 0, 0], [0] * 5, [1] * 5]), tmp_path / "out")
    smaller.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    ids = torch.arange(3, 12)[None]
    assert_close(again(ids).logits, smaller(ids).logits)


def test_a_wrong_weight_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lm, right = tiny_llama(layers=2), subgraph_model.slices
    monkeypatch.setattr(subgraph_model, "slices", lambda heads, width: right(heads, width).flip(0))
    message = refused(lambda: to_hf(lm, None, bank(lm, [[1, 0, 0, 0, 1], [1] * 5]), 7, tmp_path / "out", time=False))
    assert "differ from those of the gated model" in message
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_at_once(tmp_path: Path) -> None:
    lm, bloom, alibi = tiny_llama(layers=2), BY_NAME["bloom"].build(), BY_NAME["falcon in sequence"].build()
    found = ablations(lm)["mean"]
    twice = (tuple(torch.cat([value, value], 1) for value in values) for values in (found.heads, found.mlps))
    positional = ml.Ablation("mean-positional", *twice)
    out = tmp_path / "out"
    for mask, model, reason in (
        (bank(lm, MIXED, ml.Ablation("resample")), lm, "corrupted input"),
        (bank(lm, MIXED, positional), lm, "each position"),
        (bank(bloom, MIXED), bloom, "how to remove nodes of bloom"),
        (bank(alibi, MIXED), alibi, "ALiBi"),
    ):
        assert reason in refused(lambda mask=mask, model=model: to_hf(model, None, mask, int(mask.sizes[0]), out))
    assert "no mask of 3 nodes" in refused(lambda: to_hf(lm, None, bank(lm, MIXED), 3, out))
    assert not out.exists()
    out.mkdir()
    assert "already exists" in refused(lambda: to_hf(lm, None, bank(lm, MIXED), 4, out))


def test_a_family_whose_removal_is_unknown_is_refused_before_its_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = BY_NAME["bloom"].build()
    lm.config.save_pretrained(tmp_path)
    mask = bank(lm, MIXED)
    replace(mask, model=ModelId(str(tmp_path), None, "f")).save(tmp_path / "mask.safetensors")
    assert export(["--mask", str(tmp_path), "--size", "4", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "how to remove nodes of bloom models is not known" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("context", "prefilled"), [(300, 256), (64, 23), (42, 1), (41, None)])
def test_costs_are_timed_within_the_context(context: int, prefilled: int | None) -> None:
    """Besides the prefilled tokens, 40 are decoded, and one to warm up."""
    lm = GPT2LMHeadModel(GPT2Config(n_positions=context, n_embd=8, n_layer=1, n_head=2, vocab_size=50)).eval()
    cost, _ = compare_costs(lm, lm)
    assert (cost.prefill_ms is not None) == (cost.decode_ms is not None) == (prefilled is not None)
    assert prefilled in (None, cost.prompt_tokens)
