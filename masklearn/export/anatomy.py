"""Where the heads and MLPs of a family are, for removal: a table, since removal needs more than structure shows.

Gates need to know what a node puts out; removal also needs to know which rows of which matrices make it, and which
norms serve it alone. `export` compares every exported folder with the gated model, so that an entry that does not hold
for a model is noticed.
"""

from typing import Any

from transformers import PreTrainedConfig

from masklearn.ablation import Ablation
from masklearn.errors import UserError

SEPARATE = {
    "layers": "model.layers", "attention": "self_attn", "query": "q_proj", "key": "k_proj", "value": "v_proj",
    "output": "o_proj", "mlp": "mlp",
}  # fmt: skip
"""Queries, keys and values have a projection each."""
PRE_NORM = SEPARATE | {"attention_only": ["input_layernorm"], "mlp_only": ["post_attention_layernorm"]}
"""A norm before the attention and one before the MLP."""
POST_NORM = SEPARATE | {
    "attention_only": ["post_attention_layernorm"], "mlp_only": ["post_feedforward_layernorm"],
    "norm_after_attention": "post_attention_layernorm",
}  # fmt: skip
"""A norm behind each."""
BOTH_NORMS = POST_NORM | {
    "attention_only": ["input_layernorm", "post_attention_layernorm"],
    "mlp_only": ["pre_feedforward_layernorm", "post_feedforward_layernorm"],
}
"""Norms before and behind."""
GLM4 = SEPARATE | {
    "attention_only": ["input_layernorm", "post_self_attn_layernorm"],
    "mlp_only": ["post_attention_layernorm", "post_mlp_layernorm"],
    "norm_after_attention": "post_self_attn_layernorm",
}
"""The same under other names."""
GPT2 = {
    "layers": "transformer.h", "attention": "attn", "fused": "c_attn", "order": "part by part", "output": "c_proj",
    "mlp": "mlp", "attention_only": ["ln_1"], "mlp_only": ["ln_2"],
}  # fmt: skip
GPT_NEOX = {
    "layers": "gpt_neox.layers", "attention": "attention", "fused": "query_key_value", "order": "head by head",
    "output": "dense", "mlp": "mlp", "attention_only": ["input_layernorm"], "mlp_only": ["post_attention_layernorm"],
}  # fmt: skip
ONE_NORM = {"attention_only": [], "mlp_only": []}
"""Attention and MLP in parallel, behind the same norm."""
GPTJ = SEPARATE | ONE_NORM | {
    "layers": "transformer.h", "attention": "attn", "output": "out_proj", "count": "num_attention_heads",
}  # fmt: skip
PHI3 = PRE_NORM | {"fused": "qkv_proj", "order": "part by part"}
OPT = SEPARATE | {
    "layers": "model.decoder.layers", "output": "out_proj", "mlp": "fc2", "count": "num_heads", "attention_only": [],
    "mlp_only": ["fc1"],
}  # fmt: skip
OPT_PRE_NORM = OPT | {"attention_only": ["self_attn_layer_norm"], "mlp_only": ["fc1", "final_layer_norm"]}
FALCON = {
    "layers": "transformer.h", "attention": "self_attention", "fused": "query_key_value", "order": "group by group",
    "output": "dense", "mlp": "mlp", "count": "num_heads", "mlp_in_place": True,
}  # fmt: skip
ANATOMIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("arcee", "cwm", "dots1", "ernie4_5", "ernie4_5_moe", "exaone_moe", "gemma", "glm", "glm4_moe", "granite",
         "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "jais2", "llama", "mellum", "minimax_m2", "ministral",
         "ministral3", "mistral", "mixtral", "nemotron", "olmo", "olmoe", "phimoe", "qwen2", "qwen2_moe", "qwen3",
         "qwen3_moe", "seed_oss", "smollm3", "solar_open", "starcoder2"),
        PRE_NORM,
    ),
    **dict.fromkeys(("exaone4", "flex_olmo", "olmo2", "olmo3"), POST_NORM),
    **dict.fromkeys(("gemma2", "gemma3_text"), BOTH_NORMS),
    **dict.fromkeys(("glm4", "kolibri1"), GLM4),
    **dict.fromkeys(("cohere2", "cohere2_moe"), SEPARATE | ONE_NORM),
    "apertus": PRE_NORM | {"attention_only": ["attention_layernorm"], "mlp_only": ["feedforward_layernorm"]},
    "falcon": FALCON,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "gptj": GPTJ,
    "opt": OPT,
    "phi": SEPARATE | ONE_NORM | {"output": "dense"},
    "phi3": PHI3,
    "vaultgemma": PRE_NORM | {"mlp_only": ["pre_feedforward_layernorm"]},
}  # fmt: skip
"""The anatomy of every family whose nodes can be removed, by model type."""


def require_removable(config: PreTrainedConfig, ablation: Ablation) -> None:
    """Refuse models whose nodes cannot be removed, and ablations whose closed nodes do not emit a constant.

    Raises:
        UserError: Says why.
    """
    anatomy_of(config)
    if ablation.name == "resample" or ablation.positional:
        what = "what the node does on a corrupted input" if ablation.name == "resample" else "a value for each position"
        raise UserError(
            f"export to hf: under {ablation.name} ablation a closed node emits {what}, so it cannot be removed. Learn "
            "the masks under zero, mean or learned ablation; --to eap and --to list write them under any"
        )


def anatomy_of(config: Any) -> dict[str, Any]:
    """The anatomy of the models of a config.

    Raises:
        UserError: If the removal of their nodes is not known.
    """
    model_type = config.model_type
    if model_type not in ANATOMIES:
        raise UserError(
            f"export to hf: how to remove nodes of {model_type} models is not known; it is for "
            f"{', '.join(sorted(ANATOMIES))}. --to eap and --to list write the mask of any model"
        )
    if model_type == "opt" and config.do_layer_norm_before:
        return OPT_PRE_NORM
    return FALCON | _falcon_norms(config) if model_type == "falcon" else ANATOMIES[model_type]


def _falcon_norms(config: Any) -> dict[str, Any]:
    """Which norms serve a Falcon's attention alone, or its MLP alone.

    Raises:
        UserError: If it has ALiBi: it computes the biases of all heads together.
    """
    if config.alibi:
        raise UserError(
            "export to hf: this falcon model has ALiBi position biases, whose heads cannot be removed. "
            "--to eap and --to list write the mask of any model"
        )
    if not config.parallel_attn:
        return {"attention_only": ["input_layernorm"], "mlp_only": ["post_attention_layernorm"]}
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn != 1:
        return {"attention_only": ["ln_attn"], "mlp_only": ["ln_mlp"]}
    return ONE_NORM
