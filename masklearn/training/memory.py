"""How many rows a training step has room for: measured on one row, held against what is free."""

import psutil
import torch
from torch import Tensor

from masklearn.masking import MaskedLM

SHARE = 0.6
"""Of the free memory that a step's activations may take; the rest is for logits, gradients and everybody else."""


def fit_to_memory(masked_lm: MaskedLM, tokens: int, texts: int, rows: int, wanted: int) -> tuple[int, int, str]:
    """How many groups can be learned together, and from how many texts a step.

    Args:
        masked_lm: The model.
        tokens: Tokens of the longest text.
        texts: Texts that a group gives to a step, if there is room.
        rows: Rows of a text.
        wanted: Groups to learn together, if there is room.

    Returns:
        The groups and the texts of each, at least 1, and a remark for the user if they are not those wanted. Groups
        make room first: they are learned one after the other all the same, whereas fewer texts are a noisier step.
    """
    free, needed = free_bytes(masked_lm.device), rows * bytes_per_row(masked_lm, tokens)
    fit = int(SHARE * free / needed)
    if fit >= wanted * texts:
        return wanted, texts, ""
    if fit >= texts:
        return fit // texts, texts, f"Memory holds {fit // texts} groups at a time, not {wanted}: so many are used"
    remark = f"Memory holds {max(1, fit)} texts a step, not --data.batch_size {texts}: so many are used"
    if not fit:
        remark = (
            f"A text of {tokens} tokens in {rows} rows needs about {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} are free. If memory runs out, lower --data.max_length or --model.draws"
        )
    return 1, max(1, fit), remark


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
        return tensor.detach()  # the tensor itself would hold the graph that holds it, for ever

    input_ids = torch.zeros(1, tokens, dtype=torch.long, device=masked_lm.device)
    gates = torch.ones(1, 1, masked_lm.graph.n_nodes, device=masked_lm.device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        masked_lm(input_ids, torch.ones_like(input_ids, dtype=torch.bool), gates, input_ids)
    return max(1, sum(kept.values()))
