"""The budget: which sizes are asked for, and the force that drives the expected number of open gates to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from masklearn.errors import UserError


def resolve_sizes(sizes: Sequence[int | float], n_nodes: int) -> list[int]:
    """Sizes as node counts, ascending: ints are counts, fractions below 1 are shares of the nodes, rounded.

    Raises:
        UserError: If there are none, if one is out of range, or if two are the same.
    """
    if not sizes:
        raise UserError(f'model.sizes is empty. Choose from 1 to {n_nodes}, for example --model.sizes "[8, 0.5]"')
    counts: dict[int, int | float] = {}
    for size in sizes:
        if isinstance(size, float) and not size.is_integer():
            if not 0 < size < 1:
                raise UserError(f"model.sizes asks for {size} nodes; a count is a whole number, a fraction lies below 1")
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
                f"model.sizes names {count} of {n_nodes} nodes twice, as {counts[count]} and as {size}. Drop one of them"
            )
        counts[count] = size
    return sorted(counts)


@dataclass(frozen=True)
class Schedule:
    """What changes while training goes on, as functions of the step alone, so that a resumed run needs no memory."""

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
        """The expected size to be at now: from `n_nodes` to each size geometrically, since every halving costs alike."""
        share = min(1.0, self.progress(step) / self.warm_up)
        return n_nodes * (sizes / n_nodes) ** share

    def rate_at(self, step: int) -> float:
        """Factor on the learning rate."""
        return max(0.01, min(1.0, (1 - self.progress(step)) / self.cool_down))


class Lagrangian(nn.Module):
    """`multiplier * (expected - target) + rho / 2 * (expected - target)^2`, the multiplier climbing where it costs.

    The augmented Lagrangian of the constraint expected = target: the quadratic part holds the size near its target from
    the first step, and the multiplier takes away what error is left.
    """

    def __init__(self, n_groups: int, n_sizes: int, rho: float = 1.0) -> None:
        super().__init__()
        self.rho = rho
        self.multiplier = nn.Parameter(torch.zeros(n_groups, n_sizes))

    def forward(self, expected: Tensor, target: Tensor) -> Tensor:
        """Price of every mask, from the expected and the wanted number of open gates, all (groups, sizes)."""
        error = expected - target
        return self.multiplier * error + self.rho / 2 * error.square()
