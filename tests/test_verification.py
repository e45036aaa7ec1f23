"""What a model must be to be gated: what is refused and how it reads, and that misread models are noticed."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import taken_apart
import torch
from conftest import tiny_llama
from families import BY_NAME, NO_HEADS, REFUSED, build
from measured import LOGIT_ERROR, error, some_gates, texts
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, PreTrainedModel

import masklearn as ml
from masklearn.cli import train
from masklearn.masking import MaskedLM, gated, verified_layout
from masklearn.models import Layout, Site
from masklearn.models.verification import require_sound


@pytest.mark.parametrize(("model_type", "config", "found"), REFUSED, ids=[model_type for model_type, *_ in REFUSED])
def test_what_has_no_attention_heads_and_mlp_in_every_layer_is_refused(
    model_type: str, config: dict, found: str
) -> None:
    with pytest.raises(ml.UserError, match=rf"cannot be gated: (found|its config) .*{found}.*, expected .*Choose"):
        MaskedLM(build(model_type, **config))


@pytest.mark.parametrize(
    ("model_type", "found"),
    [("t5", "found a model of type t5, expected a causal language model"), ("mamba", "has no num_attention_heads")],
)
def test_a_refusal_is_one_line_at_the_door(
    model_type: str, found: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    if model_type == "t5":
        AutoConfig.for_model("t5", d_model=16, num_layers=1).save_pretrained(tmp_path)
    else:
        build("mamba", **NO_HEADS).save_pretrained(tmp_path)
    ml.load_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "texts.txt").write_text("mary\njohn\nmary and john\n")
    asked = {"model.lm": tmp_path, "data.path": tmp_path / "texts.txt", "run.dir": tmp_path / "run"}
    capfd.readouterr()
    assert train([part for flag, value in asked.items() for part in (f"--{flag}", str(value))]) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert re.search(rf"^error: model.lm: .* cannot be gated: .*{found}", error, flags=re.M)
    assert not (tmp_path / "run").exists()


class Recurrent(nn.Module):
    """In place of an attention."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states.cumsum(1), None


class Nothing(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


@pytest.mark.parametrize(
    ("part", "by", "found"),
    [("self_attn", Recurrent(), "0 attentions in layer 1"), ("mlp", Nothing(), "no MLP in layer 1")],
)
def test_a_single_layer_without_attention_or_mlp_is_refused(part: str, by: nn.Module, found: str) -> None:
    lm = tiny_llama()
    lm.model.layers[1].set_submodule(part, by)
    with pytest.raises(ml.UserError, match=rf"found {found} \(LlamaDecoderLayer\), expected one"):
        MaskedLM(lm)


def misread(name: str, change: Callable[[Site], Site]) -> None:
    """Check a family whose sites were found otherwise than they are."""
    layout = Layout.of(BY_NAME[name].build())
    layout = replace(layout, sites=(layout.sites[0], change(layout.sites[1])))
    require_sound(layout, lambda layout, gates: gated(layout.lm, gates, layout=layout))


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("llama", lambda site: replace(site, heads=site.layer.self_attn.k_proj), "layer 1 .* with its attention gates"),
        ("llama", lambda site: replace(site, mlp=site.layer.mlp.up_proj), None),
        ("llama", lambda site: replace(site, mlp=site.layer.input_layernorm), "layer 1 .* with its MLP gates closed"),
        ("gpt2", lambda site: replace(site, mlp=site.layer.ln_2), "layer 1 .* with its MLP gates closed"),
        ("gemma2", lambda site: replace(site, mlp=site.layer.mlp), "a half-open MLP in layer 1 does 1 of what"),
        ("olmo2", lambda site: replace(site, attention_norm=None), "a half-open head in layer 1 does 1 of what"),
        ("gpt_neox", lambda site: replace(site, mlp=site.layer), "layer 1 .* with its MLP gates closed"),
    ],
)
def test_a_misread_layer_is_noticed(name: str, change: Callable[[Site], Site], found: str | None) -> None:
    if found is None:  # an MLP without bias is closed as well by closing what goes into its product
        misread(name, change)
        return
    with pytest.raises(ml.UserError, match=f"cannot be gated: found (that )?{found}.*, expected"):
        misread(name, change)


def test_an_attention_that_adds_more_than_its_heads_is_noticed() -> None:
    lm = BY_NAME["llama"].build()
    attention = lm.model.layers[1].self_attn
    forward = attention.forward

    def with_residual(hidden_states: Tensor, **kwargs: Any) -> Any:
        output, weights = forward(hidden_states, **kwargs)
        output += hidden_states  # in place, so that the output is still that of the projection
        return output, weights

    attention.forward = with_residual
    with pytest.raises(ml.UserError, match="layer 1 .* attention gates closed, expected its attention at its bias"):
        MaskedLM(lm)


def test_logits_that_do_not_come_from_the_last_hidden_states_are_noticed() -> None:
    lm = BY_NAME["granite"].build()
    forward = lm.forward
    calls = []

    def more_each_time(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        calls.append(1)
        output.logits = output.logits * len(calls)
        return output

    lm.forward = more_each_time
    with pytest.raises(ml.UserError, match="found logits that are .* off with all gates open"):
        MaskedLM(lm)


def test_nodes_that_do_nothing_are_no_reason_to_refuse() -> None:
    """As in a model from which a subgraph was cut."""
    lm = BY_NAME["gemma2"].build()
    for layer in lm.model.layers:
        layer.self_attn.o_proj.weight[:, :-16] = 0
        layer.mlp.down_proj.weight.zero_()
    assert MaskedLM(lm).graph == ml.NodeGraph.of(lm)


def test_a_model_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_llama()
    layout = verified_layout(lm)
    monkeypatch.setattr(Layout, "of", None)
    assert verified_layout(lm) is layout and MaskedLM(lm).layout is layout


def test_a_model_whose_parts_were_exchanged_is_looked_at_again() -> None:
    family = BY_NAME["llama"]
    lm = family.build()
    gates = some_gates(ml.NodeGraph.of(lm))
    with ml.gated(lm, gates.flatten(1)):
        expected = lm(texts()).logits
    for layer in lm.model.layers:
        layer.self_attn.o_proj = nn.Linear(64, 32, bias=False).requires_grad_(False)
    with ml.gated(lm, gates.flatten(1)):
        found = lm(texts()).logits
    assert error(found, taken_apart.logits(family, lm, texts(), gates)) < LOGIT_ERROR
    assert not torch.allclose(found, expected, atol=0.1)


@pytest.mark.parametrize("inputs", [2, 6])
def test_rows_of_gates_that_do_not_fit_the_batch_are_refused(inputs: int) -> None:
    """Two times six tokens could be taken for three rows of four."""
    lm = tiny_llama()
    with (
        pytest.raises(ml.UserError, match=f"3 rows of gates do not fit a batch of {inputs} inputs"),
        ml.gated(lm, torch.ones(3, 15)),
    ):
        lm(torch.ones(inputs, 6, dtype=torch.long))


# --- weights and precisions -------------------------------------------------------------------------------------------


class Packed(nn.Module):
    """A quantised linear layer as libraries have them: weights as bytes and scales, and no widths to ask for."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight
        self.scale = (weight.abs().amax(1) / 127).tolist()
        self.register_buffer("bytes", (weight / torch.tensor(self.scale)[:, None]).round().to(torch.int8).flatten())
        self.register_buffer("added", linear.bias)

    def weight_now(self) -> Tensor:
        return self.get_buffer("bytes").view(len(self.scale), -1) * torch.tensor(self.scale)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self)


class _Product(torch.autograd.Function):
    """Differentiable in its input, and in nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        output = x @ packed.weight_now().T
        return output + packed.added if isinstance(packed.added, Tensor) else output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return gradient @ ctx.packed.weight_now(), None


def quantised(lm: PreTrainedModel, unpack: bool) -> PreTrainedModel:
    """Every linear layer of the body exchanged for a packed one, or for the linear layer that this comes to."""
    for name, module in list(lm.base_model.named_modules()):
        if isinstance(module, nn.Linear):
            packed = Packed(module)
            if unpack:
                module.weight.copy_(packed.weight_now())
            else:
                lm.base_model.set_submodule(name, packed)
    return lm


@pytest.mark.parametrize("name", ["llama", "llama biases, tied", "opt", "gemma2", "gpt_neox", "qwen2_moe"])
def test_quantised_weights_are_gated_as_any(name: str) -> None:
    family = BY_NAME[name]
    packed, unpacked = (quantised(family.build(), unpack) for unpack in (False, True))
    gates, input_ids = some_gates(ml.NodeGraph.of(packed)), texts()
    slopes = []
    for lm in (packed, unpacked):
        leaf = gates.flatten(1).clone().requires_grad_()
        with ml.gated(lm, leaf):
            logits = lm(input_ids).logits
        assert error(logits, taken_apart.logits(family, unpacked, input_ids, gates)) < LOGIT_ERROR
        slopes.append(torch.autograd.grad(logits[:, -1, 7].sum(), leaf)[0])
    assert slopes[0][2:4].all()
    assert_close(slopes[0], slopes[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_qwen_2_in_half_precision_is_finite_under_gates(dtype: torch.dtype) -> None:
    masked_lm = MaskedLM(BY_NAME["qwen2"].build().to(dtype))
    scored = torch.arange(7).expand(6, -1) < torch.tensor([7, 1, 4, 7, 3, 5])[:, None]  # padded on the right
    gates = some_gates(masked_lm.graph).flatten(1)[None].requires_grad_()
    hidden = masked_lm(texts() * scored, scored, gates)
    assert masked_lm.unembed(hidden).isfinite().all()
    assert (
        torch.autograd.grad(masked_lm.unembed(hidden).float().log_softmax(-1)[..., 7].sum(), gates)[0].isfinite().all()
    )


def test_numbers_that_are_not_finite_name_the_precision_to_use() -> None:
    """Activations beyond what float16 can hold, as larger Qwen 2 models have them."""
    lm = BY_NAME["qwen2"].build()
    lm.model.layers[1].mlp.gate_proj.weight.mul_(1e3)
    lm.model.layers[1].mlp.up_proj.weight.mul_(1e3)
    MaskedLM(lm)
    with pytest.raises(
        ml.UserError, match="Qwen2ForCausalLM .* not finite in float16. Choose --model.dtype float32 or bfloat16"
    ):
        MaskedLM(lm.half())


def test_numbers_that_are_not_finite_for_some_text_only_are_noticed() -> None:
    masked_lm = MaskedLM(BY_NAME["qwen2"].build())
    masked_lm.lm.model.embed_tokens.weight[50] = torch.nan
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    masked_lm.full(torch.tensor([[7, 8, 9]]), everywhere)
    with pytest.raises(ml.UserError, match="not finite in float32"):
        masked_lm.full(torch.tensor([[7, 50, 9]]), everywhere)


def test_a_precision_that_the_device_lacks_is_a_clear_line() -> None:
    """The grouped product of a mixture of experts takes no float64."""
    message = "cannot read a short text in float64 on this cpu .*Choose .*--model.dtype float32"
    with pytest.raises(ml.UserError, match=message):
        MaskedLM(BY_NAME["mixtral"].build().double())
    lm = BY_NAME["mixtral"].build()
    masked_lm = MaskedLM(lm)
    lm.double()
    with pytest.raises(ml.UserError, match=message):
        masked_lm.move(torch.device("cpu"))


def test_a_device_that_is_not_there_is_a_clear_line() -> None:
    masked_lm = MaskedLM(tiny_llama())
    with pytest.raises(ml.UserError, match="LlamaForCausalLM cannot be moved to xpu"):
        masked_lm.move(torch.device("xpu"))
