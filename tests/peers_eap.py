"""Evaluate circuit files with EAP-IG: run by `test_circuit_files.py` in a Python that has EAP-IG's packages.

Prints the log-probabilities of the last token under every circuit, as JSON.
"""

import json
import sys
from types import ModuleType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def hooked(folder: str) -> Any:
    """The model of a folder in TransformerLens, with folding off."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig  # pyright: ignore
    from transformer_lens.pretrained import weight_conversions  # pyright: ignore

    config, lm = AutoConfig.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    is_llama = config.model_type == "llama"
    shared = {
        "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads, "d_model": config.hidden_size,
        "n_ctx": config.max_position_embeddings, "d_vocab": config.vocab_size, "dtype": torch.float32, "seed": 0,
    }  # fmt: skip
    if is_llama:
        rope = getattr(config, "rope_parameters", None) or {}  # as newer versions of transformers write it
        special = {
            "d_head": config.head_dim, "d_mlp": config.intermediate_size, "act_fn": "silu", "gated_mlp": True,
            "n_key_value_heads": config.num_key_value_heads, "normalization_type": "RMS", "final_rms": True,
            "positional_embedding_type": "rotary", "rotary_dim": config.head_dim, "rotary_adjacent_pairs": False,
            "eps": config.rms_norm_eps, "ungroup_grouped_query_attention": True,
            "rotary_base": int(rope.get("rope_theta", config.rope_theta)),
        }  # fmt: skip
    else:
        width = config.hidden_size
        special = {
            "d_head": width // config.num_attention_heads, "d_mlp": 4 * width, "act_fn": "gelu_new",
            "normalization_type": "LN", "eps": config.layer_norm_epsilon,
        }  # fmt: skip
    model = HookedTransformer(HookedTransformerConfig(**shared, **special))
    convert = weight_conversions.convert_llama_weights if is_llama else weight_conversions.convert_gpt2_weights
    model.load_state_dict(convert(lm, model.cfg), strict=False)
    model.cfg.use_attn_result = model.cfg.use_split_qkv_input = model.cfg.use_hook_mlp_in = True
    return model


class Tokens:
    """Stands in for tokenizing: the texts of the loader are rows of `texts`, by number."""

    def __init__(self, texts: torch.Tensor) -> None:
        self.texts = texts

    def __call__(self, model: Any, inputs: list[str], max_length: int | None = None) -> tuple[Any, ...]:
        ids = self.texts[[int(text) for text in inputs]]
        return ids, torch.ones_like(ids), torch.tensor([ids.shape[1]] * len(ids)), ids.shape[1]


def main(folder: str, texts: list[list[int]], files: list[str]) -> None:
    """Evaluate every file on the first text, corrupted by the second."""
    drawing: Any = ModuleType("pygraphviz")  # draws graphs, which takes no part here
    drawing.AGraph = object
    sys.modules.setdefault("pygraphviz", drawing)
    import eap.evaluate as evaluate  # pyright: ignore
    from eap.graph import Graph  # pyright: ignore

    evaluate.tokenize_plus = Tokens(torch.tensor(texts))
    model, found = hooked(folder), []
    with torch.no_grad():
        for file in files:
            last: list[torch.Tensor] = []

            def metric(logits: Any, *_: Any, last: list[torch.Tensor] = last) -> torch.Tensor:
                last.append(logits[0, -1].log_softmax(-1))
                return torch.zeros(1)

            evaluate.evaluate_graph(model, Graph.from_json(file), [(["0"], ["1"], [0])], metric, quiet=True)
            found.append(last[0].tolist())
    print(json.dumps(found))


if __name__ == "__main__":
    sys.path.insert(0, f"{sys.argv[1]}/src")
    main(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:])
