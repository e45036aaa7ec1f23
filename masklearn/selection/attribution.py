"""Attribution: one score per node of the full model, from its norm, from gradients or from ablating it alone.

All scores have shape (groups, nodes); the nodes with the highest scores make a subgraph.
"""

import torch
from torch import Tensor

from masklearn.masking import node_contributions
from masklearn.selection.scorer import MaskScorer

ARGMAX_INVERSE_TEMPERATURE = 1e4
"""Inverse temperature at which the full model's distribution is its most probable token alone."""
PATH_POINTS = 10
"""Points of the path of integrated gradients: the midpoints of equal intervals from all gates 0 to all gates 1."""


def norm(scorer: MaskScorer) -> Tensor:
    """The share of every node in the residual stream that it adds to, as a mean over tokens.

    A node-level analogue of the edge importance of s-Trace (Kervadec et al. 2026, arXiv 2605.27033), not the paper's
    score: the paper scores edges, and this sums over the tokens that a head attends to. The mean is over those tokens
    of a group's texts that a scored position can attend to.
    """
    total = torch.zeros(scorer.n_groups, scorer.masked_lm.graph.n_nodes, device=scorer.device)
    n_tokens = torch.zeros(scorer.n_groups, 1, device=scorer.device)
    for scored in scorer.own_batches:
        attended = scored.batch.scored.flip(-1).cumsum(-1).flip(-1) > 0  # up to the last scored position
        share = node_contributions(scorer.masked_lm, scored.batch.input_ids) * attended[..., None]
        total.index_add_(0, scored.group_index, scored.weight * share.sum(1))
        n_tokens.index_add_(0, scored.group_index, scored.weight * attended.sum(1, keepdim=True))
    return scorer.of_all_ranks(total) / scorer.of_all_ranks(n_tokens)


def attribution(scorer: MaskScorer) -> Tensor:
    """First-order estimate of how much closing a node raises the loss.

    It is minus the gradient with respect to a gate at 1: the gradient with respect to the node's output, times the
    difference between the ablation and that output. The loss is the negative log-probability of the full model's most
    probable token, because the KL from the full model has no gradient where all gates are open.

    Source: attribution patching, Syed et al. 2023 (arXiv:2310.10348), on nodes.
    """
    gates = torch.ones(scorer.n_groups, scorer.masked_lm.graph.n_nodes, device=scorer.device)
    return -scorer.gradient(gates, inverse_temperature=ARGMAX_INVERSE_TEMPERATURE)


def integrated_gradients(scorer: MaskScorer) -> Tensor:
    """Each node's part in the fall of the KL as all gates go from 0 to 1 together.

    Source: Sundararajan et al. 2017, section 3 (arXiv:1703.01365), with gates as inputs.
    """
    gates = torch.ones(scorer.n_groups, scorer.masked_lm.graph.n_nodes, device=scorer.device)
    points = [(i + 0.5) / PATH_POINTS for i in range(PATH_POINTS)]
    return -torch.stack([scorer.gradient(gates * point) for point in points]).mean(0)


def single_ablation(scorer: MaskScorer, n_nodes: int) -> Tensor:
    """The KL when a node alone is closed."""
    leave_one_out = ~torch.eye(n_nodes, dtype=torch.bool, device=scorer.device)
    return scorer(leave_one_out[:, None].expand(-1, scorer.n_groups, -1)).T
