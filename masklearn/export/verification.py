"""An exported model computes what the gated model computes: whole texts, batches padded on the left, and a cache."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masklearn.ablation import Ablation
from masklearn.errors import UserError
from masklearn.masking import gated
from masklearn.models import Layout, text_config

ROWS, TOKENS = 3, 12
"""Shape of the texts that are compared."""
MAX_GAP = 1e-4
"""Difference of two logits in float32, relative to the largest logit or 1, above which an export is refused: rounding
gives about 1e-5 in deep models, and a wrong weight far more. Other precisions by their epsilon."""


@torch.no_grad()
def logit_gap(smaller: Any, lm: PreTrainedModel, gates: Tensor, ablation: Ablation, layout: Layout) -> float:
    """The largest difference between the logits of an exported model and of the gated one, relative to their size.

    Returns:
        The largest difference over the largest logit, or over 1 if that is smaller.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, text_config(lm).vocab_size, (ROWS, TOKENS), generator=generator).to(lm.device)
    real = torch.ones_like(ids)
    real[0, :3] = 0  # padding on the left
    with gated(lm, gates, ablation.to(lm.device), layout):
        expected = [lm(ids[1:], use_cache=False).logits, _cached(lm, ids, real)]
    found = [smaller(ids[1:], use_cache=False).logits, _cached(smaller, ids, real)]
    size = max(1.0, max(logits.abs().max().item() for logits in expected))
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)) / size


def _cached(lm: Any, ids: Tensor, real: Tensor) -> Tensor:
    """Logits of the last tokens of padded texts, one token after the other with a cache."""
    first = TOKENS // 2
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    output = lm(ids[:, :first], attention_mask=real[:, :first], position_ids=positions[:, :first], use_cache=True)
    logits = [output.logits[:, -1]]
    for end in range(first + 1, TOKENS + 1):
        output = lm(
            ids[:, end - 1 : end], attention_mask=real[:, :end], position_ids=positions[:, end - 1 : end],
            past_key_values=output.past_key_values, use_cache=True,
        )  # fmt: skip
        logits.append(output.logits[:, -1])
    return torch.stack(logits, 1)


def require_equal_logits(lm: PreTrainedModel, gap: float) -> None:
    """Refuse an exported model whose logits are not those of the gated one.

    Raises:
        UserError: Says how far off it is.
    """
    allowed = min(0.1, MAX_GAP * torch.finfo(lm.dtype).eps / torch.finfo(torch.float32).eps)
    if not gap <= allowed:
        raise UserError(
            f"export to hf: the logits of the smaller {type(lm).__name__} differ from those of the gated model by "
            f"{gap:.2g} of the largest, more than rounding ({allowed:.0e}). Nothing is written"
        )
