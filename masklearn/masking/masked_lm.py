"""A frozen model that is read whole or under gates, at the positions that count."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from masklearn.ablation import Ablation, AblationName
from masklearn.errors import UserError
from masklearn.graph import NodeGraph
from masklearn.masking.activation_stats import ActivationStats, means_of
from masklearn.masking.gating import gated, verified_layout
from masklearn.masking.hooks import ActivationEdit, change_input, change_output, edited_activations
from masklearn.models import text_config
from masklearn.models.verification import require_finite_outputs


def _norm(vectors: Tensor) -> Tensor:
    """L1 norms (..., 1) of vectors (..., width)."""
    return vectors.float().abs().sum(-1, keepdim=True)


class MaskedLM(nn.Module):
    """A frozen model that is run whole or under one gate vector per row, and read at the scored positions only."""

    def __init__(self, lm: PreTrainedModel, ablation: Ablation = Ablation()) -> None:
        super().__init__()
        self.lm, self.ablation = lm, ablation
        self.layout = verified_layout(lm)

    @property
    def graph(self) -> NodeGraph:
        return self.layout.graph

    @property
    def context(self) -> int | None:
        """Tokens that the model can read at most, where its config tells."""
        return getattr(text_config(self.lm), "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        return self.lm.device

    def move(self, device: torch.device) -> None:
        """Move the model, and see that it can be read there.

        Raises:
            UserError: If there is no such device, or if it lacks the precision of the model.
        """
        self.layout.move(device)

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of last hidden states."""
        return self.layout.unembed(hidden)

    @torch.no_grad()
    def full(self, input_ids: Tensor, scored: Tensor) -> Tensor:
        """The full model's last hidden states at the scored positions.

        Args:
            input_ids: Shape (inputs, tokens), padded on the right.
            scored: Which next-token distributions count, boolean, of the same shape.

        Returns:
            Shape (positions, width), the positions in row-major order.
        """
        hidden = self.layout.hidden(input_ids)[scored]
        require_finite_outputs(self.lm, hidden)
        return hidden

    def forward(self, input_ids: Tensor, scored: Tensor, gates: Tensor, corrupted: Tensor | None = None) -> Tensor:
        """Last hidden states at the scored positions of every input under each of its K gate vectors.

        Args:
            input_ids: Shape (inputs, tokens), padded on the right.
            scored: Boolean, of the same shape.
            gates: Shape (K, inputs, nodes).
            corrupted: The corrupted inputs, of the same shape as the inputs; needed where closed nodes are resampled.

        Returns:
            Shape (K, positions, width).

        Raises:
            UserError: If nodes are to be resampled and there is nothing to do it from.
        """
        k, ablation = len(gates), self.ablation
        if ablation.name == "resample":
            if corrupted is None:
                raise UserError("resample ablation needs corrupted inputs, and these texts have none")
            ablation = self.resampled(corrupted)
        with gated(self.lm, gates.flatten(0, 1), ablation, self.layout):
            hidden = self.layout.hidden(input_ids.repeat(k, 1))
        return hidden.unflatten(0, (k, -1))[:, scored]

    @torch.no_grad()
    def resampled(self, input_ids: Tensor) -> Ablation:
        """The ablation that lets every closed node emit what it does on these inputs, shape (inputs, tokens)."""
        found: dict[str, dict[int, Tensor]] = {"heads": {}, "mlps": {}}

        def keep(kind: str, parts: int) -> Callable[[int], ActivationEdit]:
            def change(layer: int) -> ActivationEdit:
                def look(output: Tensor) -> Tensor:
                    # a copy: Falcon adds to its MLP's output in place
                    found[kind][layer] = output.clone().unflatten(-1, (parts, -1))
                    return output

                return look

            return change

        with edited_activations(self.layout, keep("heads", self.graph.n_heads), keep("mlps", 1)):
            self.layout.hidden(input_ids)
        heads, mlps = (tuple(values[layer] for layer in sorted(values)) for values in found.values())
        return Ablation("resample", heads, mlps)

    @torch.no_grad()
    def observed(
        self, batches: Iterable[tuple[Tensor, Tensor]], positional: bool = False
    ) -> tuple[list[ActivationStats], list[ActivationStats]]:
        """What the heads and the MLP of every layer put out on some text: their means, and how far they stray.

        Args:
            batches: Token ids and a boolean mask of the real tokens, each of shape (inputs, tokens).
            positional: Whether the means of every position are wanted.
        """
        heads = [ActivationStats(self.graph.n_heads, positional) for _ in self.layout.sites]
        mlps = [ActivationStats(1, positional) for _ in self.layout.sites]
        real = torch.empty(0)

        def record(seen: list[ActivationStats]) -> Callable[[int], ActivationEdit]:
            def change(layer: int) -> ActivationEdit:
                def look(output: Tensor) -> Tensor:
                    seen[layer].update(output, real)
                    return output

                return look

            return change

        with edited_activations(self.layout, record(heads), record(mlps)):
            for input_ids, real in batches:  # noqa: B007  (the hooks read it)
                self.layout.hidden(input_ids)
        return heads, mlps

    def mean_ablation(self, batches: Iterable[tuple[Tensor, Tensor]], positional: bool = False) -> Ablation:
        """The mean ablation of this model on some text: see `observed`."""
        name: AblationName = "mean-positional" if positional else "mean"
        return means_of(name, *self.observed(batches, positional))

    @torch.no_grad()
    def contributions(self, input_ids: Tensor) -> Tensor:
        """How large a part every node has in what it adds to, at every token of the full model.

        The L1 norm of a node's contribution to the residual stream, over the sum of the norms of all that meet there:
        for a head, the stream and the heads of its layer; for an MLP, the stream and the MLP. The importance of an edge
        in s-Trace (Kervadec et al. 2026, arXiv 2605.27033), summed over where a head looks. A norm that a family puts
        behind the attention is left out.

        Args:
            input_ids: Shape (inputs, tokens).

        Returns:
            Shape (inputs, tokens, nodes), in [0, 1].
        """
        seen: dict[str, Tensor] = {}
        found: list[Tensor] = []

        def see(name: str) -> ActivationEdit:
            def look(value: Tensor) -> Tensor:
                seen[name] = value.reshape(*input_ids.shape, -1).clone()  # Falcon adds to its MLP's output in place
                return value

            return look

        def weigh(projection: nn.Module) -> ActivationEdit:
            def look(output: Tensor) -> Tensor:
                see("out")(output)
                heads, stream = self._head_norms(projection, seen["heads"]), _norm(seen["in"])
                mlp, rest = _norm(seen["mlp"]), _norm(seen["out"] - seen["mlp"])
                found.append(torch.cat([heads / (stream + heads.sum(-1, keepdim=True)), mlp / (rest + mlp)], -1))
                return output

            return look

        with edited_activations(self.layout, lambda _: see("heads"), lambda _: see("mlp")), ExitStack() as stack:
            for site in self.layout.sites:
                stack.callback(change_input(site.layer, see("in")).remove)
                stack.callback(change_output(site.layer, weigh(site.heads)).remove)
            self.layout.hidden(input_ids)
        return torch.cat(found, -1).nan_to_num()  # where nothing at all is added

    def _head_norms(self, projection: nn.Module, outputs: Tensor) -> Tensor:
        """L1 norms of what each head adds to the residual stream, its projection's bias left out: (..., heads)."""
        at_rest = projection.forward(torch.zeros_like(outputs[..., :1, :]))
        norms = []
        for head, width in enumerate([outputs.shape[-1] // self.graph.n_heads] * self.graph.n_heads):
            alone, part = torch.zeros_like(outputs), slice(head * width, (head + 1) * width)
            alone[..., part] = outputs[..., part]
            norms.append(_norm(projection.forward(alone) - at_rest))
        return torch.cat(norms, -1)
