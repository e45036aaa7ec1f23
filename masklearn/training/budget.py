"""The budget: keeps the expected number of open gates of every mask at its target size."""

import torch
from torch import Tensor, nn

GRID, ROUNDS = 64, 3
"""Shifts tried at once, and rounds: together they narrow the interval by a factor of 250,000."""


class Budget(nn.Module):
    """Drives the expected number of open gates of every mask to its target."""

    has_penalty = True
    """Whether `forward` and `after_step` depend on the error."""

    def adjust_log_odds(self, log_odds: Tensor, target: Tensor) -> Tensor:
        """The log-odds from which gates are drawn.

        Args:
            log_odds: The bank's log-odds, shape (groups, sizes, nodes).
            target: Target sizes in nodes, shape (sizes,).

        Returns:
            Adjusted log-odds of the same shape, differentiable in the bank's.
        """
        raise NotImplementedError

    def forward(self, error: Tensor, penalty_scale: float = 1.0) -> Tensor:
        """Penalty of every mask.

        Args:
            error: Expected minus target number of open gates, shape (groups, sizes).
            penalty_scale: Factor on the penalty's stiffness, see `Schedule.penalty_scale_at`.

        Returns:
            Nats, of the same shape.
        """
        raise NotImplementedError

    def after_step(self, log_odds: Tensor, error: Tensor, penalty_scale: float, logit_clip: float) -> None:
        """Update the budget, and `log_odds` in place, after an optimiser step of the gates.

        Args:
            log_odds: The bank's log-odds.
            error: The error at this step, see `forward`.
            penalty_scale: See `forward`.
            logit_clip: Largest absolute log-odds allowed, see `Schedule.logit_clip_at`.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was learned on earlier masks."""
        raise NotImplementedError


class Projected(Budget):
    """Shifts all log-odds of a mask by the same amount, so that the expected size *is* the target at every step.

    Only differences between log-odds count, so one score vector can serve every size at once: the `nested` family.
    """

    has_penalty = False

    def adjust_log_odds(self, log_odds: Tensor, target: Tensor) -> Tensor:
        """Log-odds shifted by the same amount in each mask, so that they expect `target` open gates."""
        shifted = log_odds - _shift(log_odds.detach(), target).unsqueeze(-1)
        # One more Newton step. It changes no value, but by the implicit function theorem its gradient is the shift's.
        open_now = shifted.sigmoid()
        slope = (open_now * (1 - open_now)).sum(-1).detach().clamp_min(1e-6)
        return shifted - ((open_now.sum(-1) - target) / slope).unsqueeze(-1)

    def forward(self, error: Tensor, penalty_scale: float = 1.0) -> Tensor:
        """No penalty: the shift leaves no error."""
        del penalty_scale
        return torch.zeros_like(error)

    def after_step(self, log_odds: Tensor, error: Tensor, penalty_scale: float, logit_clip: float) -> None:
        """Nothing to update: the next shift restores the target."""

    def reset(self) -> None:
        """Nothing to forget."""


def _shift(log_odds: Tensor, target: Tensor) -> Tensor:
    """How far to lower log-odds (..., nodes) so that their sigmoids sum to the targets (...).

    A search in few operations: every round tries `GRID` shifts at once and keeps the interval between two of them.
    """
    odds_of_target = (target / log_odds.shape[-1]).logit(1e-6)  # those of a gate if all gates were alike
    low, high = log_odds.amin(-1) - odds_of_target, log_odds.amax(-1) - odds_of_target
    grid = torch.linspace(0, 1, GRID, device=log_odds.device)
    for _ in range(ROUNDS):
        width = high - low
        shifts = torch.addcmul(low.unsqueeze(-1), width.unsqueeze(-1), grid)  # (..., grid)
        expected = (log_odds.unsqueeze(-2) - shifts.unsqueeze(-1)).sigmoid().sum(-1)
        n_above = (expected > target.unsqueeze(-1)).sum(-1).clamp(1, GRID - 1)  # `expected` falls along the grid
        high = low + width * grid[n_above]
        low = low + width * grid[n_above - 1]
    return (low + high) / 2


class Lagrangian(Budget):
    """The penalty `multiplier * error + penalty_scale * rho / 2 * error^2`: an augmented Lagrangian of error = 0.

    The quadratic term holds the size near its target from the first step. Gradient ascent on the multiplier
    removes the error that is left. The more nodes a model has, the less each is worth, so `rho` falls with their
    number.
    """

    PENALTY_WEIGHT = 40.0
    """`rho` times the number of nodes."""
    MULTIPLIER_LR = 0.02
    """Learning rate of the multipliers, as a factor on `rho`."""

    def __init__(self, n_groups: int, n_sizes: int, n_nodes: int) -> None:
        super().__init__()
        self.rho = self.PENALTY_WEIGHT / n_nodes
        self.multiplier: Tensor
        self.register_buffer("multiplier", torch.zeros(n_groups, n_sizes))

    def adjust_log_odds(self, log_odds: Tensor, target: Tensor) -> Tensor:
        """The log-odds as they are: the penalty alone moves them to the target."""
        del target
        return log_odds

    def forward(self, error: Tensor, penalty_scale: float = 1.0) -> Tensor:
        """The augmented Lagrangian's two terms, in nats, of the shape of `error`."""
        return self.multiplier * error + penalty_scale * self.rho / 2 * error.square()

    @torch.no_grad()
    def after_step(self, log_odds: Tensor, error: Tensor, penalty_scale: float, logit_clip: float) -> None:
        """Raise the multipliers by the error, and clip the log-odds so that every gate can still follow."""
        self.multiplier += self.MULTIPLIER_LR * penalty_scale * self.rho * error
        log_odds.clamp_(-logit_clip, logit_clip)

    def reset(self) -> None:
        """Set the multipliers to 0."""
        self.multiplier.zero_()
