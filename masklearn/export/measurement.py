"""What a model costs: parameters, bytes, cache and time. Models are timed in turns, so that all meet the same load."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

PROMPT_TOKENS = 256
"""Tokens of the text that is prefilled, at most."""
N_PREFILLS, N_DECODED = 7, 40
"""Times that a prefill is measured, and tokens whose decoding is; medians count."""


@dataclass(frozen=True)
class Cost:
    """Size and time of a model."""

    parameters: int
    weight_bytes: int
    cache_bytes: int
    """Bytes of the key-value cache for each token of a text."""
    prefill_ms: float | None = None
    """Time of one forward over `prompt_tokens` tokens, as `generate` runs it: with logits of the last one only."""
    decode_ms: float | None = None
    """Time of each token that is decoded after that, with a cache."""
    prompt_tokens: int = PROMPT_TOKENS
    """Tokens that were prefilled: fewer if the context is short."""
    setting: str = ""
    """What it was measured on: precision and device."""


@torch.no_grad()
def compare_costs(lm: Any, smaller: Any, timed: bool = True) -> tuple[Cost, Cost]:
    """The costs of a whole model and of a smaller one; if `timed`, with times, unless the context is too short."""
    models = (lm, smaller)
    context = getattr(lm.config.get_text_config(decoder=True), "max_position_embeddings", None) or 2 * PROMPT_TOKENS
    n_tokens = max(1, min(PROMPT_TOKENS, context - N_DECODED - 1))  # a turn that warms up decodes one, too
    ids = (torch.arange(n_tokens, device=lm.device)[None] + 3) % lm.get_input_embeddings().num_embeddings
    fits = n_tokens + N_DECODED + 1 <= context
    times = _times(models, ids) if timed and fits else ((None, None), (None, None))
    costs = []
    for model, (prefill, decode) in zip(models, times, strict=True):
        tensors = (*model.parameters(), *model.buffers())
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        n_bytes = sum(tensor.nbytes for tensor in tensors)
        cache_bytes = _cache_bytes(model, ids[:, :8])
        costs.append(Cost(n_parameters, n_bytes, cache_bytes, prefill, decode, n_tokens, _setting(lm)))
    return costs[0], costs[1]


def _setting(lm: Any) -> str:
    """Such as `float32, 2 CPU threads`."""
    n_threads = torch.get_num_threads()
    device = f"{n_threads} CPU thread{'s' * (n_threads > 1)}"
    if lm.device.type == "cuda":
        device = torch.cuda.get_device_name(lm.device)
    return f"{str(lm.dtype).removeprefix('torch.')}, {device}"


def _cache_bytes(lm: Any, ids: Tensor) -> int:
    """Bytes of a model's key-value cache for each token, from a text of shape (1, tokens)."""
    cache = lm(ids, use_cache=True).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // ids.shape[1]


def _times(models: Sequence[Any], ids: Tensor) -> list[tuple[float, float]]:
    """Milliseconds of a prefill and of a decoded token of every model, each the median of turns."""
    caches: list[Any] = [None] * len(models)

    def prefill(index: int) -> None:
        caches[index] = models[index](ids, use_cache=True, logits_to_keep=1).past_key_values

    def decode(index: int) -> None:
        models[index](ids[:, :1], past_key_values=caches[index], use_cache=True, logits_to_keep=1)

    prefills = _in_turns(prefill, len(models), N_PREFILLS, ids.device)
    return list(zip(prefills, _in_turns(decode, len(models), N_DECODED, ids.device), strict=True))


def _in_turns(work: Callable[[int], None], n_models: int, repeats: int, device: torch.device) -> list[float]:
    """Median milliseconds of each model's work; the first turn is a warm-up."""
    times: list[list[float]] = [[] for _ in range(n_models)]
    for repeat in range(repeats + 1):
        for index in range(n_models):
            _wait(device)
            start = time.perf_counter()
            work(index)
            _wait(device)
            if repeat:
                times[index].append(1000 * (time.perf_counter() - start))
    return [median(of_model) for of_model in times]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
