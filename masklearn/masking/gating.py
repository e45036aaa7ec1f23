"""Gates on the nodes of a model: what goes through, and what a closed node emits in its place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masklearn.ablation import Ablation, at_positions
from masklearn.errors import UserError
from masklearn.masking.hooks import ActivationEdit, edited_activations
from masklearn.models import Layout
from masklearn.models.verification import require_sound

_KEPT = "_masklearn_layout"
"""Where a model keeps its layout, and the precision in which that was checked."""


def _blend(output: Tensor, gate: Tensor, closed: Tensor | None) -> Tensor:
    """`gate` of a node's output and the rest of what it emits when closed.

    Where that is to be learned, it learns from gates that are closed and from no others: what would make a half-open
    node best is of no use once it is closed.

    Shapes: output (rows, tokens, parts * width); gate (rows or 1, parts); closed (inputs or 1, positions, parts,
    width), where rows are the inputs in order, once or several times over.
    """
    if len(gate) not in (1, len(output)):
        raise UserError(
            f"{len(gate)} rows of gates do not fit a batch of {len(output)} inputs. Give one, or one for each"
        )
    parts = output.unflatten(-1, (gate.shape[-1], -1))
    gate = gate.to(output)[:, None, :, None]
    if closed is None:
        return (parts * gate).flatten(-2)
    closed = at_positions(closed, output.shape[1]).to(output)
    if len(closed) > 1:  # as many inputs, each in the same row of every run of rows
        if len(output) % len(closed):
            raise UserError(f"a batch of {len(output)} inputs does not fit the {len(closed)} that closed nodes take")
        parts = parts.unflatten(0, (-1, len(closed)))
        gate = gate.unflatten(0, (-1, len(closed))) if len(gate) > 1 else gate
    rest = 1 - gate
    if not closed.requires_grad:
        return torch.addcmul(parts * gate, rest, closed).reshape(output.shape)
    shut = (gate == 0).to(gate)
    return (parts * gate + (shut * closed + (rest - shut) * closed.detach())).reshape(output.shape)


def attention_gate(heads: Tensor) -> tuple[Tensor, Tensor]:
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


@contextmanager
def gated(
    lm: PreTrainedModel, gates: Tensor, ablation: Ablation = Ablation(), layout: Layout | None = None
) -> Iterator[PreTrainedModel]:
    """Run a model with its nodes gated, as long as the context lasts.

    Args:
        lm: The model.
        gates: 1 keeps a node, 0 ablates it. Shape (nodes,) for all rows alike, or (rows, nodes).
        ablation: What closed nodes emit. Where that depends on the position, the model is to be given texts from their
            beginning, padded on the right and without a cache.
        layout: The model's layout, if it is known already.

    Raises:
        UserError: If the gates are not one per node, or if it is not known what closed nodes emit.
    """
    layout = layout or verified_layout(lm)
    graph = layout.graph
    if gates.dim() not in (1, 2) or gates.shape[-1] != graph.n_nodes:
        raise UserError(f"gates of shape {tuple(gates.shape)} do not fit a model of {graph.n_nodes} nodes")
    if ablation.name != "zero" and not ablation.known:
        raise UserError(
            f"{ablation.name} ablation takes its values from corrupted inputs, and none are given. "
            "Give MaskedLM(lm).resampled(input_ids), or run the model as a MaskedLM"
        )
    gates = gates if gates.dtype == torch.float64 else gates.float()
    picture = graph.by_layer(torch.atleast_2d(gates))  # (rows, layers, heads + 1)
    norms_undo = not ablation.known  # what closed heads emit is not nothing otherwise, and no scale is shared

    def heads(layer: int) -> ActivationEdit:
        closed = ablation.heads[layer] if ablation.known else None
        gate = picture[:, layer, :-1]
        if norms_undo and layout.sites[layer].attention_norm:
            gate = attention_gate(gate)[0]
        return lambda output: _blend(output, gate, closed)

    def attention(layer: int) -> ActivationEdit:
        whole = attention_gate(picture[:, layer, :-1])[1]
        return lambda output: _blend_behind(output, whole)

    def mlp(layer: int) -> ActivationEdit:
        closed = ablation.mlps[layer] if ablation.known else None
        return lambda output: _blend(output, picture[:, layer, -1:], closed)

    with edited_activations(layout, heads, mlp, attention if norms_undo else None):
        yield lm


def verified_layout(lm: PreTrainedModel) -> Layout:
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
