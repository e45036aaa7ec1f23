"""What training logs: means over the steps since the last log, kept on the device until they are logged."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class StepResult(NamedTuple):
    """What is logged at a step, detached."""

    kl: Tensor
    """Mean KL of every size since the last log, in nats; NaN for a size that was not sampled. Shape (sizes,)."""
    error: Tensor
    """Expected minus target number of open gates, shape (groups x restarts, sizes)."""
    target: Tensor
    """Target number of open gates, shape (sizes,)."""


class StepLog(nn.Module):
    """Sums the KL of every size over steps; part of a checkpoint, so that a resumed run logs the same means."""

    def __init__(self, n_sizes: int) -> None:
        super().__init__()
        self.sums: Tensor
        """KL and number of masks of every size since the last log, shape (2, sizes)."""
        self.register_buffer("sums", torch.zeros(2, n_sizes))

    def add(self, kl: Tensor, sampled: Tensor) -> None:
        """Take in a step.

        Args:
            kl: KL of every mask in nats, 0 where the step did not sample it. Shape (groups x restarts, sizes).
            sampled: 1 for the masks that the step ran, otherwise 0; same shape.
        """
        self.sums += torch.stack([kl, sampled]).sum(1)

    def reset(self) -> None:
        """Forget the steps so far."""
        self.sums.zero_()

    def mean_kl(self) -> Tensor:
        """Mean KL of every size in nats since the last log, NaN for a size that was not sampled; starts anew."""
        kl, n_masks = self.sums.unbind()
        mean = kl / n_masks
        self.reset()
        return mean


def progress_bar_metrics(result: StepResult, temperature: float, loss: str = "kl") -> dict[str, Tensor | float]:
    """Means over the sizes: the KL of those sampled, and the expected (`size`) and the target number of open gates.

    Another loss that takes the place of the KL is named by `loss`.
    """
    return {
        loss: result.kl.nanmean(),
        "size": (result.target + result.error.mean(0)).mean(),
        "target": result.target.mean(),
        "temperature": temperature,
    }


def metrics_by_size(
    result: StepResult, sizes: Sequence[int], multiplier: Tensor | None = None, loss: str = "kl"
) -> dict[str, Tensor]:
    """Means over the groups of the block, for every size that was sampled since the last log.

    Args:
        result: The step.
        sizes: Nodes that the masks keep.
        multiplier: Multipliers of a Lagrangian budget, shape (groups x restarts, sizes).
        loss: What takes the place of the KL, if it is another loss.
    """
    error = result.error.mean(0)
    metrics = {loss: result.kl, "open": result.target + error, "budget_error": error}
    if multiplier is not None:
        metrics["multiplier"] = multiplier.mean(0)
    sampled = result.kl.isfinite().tolist()
    return {
        f"train/{name}/s={size}": value
        for name, values in metrics.items()
        for size, value, was_sampled in zip(sizes, values, sampled, strict=True)
        if was_sampled
    }
