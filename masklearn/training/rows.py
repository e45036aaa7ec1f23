"""Rows: the mask that every (text, draw) pair is run under, and back from rows to masks.

The bank has a gate vector for every group, restart and size; `mask_id` counts them in this order, the size fastest.
Inputs, restarts and draws of the noise are all rows of one batch.
"""

import torch
from torch import Tensor


def draw_rows(
    group_indices: Tensor, n_restarts: int, n_sizes: int, n_draws: int, n_nodes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw the masks that every text of a step is run under, and the noise of their gates.

    Args:
        group_indices: Index in the block of every text's group, shape (inputs,). Draws are made on its device.
        n_restarts: Restarts of every mask; each is run on every text.
        n_sizes: Sizes of every group.
        n_draws: Gate vectors drawn for each text and restart, spread over the sizes.
        n_nodes: Nodes of the model.
        seed: Seed of this step's draws.

    Returns:
        The mask ids, shape (rows, inputs), and uniform noise in [0, 1), shape (rows, inputs, nodes).
    """
    device = group_indices.device
    generator = torch.Generator(device).manual_seed(seed)
    restarts = torch.arange(n_restarts, device=device)[:, None]
    bank_indices = group_indices * n_restarts + restarts  # (restarts, inputs)
    offsets = torch.rand(bank_indices.shape, generator=generator, device=device)
    mask_ids = assign_masks(bank_indices, n_sizes, n_draws, offsets).flatten(0, 1)
    noise = torch.rand((*mask_ids.shape, n_nodes), generator=generator, device=device)
    return mask_ids, noise


def assign_masks(bank_indices: Tensor, n_sizes: int, n_draws: int, offsets: Tensor) -> Tensor:
    """Spread the draws of every text evenly over the sizes; over many steps each size is drawn equally often.

    With fewer draws than sizes, a text is run under some of the sizes, evenly spaced (systematic sampling); with as
    many draws, under each size once.

    Args:
        bank_indices: Index in the bank of every text's group (and restart), shape (..., inputs).
        n_sizes: Masks of each group.
        n_draws: Rows of each text.
        offsets: Start of every text's sequence of sizes, uniform in [0, 1), of the shape of `bank_indices`.

    Returns:
        The mask id of every row, shape (draws, ..., inputs).
    """
    draw = torch.arange(n_draws, device=bank_indices.device).view(-1, *(1 for _ in bank_indices.shape))
    size_index = ((draw + offsets) * n_sizes / n_draws).long().clamp(max=n_sizes - 1)
    return bank_indices * n_sizes + size_index


def sum_by_mask(values: Tensor, mask_ids: Tensor, n_masks: int) -> Tensor:
    """Sum of the values of every mask, and their number.

    Args:
        values: One value for each row and position, shape (rows, positions).
        mask_ids: The mask that each value belongs to, integers of the same shape.
        n_masks: Number of masks.

    Returns:
        Sums and numbers, shape (2, masks).
    """
    mask_ids = mask_ids.flatten()
    total = torch.zeros(n_masks, dtype=values.dtype, device=values.device).index_add(0, mask_ids, values.flatten())
    count = torch.zeros_like(total).index_add(0, mask_ids, torch.ones_like(values).flatten())
    return torch.stack([total, count])


def mean_by_mask(values: Tensor, mask_ids: Tensor, n_masks: int) -> tuple[Tensor, Tensor]:
    """The mean of the values of every mask, 0 for a mask without values, and their number: see `sum_by_mask`."""
    total, count = sum_by_mask(values, mask_ids, n_masks)
    return total / count.clamp_min(1), count
