"""How many rows of a training step fit into memory: the memory of one row, compared with what is free."""

import weakref
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from masklearn.masking import MaskedLM, free_everywhere, padded_length
from masklearn.models import Layout, is_offloaded
from masklearn.objective import BYTES_PER_LOGIT, max_chunk_logits

ACTIVATION_SHARE = 0.6
"""Share of the free memory that the activations of a step may take; gradients, other processes, and the gaps that texts
of many lengths leave in a GPU's memory need the rest."""


def fit_to_memory(
    masked_lm: MaskedLM, n_tokens: int, texts_per_group: int, rows_per_text: int, requested_groups: int
) -> tuple[int, int, str]:
    """How many groups a step can learn together, and on how many texts of each.

    The number of groups is reduced first: the remaining groups are learned later at no loss, whereas fewer texts make
    every step noisier.

    Args:
        masked_lm: The model.
        n_tokens: Tokens of the longest text.
        texts_per_group: Requested texts of each group in a step.
        rows_per_text: Rows of each text.
        requested_groups: Requested groups to learn together.

    Returns:
        The groups and the texts of each, both at least 1, and a notice for the user if they differ from the request.
    """
    free = free_everywhere(masked_lm)
    if masked_lm.device.type == "cuda":
        n_tokens = padded_length(n_tokens, masked_lm.layout.context)  # to which compiled steps are padded
        free = max(1, free - BYTES_PER_LOGIT * max_chunk_logits(masked_lm.device))  # for the output head
    needed = rows_per_text * bytes_per_row(masked_lm, n_tokens)
    fitting_texts = int(ACTIVATION_SHARE * free / needed)
    if fitting_texts >= requested_groups * texts_per_group:
        return requested_groups, texts_per_group, ""
    if fitting_texts >= texts_per_group:
        n_groups = fitting_texts // texts_per_group
        notice = f"Memory fits {n_groups} groups at a time instead of {requested_groups}; the run learns {n_groups}"
        return n_groups, texts_per_group, notice
    if fitting_texts:
        notice = (
            f"Memory fits {fitting_texts} texts per step instead of --data.batch_size {texts_per_group}; "
            f"the run takes {fitting_texts}"
        )
        return 1, fitting_texts, notice
    notice = (
        f"A text of {n_tokens} tokens in {rows_per_text} rows needs about {needed / 2**30:.1f} GiB, but only "
        f"{free / 2**30:.1f} GiB are free. If memory runs out, lower --data.max_length or --model.draws"
    )
    return 1, 1, notice


def bytes_per_row(masked_lm: MaskedLM, n_tokens: int) -> int:
    """Bytes that the forward pass of one row keeps for the backward pass, without the weights; at least 1.

    On several devices these are the bytes on the one that keeps most.
    """
    input_ids = torch.zeros(1, n_tokens, dtype=torch.long, device=masked_lm.device)
    gates = torch.ones(1, 1, masked_lm.graph.n_nodes, device=masked_lm.device, requires_grad=True)
    scored = torch.ones_like(input_ids, dtype=torch.bool)
    return kept_bytes(masked_lm.layout, lambda: masked_lm(input_ids, scored, gates, input_ids))


@torch.enable_grad()
def kept_bytes(layout: Layout, forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the weights of a model; at least 1.

    On several devices these are the bytes on the one that keeps most.
    """
    weights, offloaded = _storages(layout.lm), is_offloaded(layout.lm)
    saved: list[weakref.ref[Tensor]] = []

    def record(tensor: Tensor) -> Tensor:
        if offloaded:  # weights that have been brought in for this part of the forward
            weights.update(_storages(layout.lm))
        kept = tensor.detach()  # the graph would hold the tensor itself, which holds the graph, and neither is freed
        saved.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        output = forward()
    alive = [tensor for reference in saved if (tensor := reference()) is not None]  # other branches have been dropped
    del output  # it holds them until here
    storages = {
        (tensor.device, storage.data_ptr()): storage.nbytes()
        for tensor in alive
        if (storage := tensor.untyped_storage()).data_ptr() not in weights
    }
    by_device: Counter[torch.device] = Counter()
    for (device, _), n_bytes in storages.items():
        by_device[device] += n_bytes
    return max(by_device.values(), default=1)


def _storages(lm: nn.Module) -> set[int]:
    """Where the weights of a model are in memory."""
    return {parameter.untyped_storage().data_ptr() for parameter in lm.parameters() if not parameter.is_meta}
