"""Randomly initialised models with the shapes of well-known ones, and texts of a given length for them."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import masklearn as ml
from masklearn.tiny import tasks

GPT2_SMALL: dict[str, Any] = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257}
LLAMA_1B: dict[str, Any] = {
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 2048,
    "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B: dict[str, Any] = LLAMA_1B | {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "tie_word_embeddings": False,
}  # fmt: skip
SMOLLM2: dict[str, Any] = {
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def build(
    shape: dict[str, Any], layers: int | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> PreTrainedModel:
    """Build a model of a shape on a device, with fewer layers if `layers` is given."""
    torch.manual_seed(0)
    depth_name = "n_layer" if "n_layer" in shape else "num_hidden_layers"
    shape = shape | SPECIAL_IDS | ({depth_name: layers} if layers else {})
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            lm = GPT2LMHeadModel(GPT2Config(**shape)) if "n_layer" in shape else LlamaForCausalLM(LlamaConfig(**shape))
    finally:
        torch.set_default_dtype(default_dtype)
    return lm.eval().requires_grad_(False)


def save(lm: PreTrainedModel, folder: Path) -> str:
    """Save a model with the embedded tokenizer, whose ids are in the vocabulary of every shape; return the folder."""
    lm.save_pretrained(folder)
    ml.load_tokenizer().save_pretrained(folder)
    return str(folder)


def write_texts(path: Path, n: int, tokens: int) -> str:
    """Write `n` texts of `tokens` words each to a JSON Lines file; return its path."""
    texts = tasks.texts(seed=1)
    rows = [{"text": " ".join(islice((word for text in texts for word in text.split()), tokens))} for _ in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
