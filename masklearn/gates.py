"""Hard-concrete gates: one number in [0, 1] per node, sampled while learning, cut to exactly `s` ones at the end.

Source: Louizos et al. 2018, section 2.2 (arXiv:1712.01312).
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

GateName = Literal["hard-concrete", "mean-field"]
"""Drawn with noise, or standing still at their probability of being open."""
LOW, HIGH = -0.1, 1.1
"""Range before clamping to [0, 1]; reaching past both ends is what allows exact zeros and ones."""
START = 2.0
"""First log-odds of every gate: open in 88 % of all draws, and most draws still carry a gradient."""


def sample(log_odds: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Draw gates in [0, 1], differentiably.

    Args:
        log_odds: Log-odds of the gates being open, any shape. Louizos et al.'s `log_alpha` is this plus
            `temperature * log(-LOW / HIGH)`; kept like this, annealing the temperature moves no gate's P(open).
        temperature: Softness (dimensionless); towards 0 a gate becomes a coin.
        noise: Uniform numbers in (0, 1) to draw with, of the same shape; fresh ones by default.
    """
    noise = torch.rand_like(log_odds) if noise is None else noise
    log_alpha = log_odds + temperature * math.log(-LOW / HIGH)
    concrete = torch.sigmoid((log_alpha + noise.logit(eps=1e-6)) / temperature)
    return (concrete * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(log_odds: Tensor) -> Tensor:
    """P(gate > 0), of the same shape, whatever the temperature; summed over nodes, the expected open count."""
    return log_odds.sigmoid()


def top(scores: Tensor, sizes: Tensor) -> Tensor:
    """Masks that keep the nodes with the highest scores: exactly as many as asked, ties broken by node order.

    Args:
        scores: Shape (..., nodes).
        sizes: Nodes to keep, integers broadcastable to shape (...).

    Returns:
        Boolean masks of shape (..., nodes).
    """
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < sizes.unsqueeze(-1)


class GateBank(nn.Module):
    """Log-odds of gates: groups x sizes x nodes, or groups x 1 x nodes where one vector serves every size."""

    def __init__(self, n_groups: int, n_sizes: int, n_nodes: int) -> None:
        super().__init__()
        self.log_odds = nn.Parameter(torch.full((n_groups, n_sizes, n_nodes), START))

    @torch.no_grad()
    def reset(self) -> None:
        """Start anew."""
        self.log_odds.fill_(START)

    @torch.no_grad()
    def discretize(self, sizes: Tensor) -> Tensor:
        """The masks learned: the `s` most probable nodes of every group and size. Shape (groups, sizes, nodes)."""
        return top(self.log_odds, sizes)
