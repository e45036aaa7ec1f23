"""Activation statistics: what nodes emit on average over the training split, and how far they vary."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from masklearn.ablation import Ablation, AblationName
from masklearn.errors import UserError


class ActivationStats:
    """Means of what one place in the model puts out, and how far its nodes stray from them: float64, batch by batch.

    Args:
        parts: Nodes whose outputs stand side by side.
        positional: Whether the mean of every position is wanted as well as that of all tokens.
    """

    def __init__(self, parts: int, positional: bool) -> None:
        self.parts, self.positional = parts, positional
        self.total, self.squares = torch.zeros(1, 1), torch.zeros(1, 1)
        self.count = torch.zeros(1, dtype=torch.double)

    def update(self, outputs: Tensor, real: Tensor) -> None:
        """Take in outputs (inputs, tokens, parts * width) at the tokens that are real, boolean (inputs, tokens)."""
        outputs = outputs.double().masked_fill(~real[..., None], 0)
        total, count = outputs.sum(0), real.double().sum(0)
        if not self.positional:
            total, count = total.sum(0, keepdim=True), count.sum(0, keepdim=True)
        self.total, self.count = _add(self.total, total), _add(self.count, count)
        self.squares = self.squares.to(outputs) + outputs.square().sum((0, 1))

    def mean(self) -> Tensor:
        """Shape (1, positions, parts, width): the mean of every position, and last the one of all tokens.

        A position that no token has stood at has the mean of all tokens.
        """
        if not self.count.sum():
            raise ValueError("no tokens to average over")
        overall = self._overall()
        if not self.positional:
            return self._parted(overall)
        count = self.count[:, None]
        means = torch.where(count > 0, self.total / count.clamp(min=1), overall)
        return self._parted(torch.cat([means, overall]))

    def spread(self) -> Tensor:
        """Standard deviation of every node's output from its mean over all tokens, shape (1, 1, parts, 1)."""
        variance = self.squares / self.count.sum() - self._overall().square()
        return self._parted(variance).mean(-1, keepdim=True).clamp(min=0).sqrt()

    def _overall(self) -> Tensor:
        return self.total.sum(0, keepdim=True) / self.count.sum()

    def _parted(self, values: Tensor) -> Tensor:
        return values.float().unflatten(-1, (self.parts, -1))[None]


def _add(total: Tensor, more: Tensor) -> Tensor:
    """The sum over positions of two tensors, the shorter of which goes on with zeros."""
    longest = max(len(total), len(more))
    total, more = (pad(t, (0, 0) * (t.dim() - 1) + (0, longest - len(t))) for t in (total.to(more), more))
    return total + more


def means_of(name: AblationName, heads: Sequence[ActivationStats], mlps: Sequence[ActivationStats]) -> Ablation:
    """An ablation that emits the means of what was observed in every layer.

    Raises:
        UserError: If a mean is not finite; names the nodes.
    """
    found = Ablation(name, tuple(seen.mean() for seen in heads), tuple(seen.mean() for seen in mlps))
    for layer, both in enumerate(zip(found.heads, found.mlps, strict=True)):
        for kind, values in zip(("the heads", "the MLP"), both, strict=True):
            if not values.isfinite().all():
                raise UserError(
                    f"{name} ablation: the mean of {kind} of layer {layer} is not finite. Choose "
                    "--model.dtype float32, or --model.ablation zero"
                )
    return found
