"""A frozen model that runs on one text under a gate for every node at every token."""

import torch
from torch import Tensor

from masklearn.masking import MaskedLM
from masklearn.models import Layout
from masklearn.positions.graph import PositionGraph


class PositionLM:
    """A frozen model under one gate for every position of a text. Closed positions emit zero.

    Args:
        masked_lm: The model under gates.
    """

    def __init__(self, masked_lm: MaskedLM) -> None:
        self.masked_lm = masked_lm

    @property
    def layout(self) -> Layout:
        """The model's layout."""
        return self.masked_lm.layout

    @property
    def device(self) -> torch.device:
        """The device of the model's inputs."""
        return self.masked_lm.device

    def full(self, input_ids: Tensor) -> Tensor:
        """Return the last hidden state of the full model after one text: (tokens,) to (width,).

        Raises:
            UserError: If some of it is NaN or infinite.
        """
        return self.masked_lm.full(input_ids[None], _last(input_ids))[0]

    def hidden(self, input_ids: Tensor, gates: Tensor) -> Tensor:
        """Return the last hidden states of one text under gates.

        Args:
            input_ids: Shape (tokens,).
            gates: Shape (rows, tokens, nodes), one row for each subgraph; differentiable.

        Returns:
            Of the last token, shape (rows, width).
        """
        return self.masked_lm(input_ids[None], _last(input_ids), gates[:, None])[:, 0]

    @torch.enable_grad()
    def graph(self, input_ids: Tensor) -> PositionGraph:
        """Find the positions of a text, shape (tokens,), by their gradient.

        The gradient of the output is exactly zero in a gate from which no path leads to it: in the last layer those of
        all tokens but the scored one, and in models with sliding windows those of tokens that no window reaches.
        """
        nodes = self.masked_lm.graph
        gates = torch.ones(1, len(input_ids), nodes.n_nodes, device=input_ids.device, requires_grad=True)
        hidden = self.hidden(input_ids, gates).float()
        direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden.device)
        (gradient,) = torch.autograd.grad((hidden * direction).sum(), gates)
        return PositionGraph(nodes, (gradient.flatten() != 0).cpu())


def _last(input_ids: Tensor) -> Tensor:
    return torch.tensor([len(input_ids) - 1], device=input_ids.device)
