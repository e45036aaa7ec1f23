"""Hard-concrete gates: one number in [0, 1] per node, sampled during training, discretised to exactly `s` ones.

Source: Louizos et al. 2018, section 2.2 (arXiv:1712.01312).
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

GateName = Literal["hard-concrete", "mean-field"]
"""How training sets a gate: sampled, or fixed at its probability of being open."""
LOW, HIGH = -0.1, 1.1
"""Range of a gate before it is clamped to [0, 1] (Louizos et al.'s gamma and zeta). It extends past both ends, so that
a gate can be exactly 0 or 1."""
INITIAL_LOG_ODDS = 2.0
"""Log-odds of every gate at the start: open in 88 % of samples, and most samples have a gradient."""


def sample(log_odds: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Sample gates in [0, 1], differentiably.

    Args:
        log_odds: Log-odds of the gates being open, any shape. Louizos et al.'s `log_alpha` is
            `log_odds + temperature * log(-LOW / HIGH)`. With log-odds as the parameter, annealing the temperature
            leaves every P(open) as it is.
        temperature: Softness of the gates (dimensionless); towards 0, gates become binary.
        noise: Uniform numbers in (0, 1), same shape; fresh ones by default.

    Returns:
        Gates, same shape.
    """
    noise = torch.rand_like(log_odds) if noise is None else noise
    log_alpha = log_odds + temperature * math.log(-LOW / HIGH)
    concrete = torch.sigmoid((log_alpha + noise.logit(eps=1e-6)) / temperature)
    return (concrete * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(log_odds: Tensor) -> Tensor:
    """P(gate > 0), same shape, at any temperature. Its sum over nodes is the expected number of open gates."""
    return log_odds.sigmoid()


def top(scores: Tensor, sizes: Tensor) -> Tensor:
    """Masks of exactly `s` nodes, those with the highest scores; ties go to the earlier node.

    Args:
        scores: Shape (..., nodes).
        sizes: Nodes to keep, integers broadcastable to shape (...).

    Returns:
        Boolean masks of shape (..., nodes).
    """
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < sizes.unsqueeze(-1)


class GateBank(nn.Module):
    """Log-odds of the gates of all masks: groups x sizes x nodes, or groups x 1 x nodes if all sizes share them."""

    def __init__(self, n_groups: int, n_sizes: int, n_nodes: int) -> None:
        super().__init__()
        self.log_odds = nn.Parameter(torch.full((n_groups, n_sizes, n_nodes), INITIAL_LOG_ODDS, dtype=torch.float32))

    @torch.no_grad()
    def reset(self) -> None:
        """Set all log-odds to their initial value."""
        self.log_odds.fill_(INITIAL_LOG_ODDS)

    @torch.no_grad()
    def discretize(self, sizes: Tensor) -> Tensor:
        """Masks of the `s` most probable nodes of every group and size. Shape (groups, sizes, nodes)."""
        return top(self.log_odds, sizes)
