"""The budget: which sizes are asked for, and the force that drives the expected number of open gates to them."""

import torch
from torch import Tensor, nn


class Budget(nn.Module):
    """Drives the expected number of open gates of every mask to its target."""

    def adjust_log_odds(self, log_odds: Tensor, target: Tensor) -> Tensor:
        """The log-odds to draw with, of the same shape (groups, sizes, nodes), given targets of shape (sizes,)."""
        raise NotImplementedError

    def forward(self, error: Tensor, penalty_scale: float = 1.0) -> Tensor:
        """Price of every mask, in nats, of errors in nodes, both of shape (groups, sizes)."""
        raise NotImplementedError

    def after_step(self, log_odds: Tensor, error: Tensor, penalty_scale: float, bound: float) -> None:
        """What follows each step of the gates, in place."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was learned of the masks so far."""
        raise NotImplementedError


class Projected(Budget):
    """All log-odds of a mask are shifted alike, so that the expected number of open gates *is* the target at any step.

    Since only differences count, one score vector can serve every size at once: the `nested` family.
    """

    def adjust_log_odds(self, log_odds: Tensor, target: Tensor) -> Tensor:
        shift = _shift(log_odds.detach().double(), target.double())
        shifted = log_odds - shift.to(log_odds.dtype).unsqueeze(-1)
        # One Newton step more: it moves nothing, but its gradient is the shift's, by the implicit function theorem.
        open_now = shifted.sigmoid()
        slope = (open_now * (1 - open_now)).sum(-1).detach().clamp_min(1e-6)
        return shifted - ((open_now.sum(-1) - target) / slope).unsqueeze(-1)

    def forward(self, error: Tensor, penalty_scale: float = 1.0) -> Tensor:
        del penalty_scale
        return torch.zeros_like(error)

    def after_step(self, log_odds: Tensor, error: Tensor, penalty_scale: float, bound: float) -> None:
        """Nothing: the next shift sees to it."""

    def reset(self) -> None:
        """Nothing is remembered."""


def _shift(log_odds: Tensor, target: Tensor) -> Tensor:
    """By how much to lower log-odds (..., nodes) for their sigmoids to sum to targets (...), by bisection."""
    low, high = log_odds.amin(-1) - 20.0, log_odds.amax(-1) + 20.0
    target = target.expand_as(low)
    for _ in range(50):
        middle = (low + high) / 2
        too_many = (log_odds - middle.unsqueeze(-1)).sigmoid().sum(-1) > target
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return (low + high) / 2


class Lagrangian(Budget):
    """`multiplier * error + rho / 2 * error^2`, where error = expected - target number of open gates.

    The augmented Lagrangian of the constraint error = 0: the quadratic part holds the size near its target from the
    first step, and the multiplier, climbing by gradient ascent, takes away what error is left. A node is worth the less
    the more there are, so `rho` falls with their number; `stiffness` is a factor on it.
    """

    PENALTY_WEIGHT, MULTIPLIER_LR = 40.0, 0.02

    def __init__(self, n_groups: int, n_sizes: int, n_nodes: int) -> None:
        super().__init__()
        self.rho = self.PENALTY_WEIGHT / n_nodes
        self.multiplier: Tensor
        self.register_buffer("multiplier", torch.zeros(n_groups, n_sizes))

    def adjust_log_odds(self, log_odds: Tensor, target: Tensor) -> Tensor:
        del target
        return log_odds

    def forward(self, error: Tensor, penalty_scale: float = 1.0) -> Tensor:
        return self.multiplier * error + penalty_scale * self.rho / 2 * error.square()

    @torch.no_grad()
    def after_step(self, log_odds: Tensor, error: Tensor, penalty_scale: float, bound: float) -> None:
        """The multipliers climb, and no gate gets too certain to follow."""
        self.multiplier += self.MULTIPLIER_LR * penalty_scale * self.rho * error
        log_odds.clamp_(-bound, bound)

    def reset(self) -> None:
        self.multiplier.zero_()
