"""What a training step logs."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class StepResult(NamedTuple):
    """The outcome of a training step, detached."""

    kl: Tensor
    """KL of every mask in nats, 0 where the step did not sample it. Shape (groups x restarts, sizes)."""
    sampled: Tensor
    """Which masks the step ran. Boolean, shape (groups x restarts, sizes)."""
    error: Tensor
    """Expected minus target number of open gates, shape (groups x restarts, sizes)."""
    target: Tensor
    """Target number of open gates, shape (sizes,)."""

    @property
    def kl_by_size(self) -> Tensor:
        """Mean KL over the sampled masks of every size; NaN for a size that was not sampled."""
        return (self.kl * self.sampled).sum(0) / self.sampled.sum(0)


def progress_bar_metrics(result: StepResult, temperature: float) -> dict[str, Tensor | float]:
    """Means over the sizes: the KL of those sampled, and the expected (`size`) and the target number of open gates."""
    error = result.error.mean(0)
    return {
        "kl": result.kl_by_size[result.sampled.any(0)].mean(),
        "size": (result.target + error).mean(),
        "target": result.target.mean(),
        "temperature": temperature,
    }


def metrics_by_size(result: StepResult, sizes: Sequence[int], multiplier: Tensor | None = None) -> dict[str, Tensor]:
    """Means over the groups of the block, for every size that was sampled.

    Args:
        result: The step.
        sizes: Nodes that the masks keep.
        multiplier: Multipliers of a Lagrangian budget, shape (groups x restarts, sizes).
    """
    error = result.error.mean(0)
    metrics = {"kl": result.kl_by_size, "open": result.target + error, "budget_error": error}
    if multiplier is not None:
        metrics["multiplier"] = multiplier.mean(0)
    sampled = result.sampled.any(0).tolist()
    return {
        f"train/{name}/s={size}": value
        for name, values in metrics.items()
        for size, value, was_sampled in zip(sizes, values, sampled, strict=True)
        if was_sampled
    }
