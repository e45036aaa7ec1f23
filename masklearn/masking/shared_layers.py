"""Many subgraphs on the same texts: the layers up to which subgraphs have the same nodes are run once for all of them.

A few layers at a time are run, a segment. The rows of a segment are the subgraphs that differ up to its end.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from masklearn.masking.masked_lm import MaskedLM
from masklearn.models import Prefix

MAX_SEGMENT_GROWTH = 1.1
"""A segment ends before the layer that would have it run more than this multiple of the subgraphs that its first layer
needs."""
MAX_TOKENS = {"cpu": 2**16, "cuda": 2**17}
"""Tokens whose streams are held at once, over all subgraphs."""


class Segment(NamedTuple):
    """Some layers, and the subgraphs that are run through them."""

    first: int
    """The first layer."""
    stop: int
    """The first layer behind them."""
    subgraphs: Tensor
    """A subgraph for each row, by its number, shape (rows,)."""
    parent: Tensor
    """The row of the segment before that each row goes on from, shape (rows,)."""


def segments(masks: Tensor) -> tuple[list[Segment], Tensor]:
    """The segments in which subgraphs are run.

    Args:
        masks: Nodes of every layer, shape (K, layers, nodes of a layer).

    Returns:
        The segments, and the row of the last one that each subgraph is, shape (K,).
    """
    n_masks, n_layers, _ = masks.shape
    row_at = list[Tensor]()  # for every layer, the row of each subgraph among those that differ up to it
    row = torch.zeros(n_masks, dtype=torch.long)
    for layer in range(n_layers):
        row = torch.cat([row[:, None], masks[:, layer].long().cpu()], 1).unique(dim=0, return_inverse=True)[1]
        row_at.append(row)
    counts, found = [int(row.max()) + 1 for row in row_at], list[Segment]()
    first, before = 0, torch.zeros(n_masks, dtype=torch.long)
    for stop in range(1, n_layers + 1):
        if stop < n_layers and counts[stop] <= MAX_SEGMENT_GROWTH * counts[first]:
            continue
        row = row_at[stop - 1]
        subgraphs = torch.empty(counts[stop - 1], dtype=torch.long).scatter_(0, row, torch.arange(n_masks))
        found.append(Segment(first, stop, subgraphs, before[subgraphs]))
        first, before = stop, row
    return found, before


def shared_forwards(masked_lm: MaskedLM, masks: Tensor) -> float:
    """How many forwards of one subgraph through all layers it takes to run subgraphs of shape (K, nodes) together."""
    if not masked_lm.shares_layers:
        return float(len(masks))
    plan = segments(masked_lm.graph.by_layer(masks))[0]
    return sum((part.stop - part.first) * len(part.subgraphs) for part in plan) / masked_lm.graph.n_layers


def subgraph_groups(masked_lm: MaskedLM, masks: Tensor, n_tokens: int) -> list[Tensor]:
    """Which subgraphs are run together: those that agree in the first layers, as many as memory is meant for.

    Args:
        masked_lm: The model.
        masks: The subgraphs, shape (K, nodes).
        n_tokens: Tokens of the texts.

    Returns:
        Numbers of subgraphs; each is in one group.
    """
    row = segments(masked_lm.graph.by_layer(masks))[1]
    limit = MAX_TOKENS["cpu" if masked_lm.device.type == "cpu" else "cuda"]
    return list(row.argsort(stable=True).split(max(1, limit // n_tokens)))


@torch.no_grad()
def hidden_of_subgraphs(
    masked_lm: MaskedLM, masks: Tensor, input_ids: Tensor, scored: Tensor, corrupted: Tensor | None = None
) -> Tensor:
    """The last hidden states of K subgraphs at the scored positions of every input: those of `MaskedLM.forward`.

    Args:
        masked_lm: The model, under the ablation that closed nodes get.
        masks: The subgraphs, boolean, shape (K, nodes).
        input_ids: Shape (inputs, tokens), padded on the right.
        scored: Which next-token distributions count: boolean, of the same shape.
        corrupted: The corrupted inputs, likewise. Resample ablation requires them.

    Returns:
        Shape (K, positions, width).
    """
    plan, row = segments(masked_lm.graph.by_layer(masks))
    gates, n_inputs = masks.float().to(masked_lm.device), len(input_ids)
    start = masked_lm.prefix(input_ids[:1], gates[:1]) if len(plan) > 1 and masked_lm.shares_layers else None
    if start is None:
        return masked_lm(input_ids, scored, gates[:, None].expand(-1, n_inputs, -1), corrupted)
    prefix, hidden = None, torch.empty(0)
    for first, stop, subgraphs, parent in plan:
        rows = gates[subgraphs].repeat_interleave(n_inputs, 0)
        ids = input_ids.repeat(len(subgraphs), 1)
        if first:
            stream = hidden.unflatten(0, (-1, n_inputs))[parent].flatten(0, 1)
            prefix = Prefix({first: stream}, start.outputs)
        if stop < masked_lm.graph.n_layers:
            hidden = masked_lm.stream(ids, rows, stop, prefix, first)
        else:
            hidden = masked_lm(ids, scored.repeat(len(subgraphs), 1), rows[None], None, prefix, first)
    return hidden[0].unflatten(0, (len(plan[-1].subgraphs), -1))[row]
