"""Dummy inputs for a model, the rounding tolerance of its outputs, and the errors that refuse a model."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masklearn.errors import UserError, one_line
from masklearn.models.placement import input_device, is_quantized

DUMMY_TOKENS = 4
"""Tokens of a dummy input."""
TOLERANCE_EPSILONS = 8
"""Relative error that counts as rounding, in machine epsilons of the model's dtype."""


def text_config(lm: PreTrainedModel) -> Any:
    """Return the config of the decoder, also in models that read text and images."""
    return lm.config.get_text_config(decoder=True)


def dummy_input_ids(lm: PreTrainedModel, rows: int, tokens: int = DUMMY_TOKENS) -> Tensor:
    """Make a short input: all rows are equal, except that the last row ends in a different token.

    Args:
        lm: The model that is to read it.
        rows: Number of rows.
        tokens: Tokens of each.

    Returns:
        Token ids, shape (rows, tokens).
    """
    ids = (torch.arange(3, 3 + tokens, device=input_device(lm)) % text_config(lm).vocab_size).repeat(rows, 1)
    ids[-1, -1] = ids[0, 0]
    return ids


def rounding_tolerance(lm: PreTrainedModel) -> float:
    """Return the rounding error to expect in the output of one layer, relative to its norm.

    A model in 8 bits also rounds activations to integers, on a scale that depends on all rows of a batch.
    """
    epsilon = torch.finfo(lm.dtype).eps
    if is_quantized(lm):
        epsilon = max(epsilon, torch.finfo(torch.bfloat16).eps)
    return TOLERANCE_EPSILONS * epsilon


def differs(lm: PreTrainedModel, found: Tensor, expected: Tensor, layers: int = 1) -> bool:
    """Whether two outputs of a model differ by more than rounding.

    Rounding errors of layers are independent, so the tolerance grows with the square root of `layers`.
    """
    gap, norm = ((found - expected).float().norm(), expected.float().norm())
    return bool(gap > layers**0.5 * rounding_tolerance(lm) * norm)


def dtype_name(lm: PreTrainedModel) -> str:
    """Return the dtype of a model's weights, as `--model.dtype` spells it."""
    return str(lm.dtype).removeprefix("torch.")


def unsupported_model(lm: PreTrainedModel, found: str, expected: str) -> UserError:
    """Make the error for a model that cannot be gated.

    Args:
        lm: The model.
        found: What was found in it.
        expected: What a supported model has instead.
    """
    return UserError(
        f"model.lm: {type(lm).__name__} cannot be gated: found {found}, expected {expected}. "
        "Choose a decoder with attention heads and an MLP in every layer"
    )


def failed_forward(lm: PreTrainedModel, error: Exception) -> UserError:
    """Make the error for a model that raises on a dummy input."""
    if lm.dtype == torch.float32:
        return unsupported_model(lm, f"that it fails on a short text ({one_line(error)})", "a causal language model")
    return UserError(
        f"model.lm: {type(lm).__name__} fails on a short text in {dtype_name(lm)} on this {lm.device.type} "
        f"({one_line(error)}). Choose another precision, for example --model.dtype float32"
    )
