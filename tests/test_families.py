"""Every family under its gates: against the model taken apart, in its gradients, its precisions and its padding."""

import re
from inspect import signature
from typing import Any

import pytest
import torch
from conftest import ROOT
from families import BY_NAME, FAMILIES, REFUSED, Family
from measured import LOGIT_ERROR, gradients, logit_error, some_gates, texts
from torch import Tensor
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

import masklearn as ml
from masklearn.masking import MaskedLM, verified_layout

HALF = {torch.bfloat16: 0.02, torch.float16: 0.0025}
"""By how much of their norm the logits of a token may be off in half precision, in the median over tokens.

A few tokens are further off in mixtures of experts, where rounding now and then chooses another expert.
"""
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
behind_norms = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.norm], ids=lambda family: family.name
)


@every_family
def test_masked_logits_are_those_of_the_model_taken_apart(family: Family) -> None:
    assert logit_error(family) < LOGIT_ERROR


@every_family
def test_every_gate_has_a_gradient_and_the_right_one(family: Family) -> None:
    gates = some_gates(ml.NodeGraph.of(family.build()))[2]
    found, slope = gradients(family, gates)
    assert (found.abs() > 1e-4 * slope.abs().max()).all()
    assert_close(found, slope, atol=1e-3 * slope.abs().max().item(), rtol=0)


@behind_norms
def test_the_only_open_head_in_front_of_a_norm_has_a_gradient(family: Family) -> None:
    """Of the norm's own making it would have none: it undoes the scale of what stands alone."""
    graph = ml.NodeGraph.of(family.build())
    gates = torch.ones(graph.n_layers, graph.n_heads + 1)
    gates[:, :-1] = 0
    gates[:, 2] = 0.4
    found, slope = gradients(family, gates)
    assert (found[:, 2].abs() > 1e-3 * slope.abs().max()).all()
    assert_close(found[:, 2], slope[:, 2], atol=1e-3 * slope.abs().max().item(), rtol=0)


@behind_norms
def test_a_norm_does_not_hide_what_opening_a_first_head_would_do(family: Family) -> None:
    """Where all heads are closed nothing comes out, and yet each has a gradient, of the size of what it would add."""
    graph = ml.NodeGraph.of(family.build())
    gates = torch.ones(graph.n_layers, graph.n_heads + 1)
    gates[0, :-1] = 0
    found, slope = gradients(family, gates)
    closed, open_heads = found[0, :-1].abs(), slope[1, :-1].abs()
    assert closed.all() and closed.isfinite().all()
    assert 0.01 < closed.mean() / open_heads.mean() < 100
    assert closed.unique().numel() == graph.n_heads


@every_family
def test_nodes_lie_where_they_are_written_down(family: Family) -> None:
    lm = family.build()
    layers, heads, mlp, *_ = family.places
    for site, layer in zip(verified_layout(lm).sites, lm.get_submodule(layers), strict=True):
        assert site.layer is layer and site.heads is layer.get_submodule(heads)
        assert site.mlp is layer.get_submodule(mlp) or "Dropout" in type(site.mlp).__name__
        assert site.attention_norm is (layer.get_submodule(family.norm) if family.norm else None)


@every_family
def test_the_learner_reads_what_the_model_says(family: Family) -> None:
    """Last hidden states, then the output head at some positions: the logits of the model as it is, and under gates."""
    masked_lm, input_ids = MaskedLM(family.build()), texts(3)
    scored = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(3)) > 0.4
    logits = masked_lm.lm(input_ids).logits
    assert_close(masked_lm.unembed(masked_lm.full(input_ids, scored)), logits[scored], atol=LOGIT_ERROR, rtol=0)
    gates = some_gates(masked_lm.graph).flatten(1).view(2, 3, -1)
    found = masked_lm.unembed(masked_lm(input_ids, scored, gates))
    for some, read in zip(gates, found, strict=True):
        with ml.gated(masked_lm.lm, some):
            logits = masked_lm.lm(input_ids).logits
        assert_close(read, logits[scored], atol=LOGIT_ERROR, rtol=0)


def padded(lm: PreTrainedModel, rows: list[Tensor], side: str) -> tuple[dict[str, Any], Tensor]:
    """What a model is given to read texts of unequal lengths, and where they are real."""
    longest = max(map(len, rows))
    real = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, text in zip(real, rows, strict=True):
        row[slice(len(text)) if side == "right" else slice(longest - len(text), None)] = True
    input_ids = torch.zeros(real.shape, dtype=torch.long)
    input_ids[real] = torch.cat(rows)
    given = {"input_ids": input_ids, "attention_mask": real.long()}
    if "position_ids" in signature(lm.forward).parameters:
        given["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)
    return given, real


@every_family
def test_padding_and_the_kind_of_attention_do_not_matter(family: Family) -> None:
    lm = family.build()
    gates = some_gates(ml.NodeGraph.of(lm)).flatten(1)[[0, 2, 3]]
    rows = [text[:n] for text, n in zip(texts(3), (7, 4, 5), strict=True)]
    alone = []
    for row, gate in zip(rows, gates, strict=True):
        with ml.gated(lm, gate):
            alone.append(lm(row[None]).logits[0])
    for kind in ("eager", "sdpa") if lm._supports_sdpa else ("eager",):
        lm.set_attn_implementation(kind)
        for side in ("left", "right"):
            given, real = padded(lm, rows, side)
            with ml.gated(lm, gates):
                found = lm(**given).logits
            assert_close(found[real], torch.cat(alone), atol=LOGIT_ERROR, rtol=LOGIT_ERROR)


@every_family
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_near(family: Family, dtype: torch.dtype) -> None:
    """The checks at loading pass as well."""
    lm, input_ids = family.build(), texts()
    gates = some_gates(ml.NodeGraph.of(lm)).flatten(1)
    with ml.gated(lm, gates):
        exact = lm(input_ids).logits
    half = family.build().to(dtype)
    with ml.gated(half, gates):
        found = half(input_ids).logits.float()
    assert ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).median() < HALF[dtype]


@every_family
def test_what_every_node_contributes_is_a_share(family: Family) -> None:
    """Of what meets in a layer, the stream has the rest, so the heads of a layer come to less than 1 together."""
    masked_lm = MaskedLM(family.build())
    share = masked_lm.contributions(texts(2))
    assert share.shape == (2, 7, masked_lm.graph.n_nodes)
    assert (share > 0).all() and (share < 1).all()
    assert (masked_lm.graph.by_layer(share)[..., :-1].sum(-1) < 1).all()
    masked_lm.layout.sites[1].mlp.register_forward_hook(lambda module, args, output: with_zero(output))
    silent = masked_lm.contributions(texts(1))
    assert (masked_lm.graph.by_layer(silent)[:, :, 1, -1] == 0).all()


def with_zero(output: Any) -> Any:
    return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0


def test_a_head_is_what_one_attention_head_puts_out() -> None:
    """Where a family's attention can be exchanged: closing a head is zeroing what that head of its attention gives."""
    closed: dict[int, int] = {}
    asked: list[int] = []

    def attention(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        output, weights = sdpa(module, query, *args, **kwargs)  # (rows, tokens, heads, width)
        asked.append(output.shape[2])
        return output * (torch.arange(output.shape[2]) != closed.get(module.layer_idx, -1))[:, None], weights

    sdpa = AttentionInterface()["sdpa"]
    AttentionInterface.register("of_this_test", attention)
    AttentionMaskInterface.register("of_this_test", AttentionMaskInterface()["sdpa"])
    seen = 0
    for family in FAMILIES:
        lm, input_ids, graph = family.build(), texts(1), ml.NodeGraph(2, 4)
        if not lm._supports_sdpa or family.model_type in NO_EXCHANGE:
            continue
        lm.set_attn_implementation("of_this_test")
        gates = torch.ones(graph.n_nodes)
        gates[graph.names.index("a1.h2")] = 0
        with ml.gated(lm, gates):
            found = lm(input_ids).logits
        closed[1] = 2
        asked.clear()
        expected = lm(input_ids).logits
        closed.clear()
        if asked:  # some write their attention out
            seen += 1
            assert asked == [4, 4]
            assert_close(found, expected, atol=LOGIT_ERROR, rtol=0)
            assert not torch.allclose(found, lm(input_ids).logits, atol=1e-3)
    assert seen > 60


NO_EXCHANGE = {"bitnet", "deepseek_v32"}
"""BitNet has a norm between attention and output projection, DeepSeek 3.2 hands its attention a mask of its own."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch imports on the way
@pytest.mark.filterwarnings("ignore:flex_attention called without")  # compiling takes half a minute
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_flex_attention_gives_the_same(name: str) -> None:
    lm, input_ids = BY_NAME[name].build(), texts()
    gates = some_gates(ml.NodeGraph.of(lm)).flatten(1)
    with ml.gated(lm, gates):
        expected = lm(input_ids).logits
    lm.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"), ml.gated(lm, gates):
        found = lm(input_ids).logits
    assert_close(found, expected, atol=LOGIT_ERROR, rtol=0)


@pytest.mark.parametrize("family", [BY_NAME["gpt2"], BY_NAME["llama"]], ids=lambda family: family.name)
def test_transformer_lens_says_the_same(family: Family) -> None:
    """Its bridge folds no weights, unless it is told to."""
    reason = "TransformerLens is not installed; pip install -c constraints.txt -e '.[lens]'"
    lens = pytest.importorskip("transformer_lens", reason=reason)
    lm, input_ids = family.build(), texts()
    gates = some_gates(ml.NodeGraph.of(lm))
    with ml.gated(lm, gates.flatten(1)):
        found = lm(input_ids).logits
    bridge = lens.TransformerBridge.boot_transformers(
        "of this test", hf_model=family.build(), tokenizer=ml.load_tokenizer(), device="cpu"
    )

    def scale_heads(z: Tensor, hook: Any) -> Tensor:
        return z * gates[:, layer_of(hook), None, :-1, None]  # (rows, tokens, heads, width)

    def scale_mlp(output: Tensor, hook: Any) -> Tensor:
        return output * gates[:, layer_of(hook), -1, None, None]

    def layer_of(hook: Any) -> int:
        return int(hook.name.split(".")[1])

    hooks = [(f"blocks.{layer}.attn.hook_z", scale_heads) for layer in range(2)]
    hooks += [(f"blocks.{layer}.hook_mlp_out", scale_mlp) for layer in range(2)]
    assert_close(found, bridge.run_with_hooks(input_ids, fwd_hooks=hooks), atol=LOGIT_ERROR, rtol=0)


def test_the_tables_for_readers_name_every_family() -> None:
    docs = (ROOT / "docs" / "families.md").read_text()
    for family in FAMILIES:
        assert f"| {family.name} | `{family.hub_id}` |" in docs
    n_types = len({family.model_type for family in FAMILIES})
    assert f"[{n_types} families]" in (ROOT / "README.md").read_text()
    assert f"supports {n_types} model types" in docs
    for model_type, _, said in REFUSED:
        assert re.search(rf"^\| {model_type} \| model.lm: .*{said}", docs, flags=re.M), model_type
