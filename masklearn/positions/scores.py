"""One score for every position of a text, from gradients or from norms in the full model; the highest make a subgraph.

They are those of nodes in `selection.attribution`, without the sum, or the mean, over tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from masklearn.masking import node_contributions
from masklearn.objective import chunked_kl
from masklearn.positions.graph import PositionGraph
from masklearn.positions.position_lm import PositionLM
from masklearn.selection.attribution import ARGMAX_INVERSE_TEMPERATURE


@torch.enable_grad()
def attribution(position_lm: PositionLM, input_ids: Tensor) -> Tensor:
    """First-order estimate of how much closing a position raises the loss, shape (flat,).

    The loss is the negative log-probability of the full model's most probable token. Source: attribution patching, Syed
    et al. 2023 (arXiv:2310.10348), on nodes at single tokens.
    """
    masked_lm = position_lm.masked_lm
    gates = torch.ones(1, len(input_ids), masked_lm.graph.n_nodes, device=input_ids.device, requires_grad=True)
    hidden, full = position_lm.hidden(input_ids, gates), position_lm.full(input_ids)
    loss = chunked_kl(full[None], hidden[:, None], masked_lm.unembed, ARGMAX_INVERSE_TEMPERATURE)
    return -torch.autograd.grad(loss.sum(), gates)[0].flatten().cpu()


def norm(position_lm: PositionLM, input_ids: Tensor) -> Tensor:
    """Share of a node in the residual stream that it adds to at a token, shape (flat,): see `node_contributions`."""
    return node_contributions(position_lm.masked_lm, input_ids[None])[0].flatten().cpu()


def best_first(graph: PositionGraph, scores: Tensor) -> Tensor:
    """Numbers of all positions by falling score, ties to the earlier one, shape (positions,)."""
    ids = graph.exists.nonzero()[:, 0]
    return ids[scores[ids].argsort(descending=True, stable=True)]


SCORE_FUNCTIONS: dict[str, Callable[[PositionLM, Tensor], Tensor]] = {"attribution": attribution, "norm": norm}
"""Scores of all positions by the name of the baseline that keeps the highest."""
