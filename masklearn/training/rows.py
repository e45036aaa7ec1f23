"""Rows: which mask every (text, draw) pair is run under, and back from rows to masks.

A mask's index is that of its (group, size) pair, size running fastest. Sizes, inputs, groups, restarts and draws of the
noise are all rows of one batch.
"""

import torch
from torch import Tensor


def assign_masks(slots: Tensor, n_sizes: int, draws: int, offsets: Tensor) -> Tensor:
    """Spread the draws of every text over the sizes: evenly, and over the steps each size equally often.

    With fewer draws than sizes a text meets some of them, spaced evenly (systematic sampling); with as many, each once.

    Args:
        slots: Place of every text's group, shape (..., inputs).
        n_sizes: Masks of a group.
        draws: Rows of a text.
        offsets: Where each text begins, uniform in [0, 1), of the shape of slots.

    Returns:
        Index of the mask of every row, shape (draws, ..., inputs).
    """
    draw = torch.arange(draws, device=slots.device).view(-1, *(1 for _ in slots.shape))
    size = ((draw + offsets) * n_sizes / draws).long().clamp(max=n_sizes - 1)
    return slots * n_sizes + size


def mean_by_mask(values: Tensor, masks: Tensor, n_masks: int) -> tuple[Tensor, Tensor]:
    """Mean of some values of every mask.

    Args:
        values: One of each row and position, shape (rows, positions).
        masks: Whose they are, integers of the same shape.
        n_masks: How many masks there are.

    Returns:
        The means, 0 for a mask without values; and how many values each has. Both of shape (masks,).
    """
    masks = masks.flatten()
    total = torch.zeros(n_masks, dtype=values.dtype, device=values.device).index_add(0, masks, values.flatten())
    count = torch.bincount(masks, minlength=n_masks)
    return total / count.clamp_min(1), count
