"""Tells long runs what bfloat16 gains them on a processor: some multiply matrices twice as fast, others slower."""

import time

import torch
from transformers import PreTrainedModel

from masklearn.models import input_device, text_config

WORTH_SECONDS = 600.0
"""A shorter run is not told."""
MIN_WIDTH = 512
"""Width of the residual stream from which on products take most of the time; runs of narrower models are not told."""
WORTH_FACTOR = 1.5
"""Nor is one whose processor gains less."""
ROWS, EXPANSION = 512, 4
"""Shape of the products that are timed: tokens, and the width of an MLP over that of the stream."""
PROBED_SECONDS = 0.05


def half_precision_note(lm: PreTrainedModel, seconds: float) -> str:
    """One line for a long run in float32 on a processor that multiplies faster in bfloat16; otherwise empty.

    Args:
        lm: The model.
        seconds: How long the run is expected to take.
    """
    if seconds < WORTH_SECONDS or input_device(lm).type != "cpu" or lm.dtype != torch.float32:
        return ""
    width = text_config(lm).hidden_size
    if width < MIN_WIDTH or (factor := bfloat16_speed_up(width)) < WORTH_FACTOR:
        return ""
    return (
        f"This processor multiplies matrices {factor:.1f} times as fast in bfloat16. --model.dtype bfloat16 saves time "
        "and memory, and KL is then that of the model in bfloat16"
    )


def bfloat16_speed_up(width: int) -> float:
    """Time of matrix products of an MLP in float32 over that in bfloat16; `width` is that of the residual stream."""
    return _seconds_of_product(width, torch.float32) / _seconds_of_product(width, torch.bfloat16)


def _seconds_of_product(width: int, dtype: torch.dtype) -> float:
    rows, weight = torch.ones(ROWS, width, dtype=dtype), torch.ones(width, EXPANSION * width, dtype=dtype)
    torch.mm(rows, weight)  # the first product of a process loads what multiplies
    start, n = time.monotonic(), 0
    while time.monotonic() - start < PROBED_SECONDS:
        torch.mm(rows, weight)
        n += 1
    return (time.monotonic() - start) / n
