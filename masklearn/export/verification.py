"""An exported model computes what the gated model computes: whole texts, batches padded on the left, and a cache.

Both run in float32, also if their weights are of half precision, whose rounding would hide a wrong weight.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from masklearn.ablation import Ablation
from masklearn.errors import UserError
from masklearn.masking import gated
from masklearn.models import text_config

ROWS, TOKENS = 3, 12
"""Shape of the texts that are compared."""
MAX_GAP = 1e-4
"""Difference of two logits, relative to the largest logit or 1, above which an export is refused: rounding gives about
1e-5 in deep models, and a wrong weight far more. In half precision its epsilon is allowed: constants are rounded, and
the angles of rotary positions may be."""


def plain_copy(lm: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model without what masklearn keeps on it."""
    cached = {name: vars(lm).pop(name) for name in list(vars(lm)) if name.startswith("_masklearn")}
    copied = copy.deepcopy(lm)
    vars(lm).update(cached)
    return copied


def load_folder(folder: Path, lm: PreTrainedModel, dtype: torch.dtype) -> Any:
    """The model of an exported folder, frozen, on the device of the whole model."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=True)
    return loaded.to(lm.device).eval().requires_grad_(False)


def compare_folder(folder: Path, lm: PreTrainedModel, gates: Tensor, ablation: Ablation) -> float:
    """Refuse an exported folder whose logits are not those of the gated model.

    Args:
        folder: The folder.
        lm: The whole model.
        gates: The mask, shape (nodes,).
        ablation: What closed nodes emit.

    Returns:
        The largest difference of two logits over the largest logit, or over 1 if that is smaller.

    Raises:
        UserError: Says how far off it is.
    """
    exact = torch.promote_types(lm.dtype, torch.float32)
    expected = _gated_logits(lm if lm.dtype == exact else _cast(plain_copy(lm), exact), gates, ablation)
    found = _logits(load_folder(folder, lm, exact))
    size = max(1.0, max(logits.abs().max().item() for logits in expected))
    gap = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)) / size
    allowed = MAX_GAP if lm.dtype == exact else torch.finfo(lm.dtype).eps
    if not gap <= allowed:
        raise UserError(
            f"export to hf: the logits of the smaller {type(lm).__name__} differ from those of the gated model by "
            f"{gap:.2g} of the largest, more than rounding ({allowed:.0e}). Nothing is written"
        )
    return gap


def _cast(lm: Any, dtype: torch.dtype) -> PreTrainedModel:
    return lm.to(dtype)


def _gated_logits(lm: PreTrainedModel, gates: Tensor, ablation: Ablation) -> list[Tensor]:
    with gated(lm, gates, ablation.to(lm.device)):
        return _logits(lm)


@torch.no_grad()
def _logits(lm: Any) -> list[Tensor]:
    """Logits of whole texts, and those of `_cached`; the texts are the same for all models of a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, text_config(lm).vocab_size, (ROWS, TOKENS), generator=generator).to(lm.device)
    real = torch.ones_like(ids)
    real[0, :3] = 0  # padding on the left
    return [lm(ids[1:], use_cache=False).logits, _cached(lm, ids, real)]


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
