"""Divergences between the full model's and the masked model's next-token distributions: exact, in float32, in chunks.

Logits are never held for all positions at once. What travels is the last hidden state, and the output head is applied
to as many positions at a time as `CHUNK` allows, for the full and the masked model together.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Unembed = Callable[[Tensor], Tensor]
"""Last hidden states (..., width) to logits (..., vocabulary)."""
CHUNK, MOST, MIN_POSITIONS = 2**24, 2**25, 64
"""Logits held at once (64 MB in float32), or up to twice as many for so many positions at a time, as a product of fewer
takes as long. They change memory and time, never the result."""


def kl_divergence(full: Tensor, masked: Tensor) -> Tensor:
    """KL(full || masked) of log-probabilities (..., vocabulary), in nats, of shape (...).

    Rounding can push the divergence of equal distributions below zero; it is then zero.
    """
    return (full - masked).mul_(full.exp()).sum(-1).clamp_min(0)


def log_probabilities(hidden: Tensor, unembed: Unembed) -> Tensor:
    """Float32 log-probabilities (..., vocabulary) of last hidden states (..., width)."""
    return unembed(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:-1], -1).float().log_softmax(-1)


def chunks(full: Tensor, n_masks: int, unembed: Unembed) -> Iterator[slice]:
    """Slices of the positions of `full` (positions, width), each small enough for `n_masks` models' logits at once."""
    if not len(full):
        return
    with torch.no_grad():
        vocabulary = unembed(full[:1]).shape[-1]
    of_one = n_masks * vocabulary
    step = max(1, CHUNK // of_one, min(MIN_POSITIONS, MOST // of_one))
    for begin in range(0, len(full), step):
        yield slice(begin, begin + step)


class _ChunkedKL(torch.autograd.Function):
    """A position's KL depends on its own hidden state alone, so its gradient is taken while its chunk is at hand."""

    @staticmethod
    def forward(ctx: Any, masked: Tensor, full: Tensor, unembed: Unembed, inverse_temperature: float) -> Tensor:
        learning = ctx.needs_input_grad[0]
        kl = torch.empty(masked.shape[:-1], dtype=torch.float32, device=masked.device)
        gradient = torch.empty_like(masked) if learning else torch.empty(0)
        for piece in chunks(full, len(masked), unembed):
            target = log_probabilities(full[piece], unembed)
            target = target if inverse_temperature == 1 else (target * inverse_temperature).log_softmax(-1)
            # Rows and positions in one: a product of matrices reads the head's weights once, a batch of them once a row
            with torch.set_grad_enabled(learning):
                inputs = masked[:, piece].detach().flatten(0, 1).requires_grad_(learning)
                flat = unembed(inputs)
            logits = flat.detach().unflatten(0, (len(masked), -1))
            logp = logits.float().log_softmax(-1)
            probability = target.exp()
            # KL, and its gradient in the logits in closed form: few passes over what is the largest tensor of a step.
            # The head's own gradient is autograd's affair; it does not need the logits, whose memory is used again.
            gap = torch.sub(target, logp, out=logits) if logits.dtype == logp.dtype else target - logp
            kl[:, piece] = torch.einsum("pv,kpv->kp", probability, gap).clamp_min(0)
            if learning:
                slope = logp.exp_().sub_(probability).flatten(0, 1).to(flat.dtype)
                (by_row,) = torch.autograd.grad(flat, inputs, slope)
                gradient[:, piece] = by_row.unflatten(0, (len(masked), -1))
        ctx.gradient = gradient
        return kl

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        return upstream.unsqueeze(-1).to(ctx.gradient.dtype) * ctx.gradient, None, None, None


def chunked_kl(full: Tensor, masked: Tensor, unembed: Unembed, inverse_temperature: float = 1.0) -> Tensor:
    """KL(full || masked) at every position, in nats; differentiable in `masked`.

    Args:
        full: The full model's last hidden states, shape (positions, width).
        masked: Those of K masked models, shape (K, positions, width).
        head: The model's output head, frozen.
        sharpness: Power that the full model's probabilities are raised to, and normalised again; a large one leaves
            but the most probable token.

    Returns:
        Shape (K, positions), float32; 0 where both agree.

    Raises:
        ValueError: If positions or width differ.
    """
    if full.shape != masked.shape[1:]:
        raise ValueError(f"hidden states of {tuple(full.shape)} and {tuple(masked.shape)} do not match")
    return _ChunkedKL.apply(masked, full, unembed, inverse_temperature)  # pyright: ignore[reportReturnType]
