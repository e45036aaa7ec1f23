"""Small, randomly initialised models of every supported family, and of model types that are refused.

The module paths of a family's nodes are written by hand here. The package finds them by structure.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

logging.set_verbosity_error()  # config classes warn about sizes as small as these

COMMON_SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON_SIZES |= {"intermediate_size": 40, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1}
COMMON_SIZES |= {"eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 16}
"""Two query heads share keys and values, and heads are wider than hidden / heads."""
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}
"""Sliding-window attention in one layer, full attention in the other."""
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
}
"""Multi-head latent attention."""
EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
FOUR_EXPERTS = EXPERTS | {"num_experts": 4}
SHARED_EXPERT = FOUR_EXPERTS | {"shared_expert_intermediate_size": 24}
ROUTED = EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
LLAMA = ("model.layers", "self_attn.o_proj", "mlp")
POST_NORM = (*LLAMA[:2], "post_feedforward_layernorm", "post_attention_layernorm")
"""One norm after the attention and one after the MLP."""
POST_NORM_GLM = (*LLAMA[:2], "post_mlp_layernorm", "post_self_attn_layernorm")
FC2 = ("model.layers", "self_attn.out_proj", "fc2")
OPT = ("model.decoder.layers", *FC2[1:])
GPT = ("transformer.h", "attn.c_proj", "mlp")
GPTJ = ("transformer.h", "attn.out_proj", "mlp")
NEOX = ("gpt_neox.layers", "attention.dense", "mlp")
FALCON = ("transformer.h", "self_attention.dense", "mlp")
DENSE = ("model.layers", "self_attn.dense", "mlp")
IMAGE_ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE_ENCODER |= {"image_size": 28, "patch_size": 14}
"""An image encoder with as many layers as the decoder."""
STATE_SPACE = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4}
NO_HEADS = {"num_attention_heads": None, "intermediate_size": None, "max_position_embeddings": None}
OTHER_SIZE_NAMES = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
"""Removes the common sizes, for configs that name their sizes differently."""


@dataclass(frozen=True)
class Family:
    """A model family, or a variant of it."""

    model_type: str
    hub_id: str
    """A pretrained model of this family, named in the README."""
    module_paths: tuple[str, ...]
    """The layers; then, in a layer: the output projection, the end of the MLP and, if any, the norm after attention."""
    config: dict[str, Any] = field(default_factory=dict)
    finest_dtype: torch.dtype = torch.float64
    """The most precise dtype that its code in transformers supports."""
    variant: str = ""
    """What is special about it, if a family is listed more than once."""

    @property
    def name(self) -> str:
        """Model type and variant."""
        return f"{self.model_type} {self.variant}".strip()

    @property
    def norm(self) -> str | None:
        """Module path of the norm after the attention, if there is one."""
        return self.module_paths[3] if len(self.module_paths) > 3 else None

    def build(self, **changes: Any) -> PreTrainedModel:
        """Build a model in which no bias is zero, no norm weight is one and no contribution is small."""
        return build(self.model_type, **self.config | changes)


def build(model_type: str, **config: Any) -> PreTrainedModel:
    """Build a frozen model of a type from the common sizes and `config`; a size that is None is left out."""
    sizes = {name: value for name, value in (COMMON_SIZES | config).items() if value is not None}
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
        else:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return lm.eval().requires_grad_(False)


FAMILIES = [
    Family("gpt2", "openai-community/gpt2", GPT),
    Family("gpt_neo", "EleutherAI/gpt-neo-125m", ("transformer.h", "attn.attention.out_proj", "mlp"), {
        "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 3}),
    Family("gptj", "EleutherAI/gpt-j-6b", GPTJ, {"rotary_dim": 4}),
    Family("gpt_neox", "EleutherAI/pythia-160m", NEOX),
    Family("gpt_neox", "togethercomputer/RedPajama-INCITE-Base-3B-v1", NEOX, {
        "use_parallel_residual": False}, variant="in sequence"),
    Family("opt", "facebook/opt-125m", OPT, {"ffn_dim": 40, "word_embed_proj_dim": 32}),
    Family("opt", "facebook/opt-350m", OPT, {
        "ffn_dim": 40, "do_layer_norm_before": False, "word_embed_proj_dim": 16}, variant="norms after the sum"),
    Family("bloom", "bigscience/bloom-560m", ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h")),
    Family("falcon", "tiiuae/falcon-7b", FALCON),
    Family("falcon", "tiiuae/falcon-40b", FALCON, {
        "new_decoder_architecture": True, "num_kv_heads": 2}, variant="new decoder"),
    Family("falcon", "tiiuae/falcon-rw-1b", FALCON, {
        "parallel_attn": False, "multi_query": False, "alibi": True, "bias": True}, variant="in sequence"),
    Family("phi", "microsoft/phi-2", DENSE),
    Family("phi3", "microsoft/Phi-3-mini-4k-instruct", LLAMA, GROUPED | {"sliding_window": 3}),
    Family("stablelm", "stabilityai/stablelm-3b-4e1t", LLAMA, GROUPED),
    Family("stablelm", "stabilityai/stablelm-2-12b", LLAMA, GROUPED | {
        "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}, variant="in parallel"),
    Family("llama", "meta-llama/Llama-3.2-1B", LLAMA, WIDE),
    Family("llama", "meta-llama/Llama-3.2-1B", LLAMA, {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, variant="biases, tied"),
    Family("mistral", "mistralai/Mistral-7B-v0.1", LLAMA, WIDE | {"sliding_window": 3}),
    Family("qwen2", "Qwen/Qwen2.5-0.5B", LLAMA, GROUPED),
    Family("qwen3", "Qwen/Qwen3-0.6B", LLAMA, WIDE),
    Family("gemma", "google/gemma-2b", LLAMA, WIDE),
    Family("gemma2", "google/gemma-2-2b", POST_NORM, WIDE | SLIDING | {
        "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}),
    Family("gemma3_text", "google/gemma-3-1b-pt", POST_NORM, WIDE | SLIDING),
    Family("olmo", "allenai/OLMo-1B-hf", LLAMA, {"clip_qkv": 2.0}),
    Family("olmo2", "allenai/OLMo-2-0425-1B", POST_NORM),
    Family("granite", "ibm-granite/granite-3.3-2b-base", LLAMA, GROUPED | {
        "logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "attention_multiplier": 0.3}),
    Family("cohere", "CohereLabs/c4ai-command-r-v01", LLAMA, GROUPED | {"use_qk_norm": True, "logit_scale": 0.5}),
    Family("starcoder2", "bigcode/starcoder2-3b", LLAMA, GROUPED),
    Family("mixtral", "mistralai/Mixtral-8x7B-v0.1", LLAMA, GROUPED | {"num_local_experts": 4}),
    Family("qwen2_moe", "Qwen/Qwen1.5-MoE-A2.7B", LLAMA, GROUPED | SHARED_EXPERT),
    # less common families
    Family("afmoe", "arcee-ai/Trinity-Mini", (*LLAMA[:2], "post_mlp_layernorm", "post_attention_layernorm"),
           WIDE | FOUR_EXPERTS | {"num_dense_layers": 1}),
    Family("apertus", "swiss-ai/Apertus-8B-2509", LLAMA, GROUPED),
    Family("arcee", "arcee-ai/AFM-4.5B", LLAMA, WIDE),
    Family("axk1", "skt/A.X-K1", LLAMA, LATENT | ROUTED | {"first_k_dense_replace": 1}),
    Family("beam", "reflection/Beam-1.0-501B-A23B", POST_NORM, WIDE | ROUTED),
    Family("biogpt", "microsoft/biogpt", ("biogpt.layers", *FC2[1:])),
    Family("bitnet", "microsoft/bitnet-b1.58-2B-4T", LLAMA, GROUPED),
    Family("codegen", "Salesforce/codegen-350M-mono", GPTJ, {"rotary_dim": 4}),
    Family("cohere2", "CohereLabs/c4ai-command-r7b-12-2024", LLAMA, GROUPED | SLIDING | {"logit_scale": 0.5}),
    Family("cohere2_moe", "CohereLabs/command-a-plus-05-2026", LLAMA, WIDE | SLIDING | FOUR_EXPERTS | {
        "logit_scale": 0.5}),
    Family("ctrl", "Salesforce/ctrl", ("transformer.h", "multi_head_attention.dense", "ffn"), {"dff": 40}),
    Family("cwm", "facebook/cwm", LLAMA, WIDE | SLIDING),
    Family("deepseek_v2", "deepseek-ai/DeepSeek-V2-Lite", LLAMA, LATENT | ROUTED | {"first_k_dense_replace": 1}),
    Family("deepseek_v3", "deepseek-ai/DeepSeek-V3", LLAMA, LATENT | ROUTED | {"first_k_dense_replace": 1}),
    Family("deepseek_v32", "deepseek-ai/DeepSeek-V3.2-Exp", LLAMA, LATENT | ROUTED | {
        "index_topk": 4, "index_head_dim": 8, "index_n_heads": 2}),
    Family("doge", "SmallDoge/Doge-320M", LLAMA, GROUPED),
    Family("dots1", "rednote-hilab/dots.llm1.base", LLAMA, GROUPED | ROUTED | {"first_k_dense_replace": 1}),
    Family("ernie4_5", "baidu/ERNIE-4.5-0.3B-PT", LLAMA, WIDE),
    Family("ernie4_5_moe", "baidu/ERNIE-4.5-21B-A3B-PT", LLAMA, GROUPED | {
        "moe_intermediate_size": 24, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1}),
    Family("exaone4", "LGAI-EXAONE/EXAONE-4.0-1.2B", POST_NORM, GROUPED | SLIDING),
    Family("exaone_moe", "LGAI-EXAONE/K-EXAONE-236B-A23B", LLAMA, WIDE | SLIDING | FOUR_EXPERTS | {
        "n_group": 1, "topk_group": 1}),
    Family("flex_olmo", "allenai/FlexOlmo-7x7B-1T", POST_NORM, {"num_experts": 4, "num_experts_per_tok": 2}),
    Family("flint", "RecursiveSI/flint", LLAMA, WIDE | SLIDING | FOUR_EXPERTS),
    Family("gemma3", "google/gemma-3-4b-pt", ("model.language_model.layers", *POST_NORM[1:]), {
        "text_config": COMMON_SIZES | WIDE | SLIDING, "vision_config": IMAGE_ENCODER, "mm_tokens_per_image": 4}),
    Family("glm", "zai-org/glm-4-9b-hf", LLAMA, WIDE),
    Family("glm4", "zai-org/GLM-4-9B-0414", POST_NORM_GLM, WIDE),
    Family("glm4_moe", "zai-org/GLM-4.5-Air", LLAMA, GROUPED | ROUTED),
    Family("glm4_moe_lite", "zai-org/GLM-4.7-Flash", LLAMA, LATENT | ROUTED),
    Family("gpt_bigcode", "bigcode/gpt_bigcode-santacoder", GPT),
    Family("gpt_oss", "openai/gpt-oss-20b", LLAMA, WIDE | SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("granite_swa", "ibm-granite/granite-swash-2b", LLAMA, GROUPED | SLIDING),
    Family("granitemoe", "ibm-granite/granite-3.1-1b-a400m-base", (*LLAMA[:2], "block_sparse_moe"), {
        "num_local_experts": 4, "logits_scaling": 3.0}),
    Family("granitemoehybrid", "ibm-granite/granite-4.0-micro", (*LLAMA[:2], "shared_mlp"), GROUPED | STATE_SPACE | {
        "layer_types": ["attention", "attention"], "num_local_experts": 0, "shared_intermediate_size": 40}),
    Family("helium", "kyutai/helium-1-preview-2b", LLAMA, GROUPED | {"head_dim": 8}),
    Family("hunyuan_v1_dense", "tencent/Hunyuan-0.5B-Pretrain", LLAMA, WIDE),
    Family("hunyuan_v1_moe", "tencent/Hunyuan-A13B-Instruct", LLAMA, WIDE | {"num_experts": 4, "moe_topk": 2}),
    Family("hy_v3", "tencent/Hy3-preview", LLAMA, WIDE | FOUR_EXPERTS),
    Family("hyperclovax", "naver-hyperclovax/HyperCLOVAX-SEED-Think-14B", (*LLAMA[:2], "post_norm2", "post_norm1"),
           GROUPED | {"use_post_norm": True, "logits_scaling": 0.3}),
    Family("jais2", "inceptionai/Jais-2-8B-Chat", LLAMA, GROUPED),
    Family("kolibri1", "Aleph-Alpha/Kolibri-1", POST_NORM_GLM, WIDE | FOUR_EXPERTS),
    Family("laguna", "poolside/laguna-XS.2", LLAMA, WIDE | SLIDING | SHARED_EXPERT),
    Family("llama4_text", "meta-llama/Llama-4-Scout-17B-16E", (*LLAMA[:2], "feed_forward"), WIDE | {
        "num_local_experts": 4, "intermediate_size_mlp": 40, "attention_chunk_size": 3}),
    Family("mellum", "JetBrains/Mellum2-12B-A2.5B-Base", LLAMA, WIDE | SLIDING | FOUR_EXPERTS),
    Family("mimo_v2_flash", "XiaomiMiMo/MiMo-V2-Flash", LLAMA, WIDE | SLIDING | ROUTED | {"v_head_dim": 8}),
    Family("minicpm3", "openbmb/MiniCPM3-4B", LLAMA, LATENT | {"dim_model_base": 16}),
    Family("minimax_m2", "MiniMaxAI/MiniMax-M2", LLAMA, WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("ministral", "mistralai/Ministral-8B-Instruct-2410", LLAMA, WIDE | SLIDING),
    Family("ministral3", "mistralai/Ministral-3-3B-Base-2512", LLAMA, WIDE),
    Family("modernbert-decoder", "jhu-clsp/ettin-decoder-150m", ("model.layers", "attn.Wo", "mlp"), {
        "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2}),
    Family("mpt", "mosaicml/mpt-7b", ("transformer.blocks", "attn.out_proj", "ffn.down_proj"), {"expansion_ratio": 2}),
    Family("nanochat", "karpathy/nanochat-d32", LLAMA),
    Family("nemotron", "nvidia/Minitron-4B-Base", LLAMA, WIDE),
    Family("olmo3", "allenai/Olmo-3-1025-7B", POST_NORM, SLIDING),
    Family("olmoe", "allenai/OLMoE-1B-7B-0924", LLAMA, {"num_experts": 4, "num_experts_per_tok": 2}),
    Family("openai-gpt", "openai-community/openai-gpt", GPT, {"n_positions": 64}),
    Family("persimmon", "adept/persimmon-8b-base", DENSE),
    Family("phimoe", "microsoft/Phi-3.5-MoE-instruct", LLAMA, GROUPED | {"num_local_experts": 4}),
    Family("qwen3_moe", "Qwen/Qwen3-30B-A3B", LLAMA, WIDE | FOUR_EXPERTS),
    Family("seed_oss", "ByteDance-Seed/Seed-OSS-36B-Base", LLAMA, WIDE),
    Family("smollm3", "HuggingFaceTB/SmolLM3-3B", LLAMA, GROUPED | {"no_rope_layer_interval": 2}),
    Family("solar_open", "upstage/Solar-Open-100B", LLAMA, WIDE | ROUTED),
    Family("vaultgemma", "google/vaultgemma-1b", LLAMA, WIDE | SLIDING),
    Family("xglm", "facebook/xglm-564M", FC2, OTHER_SIZE_NAMES | {
        "d_model": 32, "ffn_dim": 40, "num_layers": 2, "attention_heads": 4}, torch.float32),
    Family("youtu", "tencent/Youtu-LLM-2B", LLAMA, LATENT),
]  # fmt: skip
"""Supported families in transformers. The first thirty are the most common ones and their variants."""
BY_NAME = {family.name: family for family in FAMILIES}

SEQ2SEQ = OTHER_SIZE_NAMES | {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 32}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mamba", NO_HEADS, "has no num_attention_heads"),
    ("mamba2", NO_HEADS | {"num_heads": 8, "head_dim": 8, "n_groups": 2}, "has no num_attention_heads"),
    ("rwkv", NO_HEADS, "has no num_attention_heads"),
    ("xlstm", NO_HEADS | {"num_heads": 4, "qk_dim_factor": 0.5}, "has no num_attention_heads"),
    ("jamba", GROUPED | STATE_SPACE | {
        "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    }, "linear_attention in 1 of 2 layers"),
    ("recurrent_gemma", {"block_types": ["recurrent", "attention"]}, "linear_attention in 1 of 2 layers"),
    ("minimax", WIDE | {"num_local_experts": 2}, "linear_attention in 1 of 2 layers"),
    ("bamba", GROUPED | STATE_SPACE | {"attn_layer_indices": [1]}, "linear_attention in 1 of 2 layers"),
    ("falcon_h1", WIDE | STATE_SPACE | {"mamba_n_heads": 4, "mamba_d_ssm": 32}, "hybrid in 2 of 2 layers"),
    ("lfm2", GROUPED | {"layer_types": ["conv", "full_attention"]}, "conv in 1 of 2 layers"),
    ("bert", {}, "predictions that depend on later tokens"),
    ("roberta", {}, "predictions that depend on later tokens"),
    ("bert", {"is_decoder": True}, "a LayerNorm that makes the output of BertAttention"),
    ("trocr", SEQ2SEQ, r"2 attentions \(self_attn, encoder_attn\)"),
    ("diffllama", WIDE, "attention whose heads are differences of two"),
    ("jetmoe", {
        "num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 2, "num_experts_per_tok": 2,
    }, "no part that makes the output of JetMoeAttention"),
    ("granitemoeshared", GROUPED | {
        "num_local_experts": 2, "shared_intermediate_size": 16,
    }, "attention and block_sparse_moe, shared_mlp in layer 0"),
    ("gemma4_text", WIDE | {
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "num_kv_shared_layers": 0,
    }, "attention and mlp, per_layer_input_gate, per_layer_projection in layer 0"),
    ("laguna", WIDE | SHARED_EXPERT | {"num_attention_heads_per_layer": [4, 8]}, "8 attention heads in layer 1"),
]  # fmt: skip
"""Model types that are refused: type, config, and a pattern of the error message."""
