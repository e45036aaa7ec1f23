"""Activation statistics: mean and standard deviation of what nodes emit on the training split."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from masklearn.ablation import Ablation, AblationName
from masklearn.errors import UserError


class ActivationStats:
    """Running mean and standard deviation of the outputs of one layer's heads, or of its MLP, in float64.

    Args:
        n_nodes: Nodes whose outputs are concatenated in the activation.
        positional: Whether to keep a mean for every position besides that over all tokens.
    """

    def __init__(self, n_nodes: int, positional: bool) -> None:
        self.n_nodes, self.positional = n_nodes, positional
        self.sums, self.sums_of_squares = torch.zeros(1, 1), torch.zeros(1, 1)
        self.counts = torch.zeros(1, dtype=torch.double)

    def update(self, outputs: Tensor, real: Tensor) -> None:
        """Add a batch.

        Args:
            outputs: Shape (inputs, tokens, nodes * width).
            real: False at padding, which does not count. Boolean, shape (inputs, tokens).
        """
        outputs = outputs.double().masked_fill(~real[..., None].to(outputs.device), 0)
        sums, counts = outputs.sum(0).to(real.device), real.double().sum(0)
        if not self.positional:
            sums, counts = sums.sum(0, keepdim=True), counts.sum(0, keepdim=True)
        self.sums, self.counts = _add_padded(self.sums, sums), _add_padded(self.counts, counts)
        self.sums_of_squares = self.sums_of_squares.to(sums) + outputs.square().sum((0, 1)).to(real.device)

    def mean(self) -> Tensor:
        """Return the mean at every position if `positional`, and last the mean over all tokens.

        A position at which no token was observed has the mean over all tokens.

        Returns:
            Shape (1, positions + 1 or 1, nodes, width).

        Raises:
            ValueError: If no token was observed.
        """
        if not self.counts.sum():
            raise ValueError("no tokens to average over")
        overall = self._overall_mean()
        if not self.positional:
            return self._by_node(overall)
        counts = self.counts[:, None]
        means = torch.where(counts > 0, self.sums / counts.clamp(min=1), overall)
        return self._by_node(torch.cat([means, overall]))

    def std(self) -> Tensor:
        """Return the root mean square deviation of every node's output from its mean over all tokens.

        Returns:
            Shape (1, 1, nodes, 1): the mean is over tokens and over the width.
        """
        variance = self.sums_of_squares / self.counts.sum() - self._overall_mean().square()
        return self._by_node(variance).mean(-1, keepdim=True).clamp(min=0).sqrt()

    def _overall_mean(self) -> Tensor:
        return self.sums.sum(0, keepdim=True) / self.counts.sum()

    def _by_node(self, values: Tensor) -> Tensor:
        """Reshape (positions, nodes * width) to (1, positions, nodes, width)."""
        return values.float().unflatten(-1, (self.n_nodes, -1))[None]


def _add_padded(total: Tensor, more: Tensor) -> Tensor:
    """Add two tensors of different length, the shorter one padded with zeros at its end."""
    length = max(len(total), len(more))
    total, more = (pad(t, (0, 0) * (t.dim() - 1) + (0, length - len(t))) for t in (total.to(more), more))
    return total + more


def ablation_from_means(
    name: AblationName, heads: Sequence[ActivationStats], mlps: Sequence[ActivationStats]
) -> Ablation:
    """Make an ablation that emits the means of the given statistics, one for each layer.

    Raises:
        UserError: If a mean is not finite; the message names the nodes.
    """
    ablation = Ablation(name, tuple(stats.mean() for stats in heads), tuple(stats.mean() for stats in mlps))
    for layer, layer_means in enumerate(zip(ablation.heads, ablation.mlps, strict=True)):
        for nodes, means in zip(("the heads", "the MLP"), layer_means, strict=True):
            if not means.isfinite().all():
                raise UserError(
                    f"{name} ablation: the mean of {nodes} of layer {layer} is not finite. Choose "
                    "--model.dtype float32, or --model.ablation zero"
                )
    return ablation
