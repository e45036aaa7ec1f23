"""A forward and the backward through it, as training steps and scored masks run them."""

from typing import Any

import torch
from torch import Tensor

from masklearn.masking import CompiledSteps

IDS = torch.arange(3, 17).view(2, 7)
"""Two texts of seven tokens."""


def outcome(run: Any, ids: Tensor, gates: Tensor, corrupted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The hidden states that a run gives at all tokens, and the gates' gradient of a weighted sum of them."""
    leaf = gates.clone().requires_grad_()
    hidden = run(ids, torch.ones_like(ids, dtype=torch.bool), leaf, corrupted)
    weights = torch.linspace(-1, 1, hidden.shape[-1])
    return hidden.detach(), torch.autograd.grad((hidden * weights).sum(), leaf)[0]


def run_steps(steps: CompiledSteps, n_masks: int = 2) -> Tensor:
    """The hidden states of a step under so many random gate vectors a text."""
    return outcome(steps, IDS, torch.rand(n_masks, 2, steps.masked_lm.graph.n_nodes))[0]
