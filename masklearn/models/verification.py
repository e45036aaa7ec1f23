"""What is done with every model when it is loaded: gating it is held against taking it apart.

Gates are put on by hooks, at the sites that the adapter found. Here the forwards of whole attentions and MLPs are
replaced instead, and both must come to the same, in every layer.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masklearn.errors import UserError
from masklearn.models import (
    Forward,
    Layout,
    differs,
    first,
    precision,
    probe,
    replaced,
    rounding,
    unsupported_model,
    with_first,
)

Gated = Callable[[Layout, Tensor], AbstractContextManager[Any]]
"""Puts gates of shape (rows, nodes) on a model of some layout."""

OPEN, NO_HEADS, NO_ATTENTION, NO_MLP, NO_BRANCH, ONE_HEAD, HALF_HEAD, HALF_MLP = ROWS = range(8)
"""The rows of the one forward that tells: each layer with its nodes gated so, or (NO_ATTENTION, NO_BRANCH) cut out."""
LEAST = 0.002
"""The least share of a node's whole effect that a gate halfway must have, and leave."""


@torch.no_grad()
def require_sound(layout: Layout, gated: Gated) -> None:
    """Refuse a model that gates would not act on as they say.

    All gates open change no logit; all heads of a layer closed leave its attention at its bias; an MLP closed is an MLP
    removed; and a gate halfway does neither nothing nor all. Two forwards of a few tokens, whatever the depth: every
    layer is given the full model's residual stream in all rows of one batch, and each row shows what another gating of
    this layer makes of it.

    Raises:
        UserError: What was found, and what was expected.
    """
    lm, ids = layout.lm, probe(layout.lm, len(ROWS))
    plain = lm(input_ids=ids, use_cache=False).logits
    require_finite_outputs(lm, plain)
    outputs: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(gated(layout, _gates(layout)))
        for site in layout.sites:
            stack.enter_context(replaced(site.layer, lambda forward: _side_by_side(forward, outputs)))
            stack.enter_context(replaced(site.branches[0], _without(NO_ATTENTION, site.bias)))
            stack.enter_context(replaced(site.branches[1], _without(NO_BRANCH, None)))
        read = layout.unembed(layout.hidden(ids))
    for index, output in enumerate(outputs):
        _require_gates_act(layout, index, output)
    if differs(lm, read[OPEN], plain[OPEN], layout.graph.n_layers):
        gap = (read[OPEN] - plain[OPEN]).abs().max().item()
        raise unsupported_model(lm, f"logits that are {gap:.2g} off with all gates open", "those of the model")


def _require_gates_act(layout: Layout, index: int, rows: Tensor) -> None:
    """Refuse a layer whose outputs (rows, tokens, width) are not those that its gates promise."""
    lm = layout.lm
    for closed, cut, what in ((NO_HEADS, NO_ATTENTION, "attention at its bias"), (NO_MLP, NO_BRANCH, "MLP removed")):
        if differs(lm, rows[closed], rows[cut]):
            gap = _norm(rows[closed] - rows[cut]) / _norm(rows[cut])
            found = f"layer {index} {gap:.2g} of its norm off with its {what.split()[0]} gates closed"
            raise unsupported_model(lm, found, f"its {what}")
    for whole, half, closed, what in ((ONE_HEAD, HALF_HEAD, NO_HEADS, "head"), (OPEN, HALF_MLP, NO_MLP, "MLP")):
        effect, left = _norm(rows[closed] - rows[whole]), _norm(rows[half] - rows[whole])
        seen = effect > rounding(lm) * _norm(rows[whole])
        if seen and not LEAST * effect < left < (1 - LEAST) * effect:
            found = f"that a half-open {what} in layer {index} does {1 - left / effect:.2g} of what an open one does"
            raise unsupported_model(lm, found, "between nothing and all")


def _gates(layout: Layout) -> Tensor:
    """Gates of every row: (rows, nodes)."""
    graph = layout.graph
    gates = torch.ones(len(ROWS), graph.n_layers, graph.n_heads + 1, device=layout.lm.device)
    gates[[NO_HEADS, ONE_HEAD, HALF_HEAD], :, :-1] = 0
    gates[ONE_HEAD, :, -2] = 1
    gates[HALF_HEAD, :, -2] = 0.5
    gates[NO_MLP, :, -1] = 0
    gates[HALF_MLP, :, -1] = 0.5
    return gates.flatten(1)


def _side_by_side(forward: Forward, outputs: list[Tensor]) -> Forward:
    """A layer's forward that gives all rows the stream of the first, and keeps what they make of it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        stream = first(args, kwargs)
        stream = stream[:1].expand_as(stream).contiguous()
        args, kwargs = ((stream, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): stream})
        output = forward(*args, **kwargs)
        outputs.append((output[0] if isinstance(output, tuple | list) else output).clone())
        return output

    return run


def _without(row: int, rest: Tensor | None) -> Callable[[Forward], Forward]:
    """A branch's forward that leaves `rest`, or nothing, in one row."""

    def make(forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            value = output[0] if isinstance(output, tuple | list) else output
            value = value.clone()
            value.unflatten(0, (len(ROWS), -1))[row] = 0 if rest is None else rest.to(value)
            return with_first(output, value)

        return run

    return make


def _norm(difference: Tensor) -> float:
    return difference.float().norm().item()


def require_finite_outputs(lm: PreTrainedModel, outputs: Tensor) -> None:
    """Refuse to go on with what is not a number or infinite.

    Raises:
        UserError: Which precision to use in place of this one.
    """
    if not outputs.isfinite().all():
        finer = {"float16": "float32 or bfloat16", "bfloat16": "float32"}.get(precision(lm))
        advice = f"Choose --model.dtype {finer}" if finer else "Check its weights"
        raise UserError(f"model.lm: {type(lm).__name__} gives numbers that are not finite in {precision(lm)}. {advice}")
