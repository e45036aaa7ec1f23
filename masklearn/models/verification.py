"""Verify gates on every model that is loaded, by comparing them with modules removed.

Gates act through hooks, at the sites that `discovery` found. Here the forwards of whole attentions and MLPs are
overridden instead, and both ways must give the same output, in every layer.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masklearn.errors import UserError
from masklearn.models.diagnostics import (
    differs,
    dtype_name,
    dummy_input_ids,
    rounding_tolerance,
    unsupported_model,
)
from masklearn.models.forward_override import (
    Forward,
    first_argument,
    first_output,
    override_forward,
    with_first_output,
)
from masklearn.models.layout import Layout
from masklearn.models.placement import input_device

ApplyGates = Callable[[Tensor], AbstractContextManager[Any]]
"""Gates the model with gates of shape (rows, nodes) while the context is open."""
MIN_GATE_EFFECT = 0.002
"""A half-open gate must remove at least this share of its node's effect, and leave at least this share."""


class Variant(IntEnum):
    """What one row of the verifying batch does to every layer."""

    ALL_OPEN = 0
    HEADS_CLOSED = 1
    ATTENTION_REMOVED = 2
    """By an overridden forward that leaves the projection's bias; the gates are open."""
    MLP_CLOSED = 3
    MLP_REMOVED = 4
    """By an overridden forward that leaves nothing; the gates are open."""
    ONE_HEAD = 5
    """All heads but the last are closed."""
    HALF_HEAD = 6
    """The last head is half open, all others are closed."""
    HALF_MLP = 7


@torch.no_grad()
def verify_gates(layout: Layout, apply_gates: ApplyGates) -> None:
    """Refuse a model on which gates do not do what they should.

    Requirements: with all gates open, the logits are the full model's. With all heads of a layer closed, its attention
    puts out its bias. Closing an MLP equals removing it. A half-open gate has an effect between none and all.

    This takes two forwards of a few tokens, whatever the depth. Every layer gets the full model's residual stream in
    all rows of one batch, and each row is a `Variant` of the layer.

    Args:
        layout: The model's layout.
        apply_gates: Applies gates to this model; passed in because `masklearn.masking` is a higher folder.

    Raises:
        UserError: What was found, and what was expected.
    """
    lm, ids = layout.lm, dummy_input_ids(layout.lm, len(Variant))
    full_logits = lm(input_ids=ids, use_cache=False).logits
    require_finite_outputs(lm, full_logits)
    layer_outputs: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(apply_gates(_gates(layout)))
        for site in layout.sites:
            stack.enter_context(override_forward(site.layer, lambda forward: _on_first_row(forward, layer_outputs)))
            stack.enter_context(
                override_forward(site.attention_branch, _removed(Variant.ATTENTION_REMOVED, site.projection_bias))
            )
            stack.enter_context(override_forward(site.mlp_branch, _removed(Variant.MLP_REMOVED, None)))
        logits = layout.unembed(layout.hidden(ids).to(ids.device))  # the last layer may be on another device
    for index, output in enumerate(layer_outputs):
        _require_closed_gates_remove(lm, index, output)
        _require_half_gates_act(lm, index, output)
    found, expected = logits[Variant.ALL_OPEN], full_logits[Variant.ALL_OPEN]
    if differs(lm, found, expected, layout.graph.n_layers):
        gap = (found - expected).abs().max().item()
        raise unsupported_model(lm, f"logits that are {gap:.2g} off with all gates open", "those of the model")


def require_finite_outputs(lm: PreTrainedModel, outputs: Tensor) -> None:
    """Refuse outputs that are NaN or infinite.

    Raises:
        UserError: Which dtype to use instead.
    """
    if not outputs.isfinite().all():
        finer = {"float16": "float32 or bfloat16", "bfloat16": "float32"}.get(dtype_name(lm))
        advice = f"Choose --model.dtype {finer}" if finer else "Check its weights"
        raise UserError(
            f"model.lm: {type(lm).__name__} gives numbers that are not finite in {dtype_name(lm)}. {advice}"
        )


def _require_closed_gates_remove(lm: PreTrainedModel, index: int, outputs: Tensor) -> None:
    """Refuse a layer, with outputs (rows, tokens, width), in which closing gates does not equal removing modules."""
    for closed, removed, name, expected in (
        (Variant.HEADS_CLOSED, Variant.ATTENTION_REMOVED, "attention", "attention at its bias"),
        (Variant.MLP_CLOSED, Variant.MLP_REMOVED, "MLP", "MLP removed"),
    ):
        if differs(lm, outputs[closed], outputs[removed]):
            gap = _norm(outputs[closed] - outputs[removed]) / _norm(outputs[removed])
            found = f"layer {index} {gap:.2g} of its norm off with its {name} gates closed"
            raise unsupported_model(lm, found, f"its {expected}")


def _require_half_gates_act(lm: PreTrainedModel, index: int, outputs: Tensor) -> None:
    """Refuse a layer, with outputs (rows, tokens, width), in which a half-open gate has no effect or the full one.

    A node whose whole effect is within rounding is not tested.
    """
    for open_, half, closed, name in (
        (Variant.ONE_HEAD, Variant.HALF_HEAD, Variant.HEADS_CLOSED, "head"),
        (Variant.ALL_OPEN, Variant.HALF_MLP, Variant.MLP_CLOSED, "MLP"),
    ):
        whole_effect, lost_effect = _norm(outputs[closed] - outputs[open_]), _norm(outputs[half] - outputs[open_])
        measurable = whole_effect > rounding_tolerance(lm) * _norm(outputs[open_])
        in_between = MIN_GATE_EFFECT * whole_effect < lost_effect < (1 - MIN_GATE_EFFECT) * whole_effect
        if measurable and not in_between:
            share = 1 - lost_effect / whole_effect
            found = f"that a half-open {name} in layer {index} has {share:.2g} of the effect of an open one"
            raise unsupported_model(lm, found, "between nothing and all")


def _gates(layout: Layout) -> Tensor:
    """Return the gates of every variant: (rows, nodes)."""
    graph = layout.graph
    gates = torch.ones(len(Variant), graph.n_layers, graph.n_heads + 1, device=input_device(layout.lm))
    gates[[Variant.HEADS_CLOSED, Variant.ONE_HEAD, Variant.HALF_HEAD], :, :-1] = 0
    gates[Variant.ONE_HEAD, :, -2] = 1
    gates[Variant.HALF_HEAD, :, -2] = 0.5
    gates[Variant.MLP_CLOSED, :, -1] = 0
    gates[Variant.HALF_MLP, :, -1] = 0.5
    return gates.flatten(1)


def _on_first_row(forward: Forward, outputs: list[Tensor]) -> Forward:
    """Return a layer's forward that runs all rows on the first row's stream and appends its output to `outputs`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        stream = first_argument(args, kwargs)
        stream = stream[:1].expand_as(stream).contiguous()
        args, kwargs = ((stream, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): stream})
        output = forward(*args, **kwargs)
        outputs.append(first_output(output).clone())
        return output

    return run


def _removed(variant: Variant, bias: Tensor | None) -> Callable[[Forward], Forward]:
    """Return a wrapper of a branch's forward that puts out `bias`, or zeros, in the row of one variant."""

    def wrap(forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            value = first_output(output).clone()
            value.unflatten(0, (len(Variant), -1))[variant] = 0 if bias is None else bias.to(value)
            return with_first_output(output, value)

        return run

    return wrap


def _norm(difference: Tensor) -> float:
    return difference.float().norm().item()
