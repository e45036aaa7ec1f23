"""What masks minimise: the KL between the full and the masked model's next-token distributions, or a loss of answers.

The KL is exact, in float32, in chunks of positions. The logits of all positions never exist at once. The last
hidden states are kept instead, and a chunk of positions at a time is unembedded, for the full and the masked models
together.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

ObjectiveName = Literal["kl", "logit-diff", "cross-entropy"]
"""`kl`: KL(full || masked). `logit-diff`: -log sigmoid of the logit difference between right and wrong answers.
`cross-entropy`: negative log-probability of the right answers."""
Unembed = Callable[[Tensor], Tensor]
"""Last hidden states (..., width) to logits (..., vocabulary)."""
FusedKL = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps logits to their KL and its gradient, as `kl_and_gradient` does."""
MIN_FUSED_LOGITS = 2**27
"""Fewest logits, over all chunks, that a fused KL compares if the model has one. Compiling it takes 2 to 6 s on an
H100, and comparing so many logits then takes 2.6 ms less."""
CHUNK_LOGITS = 2**25
"""Logits of a chunk on a CPU: 128 MB in float32. Like the constants below, it changes memory and time, never the
result."""
TILE_LOGITS = 2**20
"""Logits that a CPU compares at once: its cache holds what it computes of them. Whole chunks took up to four times as
long, since the memory of every step was new."""
BYTES_PER_LOGIT = 24
"""Memory for each logit of a chunk on a GPU: the full model's and the masked model's logits, log-probabilities and
their gradient, in float32 and in the model's dtype."""
GPU_SHARE = 1 / 16
"""Share of a GPU's memory that a chunk may take. Every chunk reads the unembedding three times, so few are better."""


def kl_divergence(full: Tensor, masked: Tensor) -> Tensor:
    """KL(full || masked) of log-probabilities (..., vocabulary), in nats, shape (...).

    The KL of equal distributions can round to below zero; it is clamped to zero.
    """
    return (full - masked).mul_(full.exp()).sum(-1).clamp_min(0)


def log_probabilities(hidden: Tensor, unembed: Unembed) -> Tensor:
    """Float32 log-probabilities (..., vocabulary) of last hidden states (..., width)."""
    return unembed(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:-1], -1).float().log_softmax(-1)


def max_chunk_logits(device: torch.device) -> int:
    """The most logits of a chunk on a device."""
    if device.type != "cuda":
        return CHUNK_LOGITS
    memory = torch.cuda.get_device_properties(device).total_memory
    return int(GPU_SHARE * memory) // BYTES_PER_LOGIT


def chunks(full: Tensor, n_masks: int, unembed: Unembed) -> Iterator[slice]:
    """Slices of the positions of `full` (positions, width) that bound the logits of `n_masks` models at once."""
    if len(full):
        yield from _slices(len(full), max_chunk_logits(full.device) // (n_masks * vocabulary_of(unembed, full)))


def _tiles(logits: Tensor) -> Iterator[slice]:
    """Slices of the positions of logits (K, positions, vocabulary) that are compared at once."""
    n_models, n_positions, vocabulary = logits.shape
    whole = logits.device.type != "cpu"
    yield from _slices(n_positions, n_positions if whole else TILE_LOGITS // (n_models * vocabulary))


def _slices(n: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(begin, min(begin + step, n)) for begin in range(0, n, step))


@torch.no_grad()
def logits_of_models(hidden: Tensor, unembed: Unembed) -> Iterator[tuple[slice, Tensor]]:
    """Logits of several models, as many positions at a time as are compared at once.

    Args:
        hidden: Their last hidden states, shape (K, positions, width).
        unembed: The output head.

    Yields:
        Which positions, and their logits, shape (K, those positions, vocabulary).
    """
    for chunk in chunks(hidden[0], len(hidden), unembed):
        # Models and positions are flattened: one matrix product reads the unembedding once, a batch once per model
        logits = unembed(hidden[:, chunk].flatten(0, 1)).unflatten(0, (len(hidden), -1))
        for tile in _tiles(logits):
            yield slice(chunk.start + tile.start, chunk.start + tile.stop), logits[:, tile]


@torch.no_grad()
def vocabulary_of(unembed: Unembed, hidden: Tensor) -> int:
    """The size of the vocabulary. A model knows its own; a plain function is tried on one of these hidden states."""
    return getattr(unembed, "vocabulary", 0) or unembed(hidden[:1]).shape[-1]


def kl_in_place(
    full: Tensor, masked: Tensor, inverse_temperature: float, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """KL(full || masked) of logits, and its gradient with respect to the masked ones, in closed form.

    Few passes over the largest tensors of a training step, which are overwritten.

    Args:
        full: The full model's logits, shape (positions, vocabulary).
        masked: Those of K masked models, shape (K, positions, vocabulary); overwritten.
        inverse_temperature: As in `chunked_kl`.
        needs_gradient: Whether to compute the gradient.

    Returns:
        Nats, float32, shape (K, positions); and the gradient of each position's KL, of the shape of `masked`.
    """
    kl = torch.empty(masked.shape[:-1], dtype=torch.float32, device=masked.device)
    for tile in _tiles(masked):
        kl[:, tile] = _kl_of_tile(full[tile], masked[:, tile], inverse_temperature, needs_gradient)
    return kl, masked if needs_gradient else None


def _kl_of_tile(full: Tensor, masked: Tensor, inverse_temperature: float, needs_gradient: bool) -> Tensor:
    """The KL of `kl_in_place`; `masked` becomes the gradient if that is needed."""
    target = full.float().log_softmax(-1)
    target = target if inverse_temperature == 1 else (target * inverse_temperature).log_softmax(-1)
    logp, probability = masked.float().log_softmax(-1), target.exp()
    log_ratio = torch.sub(target, logp, out=masked) if masked.dtype == logp.dtype else target - logp
    kl = torch.einsum("pv,kpv->kp", probability, log_ratio).clamp_min(0)
    if needs_gradient:
        torch.sub(logp.exp_(), probability, out=masked)
    return kl


def kl_and_gradient(full: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """What `kl_in_place` returns, without changing its arguments: for a compiler, which fuses the passes."""
    target, logp = full.float().log_softmax(-1), masked.float().log_softmax(-1)
    kl = (target.exp() * (target - logp)).sum(-1).clamp_min(0)
    return kl, (logp.exp() - target.exp()).to(masked.dtype)


class _ChunkedKL(torch.autograd.Function):
    """KL per position. Its gradient depends on that position's hidden state alone, so `forward` computes it as well."""

    @staticmethod
    def forward(ctx: Any, masked: Tensor, full: Tensor, unembed: Unembed, inverse_temperature: float) -> Tensor:
        """Arguments and result as in `chunked_kl`."""
        kl = torch.empty(masked.shape[:-1], dtype=torch.float32, device=masked.device)
        gradient = torch.empty_like(masked)
        fused = _fused_kl(masked, full, unembed) if inverse_temperature == 1 else None
        for chunk in chunks(full, len(masked), unembed):
            with torch.enable_grad():  # models and positions are flattened as in `logits_of_models`
                hidden = masked[:, chunk].detach().flatten(0, 1).requires_grad_()
                flat_logits = unembed(hidden)
            logits = flat_logits.detach().unflatten(0, (len(masked), -1))
            both = unembed(full[chunk]), logits
            kl[:, chunk], of_logits = fused(*both) if fused else kl_in_place(*both, inverse_temperature, True)
            assert of_logits is not None
            # autograd only differentiates `unembed`, which does not need the logits: their memory is reused
            (hidden_gradient,) = torch.autograd.grad(flat_logits, hidden, of_logits.flatten(0, 1))
            gradient[:, chunk] = hidden_gradient.unflatten(0, (len(masked), -1))
        ctx.gradient = gradient
        return kl

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        """The gradient with respect to `masked`, from that of the KLs (K, positions)."""
        return upstream.unsqueeze(-1).to(ctx.gradient.dtype) * ctx.gradient, None, None, None


def _fused_kl(masked: Tensor, full: Tensor, unembed: Unembed) -> FusedKL | None:
    """The fused KL of a model that has one, if so many logits are compared that it pays."""
    fused: FusedKL | None = getattr(unembed, "fused_kl", None)
    n_positions = masked.shape[:-1].numel()
    return fused if fused and n_positions * vocabulary_of(unembed, full) >= MIN_FUSED_LOGITS else None


def chunked_kl(full: Tensor, masked: Tensor, unembed: Unembed, inverse_temperature: float = 1.0) -> Tensor:
    """KL(full || masked) at every position, in nats; differentiable with respect to `masked`.

    Args:
        full: The full model's last hidden states, shape (positions, width).
        masked: The last hidden states of K masked models, shape (K, positions, width).
        unembed: The model's output head, frozen.
        inverse_temperature: Power to which the full model's probabilities are raised before they are normalised again
            (dimensionless). As it grows, only the most probable token is left.

    Returns:
        Shape (K, positions), float32; 0 where the distributions are equal.

    Raises:
        ValueError: If positions or width differ.
    """
    if full.shape != masked.shape[1:]:
        raise ValueError(f"hidden states of shape {tuple(full.shape)} and {tuple(masked.shape)} do not match")
    if masked.requires_grad and torch.is_grad_enabled():
        return _ChunkedKL.apply(masked, full, unembed, inverse_temperature)  # pyright: ignore[reportReturnType]
    kl = torch.empty(masked.shape[:-1], dtype=torch.float32, device=masked.device)
    for positions, logits in logits_of_models(torch.cat([full[None], masked]), unembed):
        kl[:, positions] = kl_in_place(logits[0], logits[1:], inverse_temperature, False)[0]
    return kl


def answer_loss(objective: ObjectiveName, logp: Tensor, right: Tensor, wrong: Tensor | None) -> Tensor:
    """The loss of every text's answers, in nats, shape (K, texts). It is positive, and falls as the answer gets better.

    Args:
        objective: `logit-diff` or `cross-entropy`.
        logp: Log-probabilities at the position that the answer follows, of K masked models.
            Shape (K, texts, vocabulary).
        right: Tokens of the right answers, filled up with -1; every text has one. Shape (texts, answers).
        wrong: Those of the wrong answers, likewise, for `logit-diff`.
    """
    if objective == "cross-entropy":
        return -_at_tokens(logp, right).masked_fill(right < 0, -torch.inf).logsumexp(-1)
    assert wrong is not None
    right_mean, wrong_mean = (
        _at_tokens(logp, tokens).masked_fill(tokens < 0, 0).sum(-1) / (tokens >= 0).sum(-1) for tokens in (right, wrong)
    )
    return softplus(wrong_mean - right_mean)  # a difference of log-probabilities is one of logits


def _at_tokens(logp: Tensor, tokens: Tensor) -> Tensor:
    return logp.gather(-1, tokens.clamp(min=0).expand(len(logp), -1, -1))
