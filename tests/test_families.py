"""Gates on every family: compared with model surgery, and tested in gradients, half precision and padding."""

import re
from inspect import signature
from typing import Any

import pytest
import torch
from conftest import ROOT
from families import BY_NAME, FAMILIES, REFUSED, Family
from family_table import MAX_LOGIT_ERROR, example_gates, gradients, logit_error, random_texts
from torch import Tensor
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

import masklearn as ml
from masklearn.masking import MaskedLM, node_contributions, verified_layout

MAX_HALF_PRECISION_ERROR = {torch.bfloat16: 0.02, torch.float16: 0.0025}
"""Allowed error of a token's logits in half precision, relative to their norm, in the median over tokens.

Some tokens of a mixture of experts are further off, because rounding may choose another expert.
"""
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
post_norm_families = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.norm], ids=lambda family: family.name
)


@every_family
def test_gated_logits_equal_those_of_model_surgery(family: Family) -> None:
    assert logit_error(family) < MAX_LOGIT_ERROR


@every_family
def test_the_gradient_of_every_gate_is_nonzero_and_equals_its_central_difference(family: Family) -> None:
    gates = example_gates(ml.NodeGraph.of(family.build()))[2]
    found, slope = gradients(family, gates)
    assert (found.abs() > 1e-4 * slope.abs().max()).all()
    assert_close(found, slope, atol=1e-3 * slope.abs().max().item(), rtol=0)


@post_norm_families
def test_the_gate_of_a_single_open_head_has_a_gradient_despite_the_norm(family: Family) -> None:
    """Without its own gate behind the norm it would have none: the norm undoes the scale of a single head."""
    graph = ml.NodeGraph.of(family.build())
    gates = torch.ones(graph.n_layers, graph.n_heads + 1)
    gates[:, :-1] = 0
    gates[:, 2] = 0.4
    found, slope = gradients(family, gates)
    assert (found[:, 2].abs() > 1e-3 * slope.abs().max()).all()
    assert_close(found[:, 2], slope[:, 2], atol=1e-3 * slope.abs().max().item(), rtol=0)


@post_norm_families
def test_closed_heads_in_front_of_a_norm_have_gradients_for_being_opened(family: Family) -> None:
    """With all heads closed the attention puts out nothing, but each gate has a gradient of the usual size."""
    graph = ml.NodeGraph.of(family.build())
    gates = torch.ones(graph.n_layers, graph.n_heads + 1)
    gates[0, :-1] = 0
    found, slope = gradients(family, gates)
    closed_heads, open_heads = found[0, :-1].abs(), slope[1, :-1].abs()
    assert closed_heads.all() and closed_heads.isfinite().all()
    assert 0.01 < closed_heads.mean() / open_heads.mean() < 100
    assert closed_heads.unique().numel() == graph.n_heads


@every_family
def test_the_sites_found_by_structure_are_those_listed_by_hand(family: Family) -> None:
    lm = family.build()
    layers, projection, mlp, *_ = family.module_paths
    for site, layer in zip(verified_layout(lm).sites, lm.get_submodule(layers), strict=True):
        assert site.layer is layer and site.output_projection is layer.get_submodule(projection)
        assert site.mlp is layer.get_submodule(mlp) or "Dropout" in type(site.mlp).__name__
        assert site.attention_norm is (layer.get_submodule(family.norm) if family.norm else None)


@every_family
def test_unembedded_hidden_states_equal_the_models_own_logits(family: Family) -> None:
    """At some positions, with the full model and under gates."""
    masked_lm, input_ids = MaskedLM(family.build()), random_texts(3)
    scored = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(3)) > 0.4
    logits = masked_lm.lm(input_ids).logits
    assert_close(masked_lm.unembed(masked_lm.full(input_ids, scored)), logits[scored], atol=MAX_LOGIT_ERROR, rtol=0)
    gates = example_gates(masked_lm.graph).flatten(1).view(2, 3, -1)
    found = masked_lm.unembed(masked_lm(input_ids, scored, gates))
    for row_gates, row_logits in zip(gates, found, strict=True):
        with ml.gated(masked_lm.lm, row_gates):
            logits = masked_lm.lm(input_ids).logits
        assert_close(row_logits, logits[scored], atol=MAX_LOGIT_ERROR, rtol=0)


def padded(lm: PreTrainedModel, rows: list[Tensor], side: str) -> tuple[dict[str, Any], Tensor]:
    """Return a model's arguments for texts of unequal lengths, and a mask that is False at padding."""
    longest = max(map(len, rows))
    real = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, text in zip(real, rows, strict=True):
        row[slice(len(text)) if side == "right" else slice(longest - len(text), None)] = True
    input_ids = torch.zeros(real.shape, dtype=torch.long)
    input_ids[real] = torch.cat(rows)
    arguments = {"input_ids": input_ids, "attention_mask": real.long()}
    if "position_ids" in signature(lm.forward).parameters:
        arguments["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)
    return arguments, real


@every_family
def test_padding_and_the_attention_implementation_change_nothing(family: Family) -> None:
    lm = family.build()
    gates = example_gates(ml.NodeGraph.of(lm)).flatten(1)[[0, 2, 3]]
    rows = [text[:n] for text, n in zip(random_texts(3), (7, 4, 5), strict=True)]
    alone = []
    for row, gate in zip(rows, gates, strict=True):
        with ml.gated(lm, gate):
            alone.append(lm(row[None]).logits[0])
    for implementation in ("eager", "sdpa") if lm._supports_sdpa else ("eager",):
        lm.set_attn_implementation(implementation)
        for side in ("left", "right"):
            arguments, real = padded(lm, rows, side)
            with ml.gated(lm, gates):
                found = lm(**arguments).logits
            assert_close(found[real], torch.cat(alone), atol=MAX_LOGIT_ERROR, rtol=MAX_LOGIT_ERROR)


@every_family
@pytest.mark.parametrize("dtype", MAX_HALF_PRECISION_ERROR, ids=str)
def test_half_precision_gives_nearly_the_same_logits(family: Family, dtype: torch.dtype) -> None:
    """The verification of gates passes as well."""
    lm, input_ids = family.build(), random_texts()
    gates = example_gates(ml.NodeGraph.of(lm)).flatten(1)
    with ml.gated(lm, gates):
        exact = lm(input_ids).logits
    half = family.build().to(dtype)
    with ml.gated(half, gates):
        found = half(input_ids).logits.float()
    assert ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).median() < MAX_HALF_PRECISION_ERROR[dtype]


@every_family
def test_the_contribution_of_every_node_is_a_share(family: Family) -> None:
    """The residual stream has the rest, so the heads of a layer sum to less than 1."""
    masked_lm = MaskedLM(family.build())
    share = node_contributions(masked_lm, random_texts(2))
    assert share.shape == (2, 7, masked_lm.graph.n_nodes)
    assert (share > 0).all() and (share < 1).all()
    assert (masked_lm.graph.by_layer(share)[..., :-1].sum(-1) < 1).all()
    masked_lm.layout.sites[1].mlp.register_forward_hook(lambda module, args, output: zeroed(output))
    without_mlp = node_contributions(masked_lm, random_texts(1))
    assert (masked_lm.graph.by_layer(without_mlp)[:, :, 1, -1] == 0).all()


@pytest.mark.parametrize("name", ["llama", "granite"])
def test_contributions_are_shares_of_what_a_layer_adds(name: str) -> None:
    """Granite multiplies the outputs of attention and MLP by a factor before it adds them."""
    lm = BY_NAME[name].build()
    layer, ids = lm.model.layers[0], random_texts(1)
    seen: dict[str, Tensor] = {}
    layer.register_forward_pre_hook(lambda module, args: seen.update(stream=args[0].clone()))
    layer.post_attention_layernorm.register_forward_pre_hook(lambda module, args: seen.update(middle=args[0].clone()))
    layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: seen.update(heads=args[0].clone()))
    layer.register_forward_hook(lambda module, args, output: seen.update(end=output.clone()))
    masked_lm = MaskedLM(lm)
    found = masked_lm.graph.by_layer(node_contributions(masked_lm, ids))[:, :, 0]
    norm = lambda vectors: vectors.abs().sum(-1)  # noqa: E731
    by_mlp, by_heads = seen["end"] - seen["middle"], seen["middle"] - seen["stream"]
    assert_close(found[..., -1], norm(by_mlp) / (norm(by_mlp) + norm(seen["middle"])))
    whole = layer.self_attn.o_proj(seen["heads"])
    by_head = [
        head @ weight.T
        for head, weight in zip(seen["heads"].chunk(4, -1), layer.self_attn.o_proj.weight.chunk(4, 1), strict=True)
    ]
    assert_close(sum(by_head), whole)
    factor = (norm(by_heads) / norm(whole))[..., None]
    terms = factor * torch.stack([norm(head) for head in by_head], -1)
    assert_close(found[..., :-1], terms / (norm(seen["stream"])[..., None] + terms.sum(-1, keepdim=True)))


def zeroed(output: Any) -> Any:
    return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0


def test_closing_a_head_equals_zeroing_that_head_in_the_attention_function() -> None:
    """In every family whose attention function can be replaced."""
    zeroed_heads: dict[int, int] = {}  # by layer
    head_counts: list[int] = []

    def attention(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        output, weights = sdpa(module, query, *args, **kwargs)  # (rows, tokens, heads, width)
        head_counts.append(output.shape[2])
        return output * (torch.arange(output.shape[2]) != zeroed_heads.get(module.layer_idx, -1))[:, None], weights

    sdpa = AttentionInterface()["sdpa"]
    AttentionInterface.register("of_this_test", attention)
    AttentionMaskInterface.register("of_this_test", AttentionMaskInterface()["sdpa"])
    n_tested = 0
    for family in FAMILIES:
        lm, input_ids, graph = family.build(), random_texts(1), ml.NodeGraph(2, 4)
        if not lm._supports_sdpa or family.model_type in OTHER_ATTENTION:
            continue
        lm.set_attn_implementation("of_this_test")
        gates = torch.ones(graph.n_nodes)
        gates[graph.names.index("a1.h2")] = 0
        with ml.gated(lm, gates):
            found = lm(input_ids).logits
        zeroed_heads[1] = 2
        head_counts.clear()
        expected = lm(input_ids).logits
        zeroed_heads.clear()
        if head_counts:  # some families compute attention without the registered function
            n_tested += 1
            assert head_counts == [4, 4]
            assert_close(found, expected, atol=MAX_LOGIT_ERROR, rtol=0)
            assert not torch.allclose(found, lm(input_ids).logits, atol=1e-3)
    assert n_tested > 60


OTHER_ATTENTION = {"bitnet", "deepseek_v32"}
"""Families whose attention function cannot be replaced this way.

BitNet has a norm between attention and output projection; DeepSeek 3.2 gives its attention its own mask.
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from modules that torch imports
@pytest.mark.filterwarnings("ignore:flex_attention called without")  # compiling takes half a minute
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_flex_attention_gives_the_same_logits(name: str) -> None:
    lm, input_ids = BY_NAME[name].build(), random_texts()
    gates = example_gates(ml.NodeGraph.of(lm)).flatten(1)
    with ml.gated(lm, gates):
        expected = lm(input_ids).logits
    lm.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"), ml.gated(lm, gates):
        found = lm(input_ids).logits
    assert_close(found, expected, atol=MAX_LOGIT_ERROR, rtol=0)


@pytest.mark.parametrize("family", [BY_NAME["gpt2"], BY_NAME["llama"]], ids=lambda family: family.name)
def test_transformer_lens_gives_the_same_logits(family: Family) -> None:
    """Its bridge does not fold weights by default."""
    reason = "TransformerLens is not installed; pip install -c constraints.txt -e '.[lens]'"
    lens = pytest.importorskip("transformer_lens", reason=reason)
    lm, input_ids = family.build(), random_texts()
    gates = example_gates(ml.NodeGraph.of(lm))
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
    assert_close(found, bridge.run_with_hooks(input_ids, fwd_hooks=hooks), atol=MAX_LOGIT_ERROR, rtol=0)


def test_the_tables_for_readers_name_every_family() -> None:
    docs = (ROOT / "docs" / "families.md").read_text()
    for family in FAMILIES:
        assert f"| {family.name} | `{family.hub_id}` |" in docs
    n_types = len({family.model_type for family in FAMILIES})
    assert f"[{n_types} families]" in (ROOT / "README.md").read_text()
    assert f"supports {n_types} model types" in docs
    for model_type, _, message in REFUSED:
        assert re.search(rf"^\| {model_type} \| model.lm: .*{message}", docs, flags=re.M), model_type
