from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import masklearn as ml
from masklearn.adapter import fingerprint
from masklearn.masked_lm import MaskedLM

COMMON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
COMMON |= {"intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 4},
    "gpt_neo": COMMON | {"num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]},
    "gpt_neox": COMMON,
    "opt": COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": COMMON | {"n_layer": 3, "n_head": 4},
    "falcon": COMMON,
    "phi": COMMON,
    "phi3": COMMON,
    "llama": COMMON | {"num_key_value_heads": 2},
    "mistral": COMMON | {"num_key_value_heads": 2},
    "qwen2": COMMON | {"num_key_value_heads": 2},
    "qwen3": COMMON | {"num_key_value_heads": 2, "head_dim": 16},
    "gemma2": COMMON | {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": COMMON | {"num_key_value_heads": 2, "head_dim": 16},
    "olmo": COMMON,
    "olmo2": COMMON,
    "granite": COMMON | {"logits_scaling": 3.0},
    "cohere": COMMON,
    "starcoder2": COMMON,
}


MAMBA = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}


def build(family: str, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES.get(family, MAMBA if family == "mamba" else COMMON) | changes)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_gate_of_every_family_acts(family: str) -> None:
    masked_lm = MaskedLM(build(family))  # checks that open gates change nothing
    tokens = torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(0))
    scored = torch.ones_like(tokens, dtype=torch.bool)
    gates = torch.full((1, 2, masked_lm.graph.n_nodes), 0.5, requires_grad=True)
    masked_lm(tokens, scored, gates)[..., 0].sum().backward()
    assert masked_lm.graph.n_nodes == 15
    assert gates.grad is not None and gates.grad.all()
    closed = masked_lm(tokens, scored, torch.zeros(1, 2, 15))
    assert not torch.allclose(closed, masked_lm.full(tokens, scored))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_every_node_of_every_family_contributes_is_a_share(family: str) -> None:
    """Of what meets in a layer, the stream has the rest, so the heads of a layer come to less than 1 together."""
    masked_lm = MaskedLM(build(family))
    share = masked_lm.contributions(torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(0)))
    assert share.shape == (2, 6, 15)
    assert (share > 0).all() and (share < 1).all()
    assert (masked_lm.graph.by_layer(share)[..., :-1].sum(-1) < 1).all()
    masked_lm.layout.sites[1].mlp.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    silent = masked_lm.contributions(torch.arange(3, 9)[None])
    assert (masked_lm.graph.by_layer(silent)[:, :, 1, -1] == 0).all()


@pytest.mark.parametrize(("family", "found"), [("mamba", "has no num_attention_heads"), ("bert", "intermediate")])
def test_a_model_that_does_not_fit_is_refused_with_what_was_found(family: str, found: str) -> None:
    config = {} if family == "mamba" else {"is_decoder": True}
    lm = build(family, **config)
    with pytest.raises(ml.UserError, match=f"{found}.* expected"):
        MaskedLM(lm)


def test_a_misread_output_head_is_noticed() -> None:
    lm = build("granite")
    lm.config.logits_scaling = 1.0  # the model itself goes on dividing by 3
    lm_forward = lm.forward

    def forward(*args: object, **kwargs: object) -> object:
        output = lm_forward(*args, **kwargs)
        output.logits = output.logits / 3
        return output

    lm.forward = forward
    with pytest.raises(ml.UserError, match="output head of GraniteForCausalLM was misread"):
        MaskedLM(lm)


def test_a_fingerprint_tells_models_apart_but_not_precisions() -> None:
    one, other = build("llama"), build("llama")
    other.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1.1)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(build("llama").bfloat16())


def test_a_loaded_model_is_frozen() -> None:
    lm = ml.load_lm()
    assert not lm.training
    assert not any(parameter.requires_grad for parameter in lm.parameters())


@pytest.mark.parametrize("lm", ["./nowhere", "nobody/nothing-at-all", "/no/such/folder"])
def test_an_unknown_model_is_a_clear_line(lm: str) -> None:
    with pytest.raises(ml.UserError, match="model.lm: .*nothing-at-all|model.lm: there is no folder"):
        ml.load_lm(lm)


def test_a_folder_that_is_no_model_is_a_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ml.UserError, match=r"model\.lm: cannot load"):
        ml.load_lm(str(tmp_path))


def test_a_truncated_model_is_a_clear_line(tmp_path: Path) -> None:
    ml.load_lm().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ml.UserError, match=r"model\.lm: cannot load"):
        ml.load_lm(str(tmp_path))
