"""Which models are refused and with which message, and whether verification notices wrong sites."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_surgery
import pytest
import torch
from conftest import tiny_llama
from families import BY_NAME, NO_HEADS, REFUSED, build
from family_table import MAX_LOGIT_ERROR, example_gates, random_texts, relative_error
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, PreTrainedModel

import masklearn as ml
from masklearn.cli import train
from masklearn.masking import MaskedLM, gated, verified_layout
from masklearn.models import LayerSites, Layout, verify_gates


@pytest.mark.parametrize(("model_type", "config", "found"), REFUSED, ids=[model_type for model_type, *_ in REFUSED])
def test_a_model_without_attention_heads_and_one_mlp_in_every_layer_is_refused(
    model_type: str, config: dict, found: str
) -> None:
    with pytest.raises(ml.UserError, match=rf"cannot be gated: (found|its config) .*{found}.*, expected .*Choose"):
        MaskedLM(build(model_type, **config))


@pytest.mark.parametrize(
    ("model_type", "found"),
    [("t5", "found a model of type t5, expected a causal language model"), ("mamba", "has no num_attention_heads")],
)
def test_the_command_line_prints_a_refusal_in_one_line(
    model_type: str, found: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    if model_type == "t5":
        AutoConfig.for_model("t5", d_model=16, num_layers=1).save_pretrained(tmp_path)
    else:
        build("mamba", **NO_HEADS).save_pretrained(tmp_path)
    ml.load_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "texts.txt").write_text("mary\njohn\nmary and john\n")
    flags = {"model.lm": tmp_path, "data.path": tmp_path / "texts.txt", "run.dir": tmp_path / "run"}
    capfd.readouterr()
    assert train([word for flag, value in flags.items() for word in (f"--{flag}", str(value))]) == 2
    message = capfd.readouterr().err
    assert "Traceback" not in message
    assert re.search(rf"^error: model.lm: .* cannot be gated: .*{found}", message, flags=re.M)
    assert not (tmp_path / "run").exists()


class CumulativeSum(nn.Module):
    """Replaces an attention."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states.cumsum(1), None


class Zeros(nn.Module):
    """Replaces an MLP."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


@pytest.mark.parametrize(
    ("path", "replacement", "found"),
    [("self_attn", CumulativeSum(), "0 attentions in layer 1"), ("mlp", Zeros(), "no MLP in layer 1")],
)
def test_a_single_layer_without_attention_or_mlp_is_refused(path: str, replacement: nn.Module, found: str) -> None:
    lm = tiny_llama()
    lm.model.layers[1].set_submodule(path, replacement)
    with pytest.raises(ml.UserError, match=rf"found {found} \(LlamaDecoderLayer\), expected one"):
        MaskedLM(lm)


def verify_with_wrong_sites(name: str, change: Callable[[LayerSites], LayerSites]) -> None:
    """Verify the gates of a family after changing the sites of its second layer."""
    layout = Layout.of(BY_NAME[name].build())
    layout = replace(layout, sites=(layout.sites[0], change(layout.sites[1])))
    verify_gates(layout, lambda gates: gated(layout.lm, gates, layout=layout))


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        (
            "llama",
            lambda site: replace(site, output_projection=site.layer.self_attn.k_proj),
            "layer 1 .* with its attention gates",
        ),
        ("llama", lambda site: replace(site, mlp=site.layer.mlp.up_proj), None),
        ("llama", lambda site: replace(site, mlp=site.layer.input_layernorm), "layer 1 .* with its MLP gates closed"),
        ("gpt2", lambda site: replace(site, mlp=site.layer.ln_2), "layer 1 .* with its MLP gates closed"),
        ("gemma2", lambda site: replace(site, mlp=site.layer.mlp), "a half-open MLP in layer 1 has 1 of the effect"),
        ("olmo2", lambda site: replace(site, attention_norm=None), "a half-open head in layer 1 has 1 of the effect"),
        ("gpt_neox", lambda site: replace(site, mlp=site.layer), "layer 1 .* with its MLP gates closed"),
    ],
)
def test_wrong_sites_are_refused(name: str, change: Callable[[LayerSites], LayerSites], found: str | None) -> None:
    if found is None:  # closing one factor of the product also closes an MLP without bias
        verify_with_wrong_sites(name, change)
        return
    with pytest.raises(ml.UserError, match=f"cannot be gated: found (that )?{found}.*, expected"):
        verify_with_wrong_sites(name, change)


def test_an_attention_that_adds_more_than_its_heads_is_refused() -> None:
    lm = BY_NAME["llama"].build()
    attention = lm.model.layers[1].self_attn
    forward = attention.forward

    def with_residual(hidden_states: Tensor, **kwargs: Any) -> Any:
        output, weights = forward(hidden_states, **kwargs)
        output += hidden_states  # in place, so that the output is still the projection's
        return output, weights

    attention.forward = with_residual
    with pytest.raises(ml.UserError, match="layer 1 .* attention gates closed, expected its attention at its bias"):
        MaskedLM(lm)


def test_logits_that_do_not_depend_on_the_last_hidden_states_alone_are_refused() -> None:
    lm = BY_NAME["granite"].build()
    forward = lm.forward
    calls = []

    def scaled_by_call(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        calls.append(1)
        output.logits = output.logits * len(calls)
        return output

    lm.forward = scaled_by_call
    with pytest.raises(ml.UserError, match="found logits that are .* off with all gates open"):
        MaskedLM(lm)


def test_nodes_without_any_effect_are_accepted() -> None:
    """Exported subgraphs contain such nodes."""
    lm = BY_NAME["gemma2"].build()
    for layer in lm.model.layers:
        layer.self_attn.o_proj.weight[:, :-16] = 0
        layer.mlp.down_proj.weight.zero_()
    assert MaskedLM(lm).graph == ml.NodeGraph.of(lm)


def test_the_layout_of_a_model_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_llama()
    layout = verified_layout(lm)
    monkeypatch.setattr(Layout, "of", None)
    assert verified_layout(lm) is layout and MaskedLM(lm).layout is layout


def test_the_layout_is_found_again_after_modules_were_replaced() -> None:
    family = BY_NAME["llama"]
    lm = family.build()
    gates = example_gates(ml.NodeGraph.of(lm))
    with ml.gated(lm, gates.flatten(1)):
        expected = lm(random_texts()).logits
    for layer in lm.model.layers:
        layer.self_attn.o_proj = nn.Linear(64, 32, bias=False).requires_grad_(False)
    with ml.gated(lm, gates.flatten(1)):
        found = lm(random_texts()).logits
    assert relative_error(found, model_surgery.logits(family, lm, random_texts(), gates)) < MAX_LOGIT_ERROR
    assert not torch.allclose(found, expected, atol=0.1)


@pytest.mark.parametrize("inputs", [2, 6])
def test_gates_with_another_number_of_rows_than_the_batch_are_refused(inputs: int) -> None:
    """Two inputs of six tokens could be mistaken for three rows of four."""
    lm = tiny_llama()
    with (
        pytest.raises(ml.UserError, match=f"3 rows of gates do not fit a batch of {inputs} inputs"),
        ml.gated(lm, torch.ones(3, 15)),
    ):
        lm(torch.ones(inputs, 6, dtype=torch.long))


# --- quantised weights and half precision -----------------------------------------------------------------------------


class Packed(nn.Module):
    """A quantised linear layer as libraries build them: weights as bytes and scales, with no width attributes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight
        self.scale = (weight.abs().amax(1) / 127).tolist()
        self.register_buffer("bytes", (weight / torch.tensor(self.scale)[:, None]).round().to(torch.int8).flatten())
        self.register_buffer("packed_bias", linear.bias)

    def dequantised(self) -> Tensor:
        return self.get_buffer("bytes").view(len(self.scale), -1) * torch.tensor(self.scale)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return _MatMul.apply(x, self)


class _MatMul(torch.autograd.Function):
    """Differentiable in its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        output = x @ packed.dequantised().T
        return output + packed.packed_bias if isinstance(packed.packed_bias, Tensor) else output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return gradient @ ctx.packed.dequantised(), None


def quantised(lm: PreTrainedModel, packed: bool) -> PreTrainedModel:
    """Replace every linear layer of the body with a packed one, or round its weights to the same values."""
    for name, module in list(lm.base_model.named_modules()):
        if isinstance(module, nn.Linear):
            packed_module = Packed(module)
            if packed:
                lm.base_model.set_submodule(name, packed_module)
            else:
                module.weight.copy_(packed_module.dequantised())
    return lm


@pytest.mark.parametrize("name", ["llama", "llama biases, tied", "opt", "gemma2", "gpt_neox", "qwen2_moe"])
def test_gates_on_packed_weights_equal_gates_on_the_same_weights_unpacked(name: str) -> None:
    family = BY_NAME[name]
    packed, unpacked = (quantised(family.build(), packed) for packed in (True, False))
    gates, input_ids = example_gates(ml.NodeGraph.of(packed)), random_texts()
    gradients = []
    for lm in (packed, unpacked):
        gate_leaf = gates.flatten(1).clone().requires_grad_()
        with ml.gated(lm, gate_leaf):
            logits = lm(input_ids).logits
        assert relative_error(logits, model_surgery.logits(family, unpacked, input_ids, gates)) < MAX_LOGIT_ERROR
        gradients.append(torch.autograd.grad(logits[:, -1, 7].sum(), gate_leaf)[0])
    assert gradients[0][2:4].all()
    assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_qwen_2_in_half_precision_is_finite_under_gates(dtype: torch.dtype) -> None:
    masked_lm = MaskedLM(BY_NAME["qwen2"].build().to(dtype))
    scored = torch.arange(7).expand(6, -1) < torch.tensor([7, 1, 4, 7, 3, 5])[:, None]  # padded on the right
    gates = example_gates(masked_lm.graph).flatten(1)[None].requires_grad_()
    hidden = masked_lm(random_texts() * scored, scored, gates)
    assert masked_lm.unembed(hidden).isfinite().all()
    assert (
        torch.autograd.grad(masked_lm.unembed(hidden).float().log_softmax(-1)[..., 7].sum(), gates)[0].isfinite().all()
    )


def test_the_error_for_non_finite_activations_names_the_dtype_to_use() -> None:
    """Larger Qwen 2 models have activations beyond the range of float16."""
    lm = BY_NAME["qwen2"].build()
    lm.model.layers[1].mlp.gate_proj.weight.mul_(1e3)
    lm.model.layers[1].mlp.up_proj.weight.mul_(1e3)
    MaskedLM(lm)
    with pytest.raises(
        ml.UserError, match="Qwen2ForCausalLM .* not finite in float16. Choose --model.dtype float32 or bfloat16"
    ):
        MaskedLM(lm.half())


def test_non_finite_activations_on_a_single_text_are_refused() -> None:
    masked_lm = MaskedLM(BY_NAME["qwen2"].build())
    masked_lm.lm.model.embed_tokens.weight[50] = torch.nan
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    masked_lm.full(torch.tensor([[7, 8, 9]]), everywhere)
    with pytest.raises(ml.UserError, match="not finite in float32"):
        masked_lm.full(torch.tensor([[7, 50, 9]]), everywhere)


def test_a_dtype_that_the_device_does_not_support_is_a_user_error() -> None:
    """The grouped matrix product of a mixture of experts does not support float64."""
    message = "fails on a short text in float64 on this cpu .*Choose .*--model.dtype float32"
    with pytest.raises(ml.UserError, match=message):
        MaskedLM(BY_NAME["mixtral"].build().double())
    lm = BY_NAME["mixtral"].build()
    masked_lm = MaskedLM(lm)
    lm.double()
    with pytest.raises(ml.UserError, match=message):
        masked_lm.move(torch.device("cpu"))


def test_an_unavailable_device_is_a_user_error() -> None:
    masked_lm = MaskedLM(tiny_llama())
    with pytest.raises(ml.UserError, match="LlamaForCausalLM cannot be moved to xpu"):
        masked_lm.move(torch.device("xpu"))
