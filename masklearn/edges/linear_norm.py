"""A norm as the linear map that it is once the scale it divides by is held fixed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LinearNorm:
    """Norms of some vectors, linearised: z becomes `scale * weight * z`, with z centred if the norm centres."""

    weight: Tensor
    """Shape (width,)."""
    scale: Tensor
    """One over the root mean square, or the standard deviation, of every vector; shape (vectors,)."""
    bias: Tensor
    """What the norm adds, which belongs to no contribution. Shape (width,)."""
    centred: bool
    """Whether the norm subtracts the mean, as a LayerNorm does."""

    @classmethod
    def of(cls, norm: nn.Module, vectors: Tensor) -> "LinearNorm":
        """Linearise a norm at some vectors (vectors, width), by what it does to three probes.

        The probes leave the module's parameters aside, which families store in different ways: as a weight, or as a
        weight plus one.
        """
        width = vectors.shape[-1]
        ones = vectors.new_ones(width)
        probe = ones.clone()
        probe[1::2] = -1
        bias, of_ones = norm(torch.stack([torch.zeros_like(ones), ones])[None])[0].float()
        centred = bool((of_ones - bias).norm() < 1e-2 * norm(probe[None, None])[0, 0].float().norm())
        probe = probe - probe.mean() if centred else probe
        weight = (norm(probe[None, None])[0, 0].float() - bias) / probe.float()
        normed = norm(vectors[None])[0].float() - bias
        unscaled = cls(weight, torch.ones(len(vectors), device=weight.device), bias, centred).direction(vectors.float())
        scale = (normed * unscaled).sum(-1) / unscaled.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        return cls(weight, scale, bias, centred)

    def direction(self, vectors: Tensor) -> Tensor:
        """Vectors (..., width) under the map without its scale, which differs from vector to vector."""
        return self.weight * (vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Contributions (vectors, width) to the vectors at which the norm was linearised."""
        return self.scale[:, None] * self.direction(vectors)
