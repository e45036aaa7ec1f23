"""The frozen model, run full or under gates and read at the scored positions only."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from masklearn.ablation import Ablation, AblationName
from masklearn.errors import UserError
from masklearn.graph import NodeGraph
from masklearn.masking.activation_stats import ActivationStats, ablation_from_means
from masklearn.masking.gating import GateEdits, gated, verified_layout
from masklearn.masking.hooks import ActivationEdit, edited_activations
from masklearn.masking.recomputing import layers_recomputed
from masklearn.masking.row_parts import RowLimit, Rows, is_out_of_memory
from masklearn.masking.skipping import closed_mlps_skipped
from masklearn.models import (
    Layout,
    Prefix,
    can_share_prefixes,
    compute_devices,
    input_device,
    is_offloaded,
    is_placed,
    prefix_of,
    recording,
    require_finite_outputs,
    starting_at,
    stopped_before,
)
from masklearn.objective import FusedKL


class Unembedding:
    """A model's output head. It knows the size of its vocabulary once it is used, and a fused KL if there is one."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.vocabulary = layout, 0
        self.fused_kl: FusedKL | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits of last hidden states: (..., width) to (..., vocabulary)."""
        logits = self.layout.unembed(hidden)
        self.vocabulary = logits.shape[-1]
        return logits


class MaskedLM(nn.Module):
    """A frozen model that runs full, or under one gate vector for each row, and is read at the scored positions only.

    Args:
        lm: A causal language model.
        ablation: What closed nodes emit.

    Raises:
        UserError: If the model cannot be gated.
    """

    def __init__(self, lm: PreTrainedModel, ablation: Ablation = Ablation()) -> None:
        super().__init__()
        self.layout = verified_layout(lm)
        self.lm, self.ablation = self.layout.lm, ablation
        self.row_limit = RowLimit()
        """What a forward runs at once; lowered when memory runs out."""
        self.bytes_per_token: float | None = None
        """Memory that a forward without gradients takes for each token, once `scored_together` has measured it."""

    @property
    def graph(self) -> NodeGraph:
        """The nodes of the model."""
        return self.layout.graph

    @property
    def device(self) -> torch.device:
        """The device of the model's inputs, and of what it puts out."""
        return input_device(self.lm)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices on which layers run, that of the inputs first."""
        return compute_devices(self.lm)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Leave a model where it is that a device map has placed, whatever moves the modules around it."""
        return self if is_placed(self.lm) else super()._apply(fn, recurse)

    def move(self, device: torch.device) -> None:
        """Move the model to a device and run it there once.

        Raises:
            UserError: If there is no such device, or if the device does not support the model's dtype.
        """
        self.layout.move(device)

    @cached_property
    def unembed(self) -> "Unembedding":
        """The output head: last hidden states (..., width) to logits (..., vocabulary)."""
        return Unembedding(self.layout)

    @torch.no_grad()
    def full(self, input_ids: Tensor, scored: Tensor, check: bool = True) -> Tensor:
        """Return the full model's last hidden states at the scored positions in row-major order, (positions, width).

        Args:
            input_ids: Shape (inputs, tokens), padded on the right.
            scored: Which next-token distributions count: boolean, of the same shape; or their indices in the flattened
                inputs, shape (positions,), for which a GPU need not wait.
            check: Whether to look at the values, for which a GPU is waited for.

        Raises:
            UserError: If some of them are NaN or infinite.
        """
        hidden = self.row_limit.run(self._run_full, Rows(input_ids, scored))[0]
        if check:
            require_finite_outputs(self.lm, hidden)
        return hidden

    def forward(
        self,
        input_ids: Tensor,
        scored: Tensor,
        gates: Tensor,
        corrupted: Tensor | None = None,
        prefix: Prefix | None = None,
        first_layer: int = 0,
    ) -> Tensor:
        """Return the last hidden states at the scored positions of every input under each of its K gate vectors.

        Args:
            input_ids: Shape (inputs, tokens), padded on the right.
            scored: As in `full`.
            gates: Shape (K, inputs, nodes), or (K, inputs, tokens, nodes) for every token by itself.
            corrupted: The corrupted inputs, of the same shape as the inputs. Resample ablation requires them.
            prefix: A prefix of the inputs under gates that agree with all of these in the layers before `first_layer`.
            first_layer: The first layer to run; the prefix must hold its stream.

        Returns:
            Shape (K, positions, width).

        Raises:
            UserError: If the ablation is resample and there are no corrupted inputs.
        """
        return self.row_limit.run(self._run, Rows(input_ids, scored, gates, corrupted, prefix, first_layer))

    def _run(self, rows: Rows) -> Tensor:
        """The last hidden states of some rows at the scored positions, shape (K, positions, width)."""
        assert rows.gates is not None
        k, gates, ablation = len(rows.gates), rows.gates.flatten(0, 1), self.ablation_on(rows.corrupted)
        with ExitStack() as stack:
            stack.enter_context(gated(self.lm, gates, ablation, self.layout))
            if not torch.is_grad_enabled():
                anywhere = gates if gates.dim() == 2 else (gates != 0).any(1)  # at some token
                stack.enter_context(closed_mlps_skipped(self.layout, self.graph.by_layer(anywhere)[..., -1]))
            elif is_offloaded(self.lm):
                stack.enter_context(layers_recomputed(GateEdits.of(self.layout, gates, ablation)))
            if rows.prefix and rows.first_layer:
                stack.enter_context(starting_at(self.layout, rows.prefix, rows.first_layer, k))
            hidden = self.layout.hidden(rows.input_ids.repeat(k, 1))
        return at_scored(hidden.unflatten(0, (k, -1)), rows.scored)

    def _run_full(self, rows: Rows) -> Tensor:
        """As `_run`, of the full model."""
        return at_scored(self.layout.hidden(rows.input_ids)[None], rows.scored)

    @torch.no_grad()
    def stream(
        self, input_ids: Tensor, gates: Tensor, layer: int, prefix: Prefix | None = None, first_layer: int = 0
    ) -> Tensor:
        """Run every input under one gate vector, up to a layer, see `forward`.

        Returns:
            The residual stream that enters this layer, shape (inputs, tokens, width).
        """

        def run(rows: Rows) -> Tensor:
            with stopped_before(self.layout, layer) as found:
                self._run(rows)
            return found[0][None]

        rows = Rows(input_ids, torch.ones_like(input_ids, dtype=torch.bool), gates[None], None, prefix, first_layer)
        return self.row_limit.run(run, rows)[0]

    @property
    def shares_layers(self) -> bool:
        """Whether a forward can stop after a layer, and another one go on from there, for every input by itself."""
        return self.ablation.name != "resample" and not is_offloaded(self.lm) and self._shares_prefixes

    @torch.no_grad()
    def prefix(self, input_ids: Tensor, gates: Tensor, corrupted: Tensor | None = None) -> Prefix | None:
        """Run every input under one gate vector and keep the residual streams, for other forwards to start from.

        Args:
            input_ids: Shape (inputs, tokens), padded on the right.
            gates: Shape (inputs, nodes).
            corrupted: As in `forward`.

        Returns:
            None if a forward of this model cannot start in a later layer, or if memory is short.
        """
        if not self._shares_prefixes:
            return None
        try:
            with gated(self.lm, gates, self.ablation_on(corrupted), self.layout), recording(self.layout) as outputs:
                self.layout.hidden(input_ids)
            return prefix_of(self.layout, outputs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._shares_prefixes = False
            return None

    @cached_property
    def _shares_prefixes(self) -> bool:
        return can_share_prefixes(self.layout)

    def ablation_on(self, corrupted: Tensor | None) -> Ablation:
        """The ablation with the values that closed nodes emit on a batch."""
        if self.ablation.name != "resample":
            return self.ablation
        if corrupted is None:
            raise UserError("resample ablation needs corrupted inputs, and these texts have none")
        return self.resampled(corrupted)

    @torch.no_grad()
    def resampled(self, input_ids: Tensor) -> Ablation:
        """Return the ablation in which closed nodes emit their outputs on these inputs, shape (inputs, tokens)."""
        outputs: dict[str, dict[int, Tensor]] = {"heads": {}, "mlps": {}}

        def record(kind: str, n_nodes: int) -> Callable[[int], ActivationEdit]:
            def of_layer(layer: int) -> ActivationEdit:
                def run(output: Tensor) -> Tensor:
                    # a copy: Falcon adds to its MLP's output in place
                    outputs[kind][layer] = output.clone().unflatten(-1, (n_nodes, -1))
                    return output

                return run

            return of_layer

        with edited_activations(self.layout, record("heads", self.graph.n_heads), record("mlps", 1)):
            self.layout.hidden(input_ids)
        heads, mlps = (tuple(by_layer[layer] for layer in sorted(by_layer)) for by_layer in outputs.values())
        return Ablation("resample", heads, mlps)

    @torch.no_grad()
    def activation_stats(
        self, batches: Iterable[tuple[Tensor, Tensor]], positional: bool = False
    ) -> tuple[list[ActivationStats], list[ActivationStats]]:
        """Collect activation statistics of the full model.

        Args:
            batches: Token ids, and a boolean mask that is False at padding, each of shape (inputs, tokens).
            positional: Whether to keep a mean for every position as well.

        Returns:
            Statistics of the heads and of the MLP, one of each for every layer.
        """
        heads = [ActivationStats(self.graph.n_heads, positional) for _ in self.layout.sites]
        mlps = [ActivationStats(1, positional) for _ in self.layout.sites]
        real = torch.empty(0)

        def update(stats: list[ActivationStats]) -> Callable[[int], ActivationEdit]:
            def of_layer(layer: int) -> ActivationEdit:
                def run(output: Tensor) -> Tensor:
                    stats[layer].update(output, real)
                    return output

                return run

            return of_layer

        with edited_activations(self.layout, update(heads), update(mlps)):
            for input_ids, real in batches:  # noqa: B007  (the hooks read `real`)
                self.layout.hidden(input_ids)
        return heads, mlps

    def mean_ablation(self, batches: Iterable[tuple[Tensor, Tensor]], positional: bool = False) -> Ablation:
        """Return the mean ablation of this model on some batches: see `activation_stats` for the arguments.

        Raises:
            UserError: If a mean is not finite; the message names the nodes.
        """
        name: AblationName = "mean-positional" if positional else "mean"
        return ablation_from_means(name, *self.activation_stats(batches, positional))


def at_scored(hidden: Tensor, scored: Tensor) -> Tensor:
    """Hidden states (K, inputs, tokens, width) at scored positions (boolean, or indices): (K, positions, width).

    The result is on the device of `scored`, that of the inputs, wherever the model's last layer is.
    """
    on_device = scored.to(hidden.device)
    is_mask = scored.dtype == torch.bool
    found = hidden[:, on_device] if is_mask else hidden.flatten(1, 2).index_select(1, on_device)
    return found.to(scored.device)
