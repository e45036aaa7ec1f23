"""Tells long runs which precision is faster on their processor: in bfloat16 some are twice as fast, some far slower."""

import time

import torch
from transformers import PreTrainedModel

from masklearn.models import dtype_name, input_device, text_config

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
    """One line for a long run on a processor that multiplies faster in bfloat16, or in float32; otherwise empty.

    Args:
        lm: The model.
        seconds: How long the run is expected to take.
    """
    if seconds < WORTH_SECONDS or input_device(lm).type != "cpu" or (width := text_config(lm).hidden_size) < MIN_WIDTH:
        return ""
    is_half = lm.dtype != torch.float32
    if (factor := 1 / speed_up(width, lm.dtype) if is_half else speed_up(width)) < WORTH_FACTOR:
        return ""
    if is_half:
        return (
            f"This processor multiplies matrices {factor:.1f} times as fast in float32 as in {dtype_name(lm)}. "
            "--model.dtype float32 saves time, and takes more memory"
        )
    return (
        f"This processor multiplies matrices {factor:.1f} times as fast in bfloat16. --model.dtype bfloat16 saves time "
        "and memory, and KL is then that of the model in bfloat16"
    )


def speed_up(width: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """Time of matrix products of an MLP in float32 over that in a dtype; `width` is that of the residual stream."""
    return _seconds_of_product(width, torch.float32) / _seconds_of_product(width, dtype)


def _seconds_of_product(width: int, dtype: torch.dtype) -> float:
    rows, weight = torch.ones(ROWS, width, dtype=dtype), torch.ones(width, EXPANSION * width, dtype=dtype)
    torch.mm(rows, weight)  # the first product of a process loads what multiplies
    start, n = time.monotonic(), 0
    while time.monotonic() - start < PROBED_SECONDS:
        torch.mm(rows, weight)
        n += 1
    return (time.monotonic() - start) / n
