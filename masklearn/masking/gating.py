"""Applies gates: what every head and MLP emits, open, half-open or closed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masklearn.ablation import Ablation, at_positions
from masklearn.errors import UserError
from masklearn.masking.gate_values import gate_values
from masklearn.masking.hooks import ActivationEdit, checked_calls, edited_activations
from masklearn.models import Layout, require_evaluation_mode, running_eagerly, unwrapped, verify_gates

_CACHED_LAYOUT = "_masklearn_layout"
"""Attribute of a model that holds its verified layout and the dtype in which it was verified."""


@contextmanager
def gated(
    lm: PreTrainedModel,
    gates: Any = None,
    ablation: Ablation = Ablation(),
    layout: Layout | None = None,
    *,
    without: Sequence[str] | str | None = None,
) -> Iterator[PreTrainedModel]:
    """Gate the nodes of a model while the context is open.

    Args:
        lm: The model. Compiled code, of it or of its layers, does not run while it is gated; adapters of PEFT stay in
            effect.
        gates: 1 keeps a node, 0 ablates it. A tensor, array or list of shape (nodes,) for all rows alike, or
            (rows, nodes), or (rows, tokens, nodes) for every token by itself, which needs whole texts and no cache; or
            the names of the nodes to keep, such as `["a0.h1", "m3"]`.
        ablation: What closed nodes emit. If that depends on the position, run the model on whole texts, padded on the
            right, without a cache.
        layout: The model's verified layout; found and verified here if it is not given, or out of date.
        without: Names of nodes to ablate; if no gates are given, all other nodes are kept.

    Raises:
        UserError: If there is not one gate for each node, if the values that closed nodes emit are not known, if the
            model is in training mode, or when it is called with a cache that these values do not allow.
    """
    require_evaluation_mode(unwrapped(lm))
    layout = layout if layout and layout.current else verified_layout(lm)
    gates = gate_values(layout.graph, gates, without)
    if ablation.name != "zero" and not ablation.known:
        raise UserError(
            f"{ablation.name} ablation takes its values from corrupted inputs, and none are given. "
            "Give MaskedLM(lm).resampled(input_ids), or run the model as a MaskedLM"
        )
    with ExitStack() as stack:
        stack.enter_context(running_eagerly())
        if ablation.positional:
            stack.enter_context(checked_calls(layout.lm, _require_whole_texts))
            stack.enter_context(checked_calls(layout.body, lambda given: _require_whole_texts(given, of_body=True)))
        stack.enter_context(GateEdits.of(layout, torch.atleast_2d(gates), ablation).applied())
        yield lm


def verified_layout(lm: PreTrainedModel) -> Layout:
    """Return the layout of a model, found and verified once and then cached on the model.

    It is found again if modules of the model were replaced, or if its dtype changed. A wrapped model has the layout of
    the model inside: see `models.unwrapped`.

    Raises:
        UserError: If the model cannot be gated.
    """
    lm = unwrapped(lm)
    # The cache is an attribute of the transformers model, so that the layout lives exactly as long as its model. A
    # dictionary beside it would have to hold the model weakly, but the layout refers to the model and keeps it alive.
    layout, dtype = getattr(lm, _CACHED_LAYOUT, (None, None))
    if layout is None or layout.lm is not lm or not layout.current or dtype != lm.dtype:
        with torch.inference_mode(False):  # its tensors have no version counters, which some forwards read
            layout = Layout.of(lm)
            # Verification applies gates to the model, and `gated` asks for a verified layout. The recursion ends here:
            # `gated` gets the unverified layout as an argument and does not call this function again.
            verify_gates(layout, lambda gates: gated(lm, gates, layout=layout))
        setattr(lm, _CACHED_LAYOUT, (layout, lm.dtype))
    return layout


@dataclass(frozen=True)
class GateEdits:
    """The edits that apply gates and an ablation to the activations of every layer."""

    layout: Layout
    heads: tuple[ActivationEdit, ...]
    mlps: tuple[ActivationEdit, ...]
    attentions: Mapping[int, ActivationEdit]
    """Of norms after the attention, by layer, where these undo the gates' scale: only if closed heads emit nothing."""

    @classmethod
    def of(cls, layout: Layout, gates: Tensor, ablation: Ablation) -> "GateEdits":
        """The edits for gates of shape (rows or 1, nodes), or (rows or 1, tokens, nodes)."""
        gates = gates if gates.dim() > 2 else gates[:, None]
        has_norm = [site.attention_norm is not None and not ablation.known for site in layout.sites]
        # of all layers at once: on a GPU every operation on gates costs a launch, and another in the backward pass
        of_heads, of_mlps = layout.graph.by_layer(gates).split([layout.graph.n_heads, 1], -1)
        before_norm, of_attention = attention_gate(of_heads) if any(has_norm) else (of_heads, of_mlps)
        of_heads, before_norm, of_mlps = (
            part.to(layout.lm.dtype).unbind(-2) for part in (of_heads, before_norm, of_mlps)
        )
        heads, mlps, attentions = list[ActivationEdit](), list[ActivationEdit](), dict[int, ActivationEdit]()
        for layer, attention in enumerate(of_attention.unbind(-2)):
            closed = (ablation.heads[layer], ablation.mlps[layer]) if ablation.known else (None, None)
            if has_norm[layer]:
                attentions[layer] = partial(_apply_attention_gate, gate=attention)
            gate = (before_norm if has_norm[layer] else of_heads)[layer]
            up_to = ablation.trained_up_to
            heads.append(partial(_apply_gates, gate=gate, closed=closed[0], trained_up_to=up_to))
            mlps.append(partial(_apply_gates, gate=of_mlps[layer], closed=closed[1], trained_up_to=up_to))
        return cls(layout, tuple(heads), tuple(mlps), attentions)

    def applied(self) -> AbstractContextManager[None]:
        """Edit the activations while the context is open; entering it computes nothing."""
        attention = self.attentions.__getitem__ if self.attentions else None
        return edited_activations(self.layout, self.heads.__getitem__, self.mlps.__getitem__, attention)


def attention_gate(heads: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the gates of heads into gates that work in front of a norm after the attention.

    The norm undoes any scale that all heads share, so the gate of a single open head would have no effect. Therefore
    the attention as a whole gets a gate behind the norm, 1 - prod(1 - gate): it is closed if all heads are. In that
    case the heads themselves pass unscaled, and the attention's gate of 0 leaves nothing of them. So every head still
    has a gradient for being opened.

    Args:
        heads: Gates of one layer's heads, shape (..., heads).

    Returns:
        Gates of the heads in front of the norm, shape (..., heads), and of the attention behind it, shape (..., 1).
    """
    attention = 1 - product(1 - heads)
    return torch.where(attention == 0, 1 + heads, heads), attention


def product(factors: Tensor) -> Tensor:
    """The product over the last dimension, which stays; the backward of `Tensor.prod` waits for the device."""
    while (n := factors.shape[-1]) > 1:
        first, second, rest = factors.split([n // 2, n // 2, n % 2], -1)
        factors = torch.cat([first * second, rest], -1)
    return factors


def _apply_gates(output: Tensor, gate: Tensor, closed: Tensor | None, trained_up_to: float = 0.0) -> Tensor:
    """Return `gate * output + (1 - gate) * closed` for every node.

    Args:
        output: The nodes' outputs, concatenated: shape (rows, tokens, nodes * width).
        gate: Shape (rows or 1, tokens or 1, nodes).
        closed: What closed nodes emit, shape (inputs or 1, positions, nodes, width); None for zeros. Rows are the
            inputs in order, once or several times over.
        trained_up_to: If `closed` requires a gradient, it gets one from gates up to this one, see `Ablation`.
    """
    if len(gate) not in (1, len(output)):
        raise UserError(
            f"{len(gate)} rows of gates do not fit a batch of {len(output)} inputs. Give one, or one for each"
        )
    if gate.shape[1] not in (1, output.shape[1]):
        raise UserError(
            f"gates of {gate.shape[1]} tokens do not fit texts of {output.shape[1]}. Give whole texts, without a cache"
        )
    nodes = output.unflatten(-1, (gate.shape[-1], -1))
    gate = gate.to(output)[..., None]
    if closed is None:
        return (nodes * gate).flatten(-2)
    closed = at_positions(closed, output.shape[1]).to(output)
    n_inputs = len(closed)
    if n_inputs > 1:
        if len(output) % n_inputs:
            raise UserError(f"a batch of {len(output)} inputs does not fit the {n_inputs} inputs of the ablation")
        nodes = nodes.unflatten(0, (-1, n_inputs))
        gate = gate.unflatten(0, (-1, n_inputs)) if len(gate) > 1 else gate
    closed_share = 1 - gate
    if not closed.requires_grad:
        return torch.addcmul(nodes * gate, closed_share, closed).reshape(output.shape)
    learning_share = closed_share * (gate <= trained_up_to)
    emitted = learning_share * closed + (closed_share - learning_share) * closed.detach()
    return (nodes * gate + emitted).reshape(output.shape)


def _apply_attention_gate(output: Tensor, gate: Tensor) -> Tensor:
    """Scale the output of a norm after the attention by the attention's gate, shape (rows, tokens or 1, 1)."""
    if not gate.requires_grad:
        return _apply_gates(output, gate, None)
    is_closed = (gate == 0).to(gate)
    # where the gate is 0 the difference is zero, but its gradient is that of the output
    return _apply_gates(output, gate + is_closed, None) - _apply_gates(output.detach(), is_closed, None)


def _require_whole_texts(arguments: dict[str, Any], of_body: bool = False) -> None:
    """Refuse a call that begins behind the first token: what closed nodes emit depends on the position in the text.

    Whether to write a cache is asked of the whole model only; its body may be told so by default.
    """
    past: Any = arguments.get("past_key_values")
    is_cached = past is not None and (not hasattr(past, "get_seq_length") or past.get_seq_length() > 0)
    if is_cached or (arguments.get("use_cache") and not of_body) or arguments.get("cache_params") is not None:
        raise UserError(
            "this ablation depends on the position in the text, which a cache leaves out. Run whole texts, for example "
            "lm.generate(..., use_cache=False)"
        )
    padding = arguments.get("attention_mask")
    if isinstance(padding, Tensor) and padding.dim() == 2 and not padding[:, 0].all():
        raise UserError(
            "this ablation depends on the position in the text, which padding on the left shifts. Pad on the right, or "
            "run the texts one by one"
        )
