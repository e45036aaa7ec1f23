"""The schedule: temperature, target size, learning rate and penalty as functions of the step alone."""

import math
from dataclasses import dataclass

from torch import Tensor


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

    def lr_factor_at(self, step: int) -> float:
        """Factor on the learning rate."""
        return max(0.03, self._cooling(step))

    def penalty_scale_at(self, step: int) -> float:
        """Factor on the budget's pull: it grows eightfold while the gates cool down, so that they settle on target."""
        return 8.0 ** (1 - self._cooling(step))

    def _cooling(self, step: int) -> float:
        """1 until the gates cool down, then falling to 0."""
        return min(1.0, (1 - self.progress(step)) / self.cool_down)

    def logit_clip_at(self, step: int, n_nodes: int) -> float:
        """How far log-odds may go: a gate that is all but certain has no gradient and cannot follow its budget.

        It widens until the closed gates of the whole model together count for no more than a tenth of an open one.
        """
        return 3.0 * (math.log(10 * n_nodes) / 3.0) ** self.progress(step)
