"""Attribution: a score for every node of the full model, from its norm, gradients or its ablation alone."""

import torch
from torch import Tensor

from masklearn.masking import node_contributions
from masklearn.selection.scorer import MaskScorer

TOP_TOKEN = 1e4
"""Sharpness at which the full model's distribution is its most probable token alone."""
PATH_STEPS = 10
"""Points at which integrated gradients look, halfway between equal parts of the way from no gate to all."""


def norm(scorer: MaskScorer) -> Tensor:
    """How large a part every node has in what it adds to, mean over tokens, shape (groups, nodes).

    Over those tokens of a group that a scored position sees.
    """
    total = torch.zeros(scorer.n_groups, scorer.masked_lm.graph.n_nodes, device=scorer.device)
    tokens = torch.zeros(scorer.n_groups, 1, device=scorer.device)
    for piece in scorer.pieces:
        seen = piece.batch.scored.flip(-1).cumsum(-1).flip(-1) > 0
        share = node_contributions(scorer.masked_lm, piece.batch.input_ids) * seen[..., None]
        total.index_add_(0, piece.slot, share.sum(1))
        tokens.index_add_(0, piece.slot, seen.sum(1, keepdim=True).float())
    return total / tokens


def attribution(scorer: MaskScorer) -> Tensor:
    """By how much closing a node would raise the loss, to first order: shape (groups, nodes).

    The gradient in a gate that is open: of what a node puts out, times the difference to what it puts out when closed.
    The loss is the negative log-probability of the full model's most probable token, since the KL from the full model
    has no gradient there.
    """
    gates = torch.ones(scorer.n_groups, scorer.masked_lm.graph.n_nodes, device=scorer.device)
    return -scorer.gradient(gates, inverse_temperature=TOP_TOKEN)


def integrated_gradients(scorer: MaskScorer) -> Tensor:
    """What a node takes from the KL when all gates open together, from none to all: shape (groups, nodes).

    Source: Sundararajan et al. 2017, section 3 (arXiv:1703.01365), with gates for inputs.
    """
    gates = torch.ones(scorer.n_groups, scorer.masked_lm.graph.n_nodes, device=scorer.device)
    points = [(step + 0.5) / PATH_STEPS for step in range(PATH_STEPS)]
    return -torch.stack([scorer.gradient(gates * point) for point in points]).mean(0)


def single_ablation(scorer: MaskScorer, n_nodes: int) -> Tensor:
    """How much every node is missed when it alone is closed: the KL then, shape (groups, nodes)."""
    each = ~torch.eye(n_nodes, dtype=torch.bool, device=scorer.device)
    return scorer(each[:, None].expand(-1, scorer.n_groups, -1)).T
