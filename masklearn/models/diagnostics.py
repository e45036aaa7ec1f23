"""Short texts for a model to read, how alike two readings must be, and the words in which a model is refused."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masklearn.errors import UserError, one_line

TOKENS = 4
"""Tokens of a short text."""
ROUNDING = 8
"""Roundings that an output may be off by."""


def text_config(lm: PreTrainedModel) -> Any:
    """The config of the decoder, in models of texts and images as well."""
    return lm.config.get_text_config(decoder=True)


def probe(lm: PreTrainedModel, rows: int) -> Tensor:
    """A short text in all rows but the last, whose last token is another: (rows, tokens)."""
    ids = (torch.arange(3, 3 + TOKENS, device=lm.device) % text_config(lm).vocab_size).repeat(rows, 1)
    ids[-1, -1] = ids[0, 0]
    return ids


def rounding(lm: PreTrainedModel) -> float:
    """What the output of a layer may be off by, relative to its norm, in the precision of the model."""
    return ROUNDING * torch.finfo(lm.dtype).eps


def differs(lm: PreTrainedModel, found: Tensor, expected: Tensor, layers: int = 1) -> bool:
    """Whether two outputs of a model differ by more than rounding, which adds up like chance over layers."""
    gap, norm = ((found - expected).float().norm(), expected.float().norm())
    return bool(gap > layers**0.5 * rounding(lm) * norm)


def precision(lm: PreTrainedModel) -> str:
    """The precision of a model's weights, as `model.dtype` calls it."""
    return str(lm.dtype).removeprefix("torch.")


def unsupported_model(lm: PreTrainedModel, found: str, expected: str) -> UserError:
    """The error of a model that cannot be gated: what was found in it, and what was expected."""
    return UserError(
        f"model.lm: {type(lm).__name__} cannot be gated: found {found}, expected {expected}. "
        "Choose a decoder with attention heads and an MLP in every layer"
    )


def unreadable(lm: PreTrainedModel, error: Exception) -> UserError:
    """The error of a model that fails on a short text."""
    if lm.dtype == torch.float32:
        return unsupported_model(lm, f"that it cannot read a short text ({one_line(error)})", "a causal language model")
    return UserError(
        f"model.lm: {type(lm).__name__} cannot read a short text in {precision(lm)} on this {lm.device.type} "
        f"({one_line(error)}). Choose another precision, for example --model.dtype float32"
    )
