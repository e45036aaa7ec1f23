"""A frozen model that runs on one text under a gate for every node at every token."""

import torch
from torch import Tensor

from masklearn.errors import UserError
from masklearn.masking import MaskedLM
from masklearn.models import Layout
from masklearn.positions.graph import PositionGraph


class PositionLM:
    """A frozen model under one gate for every position of a text. Closed positions emit zero.

    Args:
        masked_lm: The model under gates, with zero ablation.

    Raises:
        UserError: If it has another ablation.
    """

    def __init__(self, masked_lm: MaskedLM) -> None:
        if masked_lm.ablation.name != "zero":
            name = masked_lm.ablation.name
            raise UserError(f"closed positions emit zero, and not what they do under {name} ablation: MaskedLM(lm)")
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
            UserError: If some of it is NaN or infinite, or if these are not the tokens of one text.
        """
        self.layout.require_text(input_ids)
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
        """Find the positions of a text, shape (tokens,): of the last layer those of the scored token, and all others.

        With attention in windows, those that no window reaches are no positions. They are found by their gradient,
        which is exactly zero in a gate from which no path leads to the output. A token whose stream is read in one
        layer is read in those before.

        Raises:
            UserError: If these are not the tokens of one text.
        """
        self.layout.require_text(input_ids)
        nodes, n_tokens = self.masked_lm.graph, len(input_ids)
        is_read = torch.ones(n_tokens, nodes.n_layers, dtype=torch.bool)
        is_read[:-1, -1] = False
        if n_tokens > self.layout.shortest_window:
            is_read = self._read_by_gradient(input_ids)
        return PositionGraph(nodes, is_read[..., None].expand(-1, -1, nodes.n_heads + 1).flatten())

    def _read_by_gradient(self, input_ids: Tensor) -> Tensor:
        """Whether a path leads from the stream of a token in a layer to the output: boolean, shape (tokens, layers)."""
        nodes = self.masked_lm.graph
        gates = torch.ones(1, len(input_ids), nodes.n_nodes, device=input_ids.device, requires_grad=True)
        hidden = self.hidden(input_ids, gates).float()
        direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden.device)
        (gradient,) = torch.autograd.grad((hidden * direction).sum(), gates)
        has_effect = nodes.by_layer(gradient[0]).ne(0).any(-1).cpu()
        has_effect[-1] = True
        return has_effect.flip(1).cummax(1).values.flip(1)


def _last(input_ids: Tensor) -> Tensor:
    return torch.tensor([len(input_ids) - 1], device=input_ids.device)
