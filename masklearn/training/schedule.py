"""The schedule: temperature, target size, learning rate and penalty as functions of the step alone."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Everything that changes during training, as a function of the step alone, so that resuming needs no state.

    The shares and limits were chosen on the validation split of sampled stories (45 nodes, sizes 3 to 38).
    """

    steps: int
    """Optimiser steps."""
    temperature: tuple[float, float]
    """Softness of the gates at the first and at the last step (dimensionless)."""
    warm_up: float = 0.6
    """Share of the steps, from the first on, in which the target shrinks from all nodes to the requested size."""
    cool_down: float = 0.3
    """Share of the steps, up to the last, in which the learning rate falls to almost 0."""

    def progress(self, step: int) -> float:
        """0 at the first step, 1 at the last and after it."""
        return min(1.0, step / max(1, self.steps - 1))

    def temperature_at(self, step: int) -> float:
        """Softness of the gates: linear from the first temperature to the last."""
        first, last = self.temperature
        return first + (last - first) * self.progress(step)

    def target_at(self, step: int, sizes: Tensor, n_nodes: int) -> Tensor:
        """The target size: geometric from `n_nodes` to each size, since halving costs about the same KL everywhere."""
        share = min(1.0, self.progress(step) / self.warm_up)
        return n_nodes * (sizes / n_nodes) ** share

    def lr_factor_at(self, step: int) -> float:
        """Factor on the learning rate: 1 until the cool-down, then falling to 0.03."""
        return max(0.03, self._remaining(step))

    def penalty_scale_at(self, step: int) -> float:
        """Factor on the budget's penalty: it grows eightfold in the cool-down, so that sizes end at their target."""
        return 8.0 ** (1 - self._remaining(step))

    def _remaining(self, step: int) -> float:
        """Share of the cool-down that is left: 1 until it begins, then falling to 0."""
        return min(1.0, (1 - self.progress(step)) / self.cool_down)

    def logit_clip_at(self, step: int, n_nodes: int) -> float:
        """Largest absolute log-odds allowed: an almost certain gate has no gradient and cannot follow its budget.

        The limit grows until all closed gates of the model together count for at most a tenth of an open one.
        """
        return 3.0 * (math.log(10 * n_nodes) / 3.0) ** self.progress(step)
