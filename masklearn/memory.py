"""How many rows a training step has room for: measured on one row, held against what is free."""

import psutil
import torch
from torch import Tensor

from masklearn.masked_lm import MaskedLM

SHARE = 0.6
"""Of the free memory that a step's activations may take; the rest is for logits, gradients and everybody else."""


def rows_that_fit(masked_lm: MaskedLM, tokens: int) -> int:
    """Rows of so many tokens that a training step has memory for, at least 1."""
    return max(1, int(SHARE * free_bytes(masked_lm.device) / bytes_per_row(masked_lm, tokens)))


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def bytes_per_row(masked_lm: MaskedLM, tokens: int) -> int:
    """What the forward of one row keeps for the backward, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in masked_lm.lm.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    input_ids = torch.zeros(1, tokens, dtype=torch.long, device=masked_lm.device)
    gates = torch.ones(1, 1, masked_lm.graph.n_nodes, device=masked_lm.device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        masked_lm(input_ids, torch.ones_like(input_ids, dtype=torch.bool), gates)
    return max(1, sum(kept.values()))
