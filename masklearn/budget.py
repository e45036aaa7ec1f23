"""The budget: which sizes are asked for, and the force that drives the expected number of open gates to them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from masklearn.errors import UserError

LOG, MIB = "log:", "mib"
MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all nodes at which MIB looks (Mueller et al. 2025, arXiv 2504.13151)."""


def resolve_sizes(sizes: Sequence[int | float] | str, n_nodes: int) -> list[int]:
    """Sizes as node counts, ascending.

    Args:
        sizes: Counts, or fractions below 1 (shares of the nodes, rounded); or `log:12` for 12 sizes from 1 to all nodes
            but one, log-spaced as nearly as whole numbers can be; or `mib` for those at which MIB looks.
        n_nodes: Nodes to choose from.

    Raises:
        UserError: If there are none, if one is out of range, or if two are the same.
    """
    if sizes == MIB:
        return sorted({int(fraction * n_nodes) for fraction in MIB_FRACTIONS} - {0, n_nodes})
    if isinstance(sizes, str):
        return _log_spaced(sizes, n_nodes)
    if not sizes:
        raise UserError(f'model.sizes is empty. Choose from 1 to {n_nodes}, for example --model.sizes "[8, 0.5]"')
    counts: dict[int, int | float] = {}
    for size in sizes:
        if isinstance(size, float) and not size.is_integer():
            if not 0 < size < 1:
                raise UserError(
                    f"model.sizes asks for {size} nodes; a count is a whole number, a fraction lies below 1"
                )
            count = max(1, round(size * n_nodes))
        else:
            count = int(size)
        if not 1 <= count <= n_nodes:
            raise UserError(
                f"model.sizes asks for {count} nodes, but the model has {n_nodes}. "
                f'Choose from 1 to {n_nodes}, for example --model.sizes "[{max(1, n_nodes // 8)}, 0.5]"'
            )
        if count in counts:
            raise UserError(
                f"model.sizes names {count} of {n_nodes} nodes twice, as {counts[count]} and as {size}. Drop one"
            )
        counts[count] = size
    return sorted(counts)


def _log_spaced(asked: str, n_nodes: int) -> list[int]:
    number = asked.removeprefix(LOG)
    if not asked.startswith(LOG) or not number.isdecimal() or not int(number):
        raise UserError(
            f'model.sizes is {asked!r}; give numbers, for example "[8, 0.5]", log:12 for 12 log-spaced sizes, or mib'
        )
    n = int(number)
    if n >= n_nodes:
        raise UserError(
            f"model.sizes asks for {n} log-spaced sizes, but the model has {n_nodes} nodes. "
            f"Choose up to {n_nodes - 1}, for example {LOG}{max(1, min(12, n_nodes - 1))}"
        )
    counts: list[int] = []
    for i in range(n):
        ideal = round((n_nodes - 1) ** (i / max(1, n - 1)))
        counts.append(min(max([ideal, *(c + 1 for c in counts[-1:])]), n_nodes - n + i))  # distinct, and none left over
    return counts


@dataclass(frozen=True)
class Schedule:
    """What changes while training goes on, as functions of the step alone, so that a resumed run needs no memory.

    Shares and bounds were chosen on the validation split of sampled stories (45 nodes, sizes 3 to 38).
    """

    steps: int
    temperature: tuple[float, float]
    """At the first and at the last step."""
    warm_up: float = 0.6
    """Share of the steps in which the target shrinks from all nodes to the size asked for."""
    cool_down: float = 0.3
    """Share of the steps, the last ones, in which the learning rate falls to nearly nothing."""

    def progress(self, step: int) -> float:
        return min(1.0, step / max(1, self.steps - 1))

    def temperature_at(self, step: int) -> float:
        first, last = self.temperature
        return first + (last - first) * self.progress(step)

    def target_at(self, step: int, sizes: Tensor, n_nodes: int) -> Tensor:
        """The expected size to be at now: from `n_nodes` to each size geometrically, as every halving costs alike."""
        share = min(1.0, self.progress(step) / self.warm_up)
        return n_nodes * (sizes / n_nodes) ** share

    def rate_at(self, step: int) -> float:
        """Factor on the learning rate."""
        return max(0.03, self._cooling(step))

    def stiffness_at(self, step: int) -> float:
        """Factor on the budget's pull: it grows eightfold while the gates cool down, so that they settle on target."""
        return 8.0 ** (1 - self._cooling(step))

    def _cooling(self, step: int) -> float:
        """1 until the gates cool down, then falling to 0."""
        return min(1.0, (1 - self.progress(step)) / self.cool_down)

    def bound_at(self, step: int, n_nodes: int) -> float:
        """How far log-odds may go: a gate that is all but certain has no gradient and cannot follow its budget.

        It widens until the closed gates of the whole model together count for no more than a tenth of an open one.
        """
        return 3.0 * (math.log(10 * n_nodes) / 3.0) ** self.progress(step)


class Budget(nn.Module):
    """Drives the expected number of open gates of every mask to its target."""

    def settle(self, log_odds: Tensor, target: Tensor) -> Tensor:
        """The log-odds to draw with, of the same shape (groups, sizes, nodes), given targets of shape (sizes,)."""
        raise NotImplementedError

    def forward(self, error: Tensor, stiffness: float = 1.0) -> Tensor:
        """Price of every mask, in nats, of errors in nodes, both of shape (groups, sizes)."""
        raise NotImplementedError

    def after_step(self, log_odds: Tensor, error: Tensor, stiffness: float, bound: float) -> None:
        """What follows each step of the gates, in place."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget what was learned of the masks so far."""
        raise NotImplementedError


class Projected(Budget):
    """All log-odds of a mask are shifted alike, so that the expected number of open gates *is* the target at any step.

    Since only differences count, one score vector can serve every size at once: the `nested` family.
    """

    def settle(self, log_odds: Tensor, target: Tensor) -> Tensor:
        shift = _shift(log_odds.detach().double(), target.double())
        shifted = log_odds - shift.to(log_odds.dtype).unsqueeze(-1)
        # One Newton step more: it moves nothing, but its gradient is the shift's, by the implicit function theorem.
        open_now = shifted.sigmoid()
        slope = (open_now * (1 - open_now)).sum(-1).detach().clamp_min(1e-6)
        return shifted - ((open_now.sum(-1) - target) / slope).unsqueeze(-1)

    def forward(self, error: Tensor, stiffness: float = 1.0) -> Tensor:
        del stiffness
        return torch.zeros_like(error)

    def after_step(self, log_odds: Tensor, error: Tensor, stiffness: float, bound: float) -> None:
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

    PULL, CLIMB = 40.0, 0.02

    def __init__(self, n_groups: int, n_sizes: int, n_nodes: int) -> None:
        super().__init__()
        self.rho = self.PULL / n_nodes
        self.multiplier: Tensor
        self.register_buffer("multiplier", torch.zeros(n_groups, n_sizes))

    def settle(self, log_odds: Tensor, target: Tensor) -> Tensor:
        del target
        return log_odds

    def forward(self, error: Tensor, stiffness: float = 1.0) -> Tensor:
        return self.multiplier * error + stiffness * self.rho / 2 * error.square()

    @torch.no_grad()
    def after_step(self, log_odds: Tensor, error: Tensor, stiffness: float, bound: float) -> None:
        """The multipliers climb, and no gate gets too certain to follow."""
        self.multiplier += self.CLIMB * stiffness * self.rho * error
        log_odds.clamp_(-bound, bound)

    def reset(self) -> None:
        self.multiplier.zero_()
