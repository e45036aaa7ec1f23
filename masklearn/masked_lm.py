"""The frozen model under gates: the one place where a gate meets an activation, and the owner of every hook."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from masklearn.ablation import Ablation, RunningMean
from masklearn.adapter import Layout, text_config, with_first
from masklearn.check import require_finite_outputs, require_sound
from masklearn.errors import UserError
from masklearn.graph import NodeGraph

Change = Callable[[Tensor], Tensor]
"""From a node's output to what it shall be: (rows, tokens, width) to the same."""
_KEPT = "_masklearn_layout"
"""Where a model keeps its layout, and the precision in which that was checked."""


def _change_input(module: nn.Module, change: Change) -> RemovableHandle:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    return module.register_forward_pre_hook(hook)


def _change_output(module: nn.Module, change: Change) -> RemovableHandle:
    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        return with_first(output, change(output[0] if isinstance(output, tuple | list) else output))

    return module.register_forward_hook(hook)


@contextmanager
def _changed(
    layout: Layout,
    heads: Callable[[int], Change],
    mlp: Callable[[int], Change],
    attention: Callable[[int], Change] | None = None,
) -> Iterator[None]:
    """Put a change on the heads and on the MLP of every layer, while the context lasts.

    And one on the attention as a whole, where there is a norm behind it.
    """
    with ExitStack() as stack:
        for layer, site in enumerate(layout.sites):
            if attention and site.attention_norm:
                stack.callback(_change_output(site.attention_norm, attention(layer)).remove)
            stack.callback(_change_input(site.heads, heads(layer)).remove)
            stack.callback(_change_output(site.mlp, mlp(layer)).remove)
        yield


def _blend(output: Tensor, gate: Tensor, closed: Tensor | None) -> Tensor:
    """`gate` of a node's output and the rest of what it emits when closed.

    Shapes: output (rows, tokens, parts * width), or rows and tokens in one; gate (rows, parts); closed (parts, width).
    """
    if output.dim() > 2 and len(gate) not in (1, len(output)):
        raise UserError(
            f"{len(gate)} rows of gates do not fit a batch of {len(output)} inputs. Give one, or one for each"
        )
    parts = output.reshape(len(gate), -1, gate.shape[-1], output.shape[-1] // gate.shape[-1])
    gate = gate.to(output)[:, None, :, None]
    if closed is None:
        parts = parts * gate
    else:
        closed = closed.to(output)
        parts = closed + gate * (parts - closed)
    return parts.reshape(output.shape)


def _as_one(heads: Tensor) -> tuple[Tensor, Tensor]:
    """Gates of heads in front of a norm (rows, heads), and the gate of the attention behind it (rows, 1).

    The norm undoes a scale that all heads share, and that of the only open one, so what closes with them is the
    attention as a whole: it is open as far as any head is. Where all are closed, heads go in whole and nothing comes
    out; so there is something that a gradient can tell of opening one.
    """
    whole = 1 - (1 - heads).prod(-1, keepdim=True)
    return torch.where(whole == 0, 1 + heads, heads), whole


def _blend_behind(output: Tensor, whole: Tensor) -> Tensor:
    """What a norm behind the attention puts out, under the gate of the attention (rows, 1)."""
    closed = (whole == 0).to(whole)
    if not whole.requires_grad:
        return _blend(output, whole, None)
    return _blend(output, whole + closed, None) - _blend(output.detach(), closed, None)  # nothing, with a gradient


def _norm(vectors: Tensor) -> Tensor:
    """L1 norms (..., 1) of vectors (..., width)."""
    return vectors.float().abs().sum(-1, keepdim=True)


@contextmanager
def gated(
    lm: PreTrainedModel, gates: Tensor, ablation: Ablation = Ablation(), layout: Layout | None = None
) -> Iterator[PreTrainedModel]:
    """Run a model with its nodes gated, as long as the context lasts.

    Args:
        lm: The model.
        gates: 1 keeps a node, 0 ablates it. Shape (nodes,) for all rows alike, or (rows, nodes).
        ablation: What closed nodes emit.
        layout: The model's layout, if it is known already.

    Raises:
        UserError: If the gates are not one per node.
    """
    layout = layout or sound_layout(lm)
    graph = layout.graph
    if gates.dim() not in (1, 2) or gates.shape[-1] != graph.n_nodes:
        raise UserError(f"gates of shape {tuple(gates.shape)} do not fit a model of {graph.n_nodes} nodes")
    gates = gates if gates.dtype == torch.float64 else gates.float()
    picture = graph.by_layer(torch.atleast_2d(gates))  # (rows, layers, heads + 1)
    norms_undo = ablation.heads is None  # what closed heads emit is not nothing otherwise, and no scale is shared

    def heads(layer: int) -> Change:
        closed = None if ablation.heads is None else ablation.heads[layer]
        gate = picture[:, layer, :-1]
        if norms_undo and layout.sites[layer].attention_norm:
            gate = _as_one(gate)[0]
        return lambda output: _blend(output, gate, closed)

    def attention(layer: int) -> Change:
        whole = _as_one(picture[:, layer, :-1])[1]
        return lambda output: _blend_behind(output, whole)

    def mlp(layer: int) -> Change:
        closed = None if ablation.mlps is None else ablation.mlps[layer][None]
        return lambda output: _blend(output, picture[:, layer, -1:], closed)

    with _changed(layout, heads, mlp, attention if norms_undo else None):
        yield lm


def sound_layout(lm: PreTrainedModel) -> Layout:
    """The layout of a model, found and checked once: it is kept with the model, until that is not what it was.

    Raises:
        UserError: If the model cannot be gated.
    """
    layout, dtype = getattr(lm, _KEPT, (None, None))
    if layout is None or layout.lm is not lm or not layout.current or dtype != lm.dtype:
        layout = Layout.of(lm)
        require_sound(layout, lambda layout, gates: gated(layout.lm, gates, layout=layout))
        setattr(lm, _KEPT, (layout, lm.dtype))
    return layout


class MaskedLM(nn.Module):
    """A frozen model that is run whole or under one gate vector per row, and read at the scored positions only."""

    def __init__(self, lm: PreTrainedModel, ablation: Ablation = Ablation()) -> None:
        super().__init__()
        self.lm, self.ablation = lm, ablation
        self.layout = sound_layout(lm)

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

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of last hidden states."""
        return self.layout.head(hidden)

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

    def forward(self, input_ids: Tensor, scored: Tensor, gates: Tensor) -> Tensor:
        """Last hidden states at the scored positions of every input under each of its K gate vectors.

        Args:
            input_ids: Shape (inputs, tokens), padded on the right.
            scored: Boolean, of the same shape.
            gates: Shape (K, inputs, nodes).

        Returns:
            Shape (K, positions, width).
        """
        k = len(gates)
        with gated(self.lm, gates.flatten(0, 1), self.ablation, self.layout):
            hidden = self.layout.hidden(input_ids.repeat(k, 1))
        return hidden.unflatten(0, (k, -1))[:, scored]

    @torch.no_grad()
    def mean_ablation(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Ablation:
        """The mean ablation of this model on some text.

        Args:
            batches: Token ids and a boolean mask of the real tokens, each of shape (inputs, tokens).
        """
        means = {"heads": [RunningMean() for _ in self.layout.sites], "mlp": [RunningMean() for _ in self.layout.sites]}
        real = torch.empty(0)

        def record(kind: str) -> Callable[[int], Change]:
            def change(layer: int) -> Change:
                def look(output: Tensor) -> Tensor:
                    means[kind][layer].update(output.reshape(*real.shape, -1)[real])
                    return output

                return look

            return change

        with _changed(self.layout, record("heads"), record("mlp")):
            for input_ids, real in batches:  # noqa: B007  (the hooks read it)
                self.layout.hidden(input_ids)
        heads, mlps = (torch.stack([mean.compute() for mean in means[kind]]) for kind in ("heads", "mlp"))
        return Ablation("mean", heads.unflatten(-1, (self.graph.n_heads, -1)), mlps)

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

        def see(name: str) -> Change:
            def look(value: Tensor) -> Tensor:
                seen[name] = value.reshape(*input_ids.shape, -1).clone()  # Falcon adds to its MLP's output in place
                return value

            return look

        def weigh(projection: nn.Module) -> Change:
            def look(output: Tensor) -> Tensor:
                see("out")(output)
                heads, stream = self._head_norms(projection, seen["heads"]), _norm(seen["in"])
                mlp, rest = _norm(seen["mlp"]), _norm(seen["out"] - seen["mlp"])
                found.append(torch.cat([heads / (stream + heads.sum(-1, keepdim=True)), mlp / (rest + mlp)], -1))
                return output

            return look

        with _changed(self.layout, lambda _: see("heads"), lambda _: see("mlp")), ExitStack() as stack:
            for site in self.layout.sites:
                stack.callback(_change_input(site.layer, see("in")).remove)
                stack.callback(_change_output(site.layer, weigh(site.heads)).remove)
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
