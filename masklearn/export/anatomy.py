"""Where the heads and MLPs of a family are, for removal: a table, since removal needs more than structure shows.

Gates need to know what a node puts out; removal also needs to know which rows of which matrices make it, and which
norms serve it alone. `export` compares every exported folder with the gated model, so that an entry that does not hold
for a model is noticed.
"""

from typing import Any

from transformers import PreTrainedModel

from masklearn.errors import UserError

SEPARATE = {
    "layers": "model.layers", "attention": "self_attn", "query": "q_proj", "key": "k_proj", "value": "v_proj",
    "output": "o_proj", "mlp": "mlp",
}  # fmt: skip
"""Queries, keys and values have a projection each."""
PRE_NORM = SEPARATE | {"attention_norms": ["input_layernorm"], "mlp_norms": ["post_attention_layernorm"]}
"""A norm before the attention and one before the MLP."""
POST_NORM = SEPARATE | {
    "attention_norms": ["post_attention_layernorm"], "mlp_norms": ["post_feedforward_layernorm"],
    "norm_after_attention": "post_attention_layernorm",
}  # fmt: skip
"""A norm behind each."""
BOTH_NORMS = POST_NORM | {
    "attention_norms": ["input_layernorm", "post_attention_layernorm"],
    "mlp_norms": ["pre_feedforward_layernorm", "post_feedforward_layernorm"],
}
"""Norms before and behind."""
GPT2 = {
    "layers": "transformer.h", "attention": "attn", "fused": "c_attn", "interleaved": False, "output": "c_proj",
    "mlp": "mlp", "attention_norms": ["ln_1"], "mlp_norms": ["ln_2"],
}  # fmt: skip
GPT_NEOX = {
    "layers": "gpt_neox.layers", "attention": "attention", "fused": "query_key_value", "interleaved": True,
    "output": "dense", "mlp": "mlp", "attention_norms": ["input_layernorm"], "mlp_norms": ["post_attention_layernorm"],
}  # fmt: skip
ANATOMIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("apertus", "arcee", "gemma", "granite", "llama", "ministral", "ministral3", "mistral", "olmo", "qwen2",
         "qwen3", "seed_oss", "smollm3", "starcoder2"),
        PRE_NORM,
    ),
    **dict.fromkeys(("exaone4", "olmo2", "olmo3"), POST_NORM),
    **dict.fromkeys(("gemma2", "gemma3_text"), BOTH_NORMS),
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
}  # fmt: skip
"""The anatomy of every family whose nodes can be removed, by model type."""
ANATOMIES["apertus"] = PRE_NORM | {"attention_norms": ["attention_layernorm"], "mlp_norms": ["feedforward_layernorm"]}


def anatomy_of(lm: PreTrainedModel) -> dict[str, Any]:
    """The anatomy of a model.

    Raises:
        UserError: If the removal of its nodes is not known.
    """
    model_type = lm.config.model_type
    if model_type not in ANATOMIES:
        raise UserError(
            f"export to hf: how to remove nodes of {model_type} models is not known; it is for "
            f"{', '.join(sorted(ANATOMIES))}. --to eap and --to list write the mask of any model"
        )
    return ANATOMIES[model_type]
