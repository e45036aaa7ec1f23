"""Finiteness of every step without waiting for the device: a bad step changes nothing, and the run stops soon after."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from masklearn.errors import NonFiniteLoss


class StepGuard(nn.Module):
    """Remembers the first step whose loss or gradient is not finite. From then on no update is applied."""

    def __init__(self) -> None:
        super().__init__()
        self.first_bad: Tensor
        """The first step with a bad loss and the first with a bad gradient, -1 as long as there is none."""
        self.register_buffer("first_bad", torch.full((2,), -1), persistent=False)

    def note(self, loss: Tensor, learned: Sequence[nn.Parameter], step: int) -> Tensor:
        """Take note of a step.

        Args:
            loss: Its loss.
            learned: All parameters, with their gradients.
            step: Its number in the run.

        Returns:
            1 if the update must be skipped, otherwise 0. Float32, without dimensions, on the device.
        """
        gradients = [parameter.grad.abs().amax() for parameter in learned if parameter.grad is not None]
        finite = torch.stack([loss, torch.stack(gradients).amax()]).isfinite()  # the largest of values with NaN is NaN
        self.first_bad = torch.where(finite | (self.first_bad >= 0), self.first_bad, step)
        return (self.first_bad.amax() >= 0).float()

    def check(self, before: float = math.inf) -> None:
        """Stop the run if a step was bad. This waits for the device.

        Args:
            before: Only steps before this one count.

        Raises:
            NonFiniteLoss: If a loss or a gradient was not finite; names the step.
        """
        for what, step in zip(("loss", "gradient"), self.first_bad.tolist(), strict=True):
            if 0 <= step < before:
                raise NonFiniteLoss(
                    f"the {what} at step {step} is not finite, so this step was not taken. "
                    "Try --model.dtype float32, or leave out the texts on which the model itself is not finite"
                )
