"""A third, independent implementation of gated models, for every family: the model with edited weights and modules.

A head is scaled in the weights of the output projection, an MLP by a module around it. There are no hooks, and the
modules are those that `families` lists by hand.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from families import Family
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class Scaled(nn.Module):
    """Multiplies a module's output, or its first element if it is a tuple."""

    def __init__(self, module: nn.Module, factor: Tensor) -> None:
        super().__init__()
        self.module, self.factor = module, factor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        return (self.factor * output[0], *output[1:]) if isinstance(output, tuple) else self.factor * output


class Recorded(nn.Module):
    """Keeps a module's latest input and output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.input, self.output = torch.empty(0), torch.empty(0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        self.input, self.output = args[0].clone(), (output[0] if isinstance(output, tuple) else output).clone()
        return output


class Shifted(nn.Module):
    """Adds to a module's output, or to its first element if it is a tuple."""

    def __init__(self, module: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.module, self.shift = module, shift

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        return (self.shift + output[0], *output[1:]) if isinstance(output, tuple) else self.shift + output


@dataclass(frozen=True)
class NodeOutputs:
    """What the nodes of every layer emit at every token of one text."""

    heads: Tensor
    """The output projection's input: shape (layers, tokens, heads * width)."""
    mlps: Tensor
    """Shape (layers, tokens, width)."""


def node_outputs(family: Family, lm: PreTrainedModel, input_ids: Tensor) -> NodeOutputs:
    """Record what the nodes of a model emit on one text, shape (tokens)."""
    lm = deepcopy(lm)
    layers, projection, mlp, *_ = family.module_paths
    recorded: list[list[Recorded]] = []
    for layer in lm.get_submodule(layers).children():
        recorded.append([Recorded(layer.get_submodule(path)) for path in (projection, mlp)])
        for path, module in zip((projection, mlp), recorded[-1], strict=True):
            layer.set_submodule(path, module)
    lm(input_ids[None])
    heads, mlps = (
        torch.stack([value.reshape(len(input_ids), -1) for value in values])
        for values in ([module.input for module, _ in recorded], [module.output for _, module in recorded])
    )
    return NodeOutputs(heads, mlps)


def operated(family: Family, lm: PreTrainedModel, gates: Tensor, closed: NodeOutputs | None = None) -> PreTrainedModel:
    """Copy a model and scale its nodes by gates of shape (layers, heads + 1), the MLP last.

    What closed nodes emit, if anything, is added after the output projection and after the MLP.
    """
    lm = deepcopy(lm)
    layers, projection_path, mlp, *norm = family.module_paths
    for i, (layer, (*head_gates, mlp_gate)) in enumerate(
        zip(lm.get_submodule(layers).children(), gates.to(lm.dtype), strict=True)
    ):
        projection = layer.get_submodule(projection_path)
        weight = projection.weight if isinstance(projection, Conv1D) else projection.weight.T  # (inputs, outputs)
        original_weight = weight.clone()
        for head_weight, gate in zip(weight.chunk(len(head_gates)), head_gates, strict=True):
            head_weight *= gate
        layer.set_submodule(mlp, Scaled(layer.get_submodule(mlp), mlp_gate))
        if closed:
            closed_share = 1 - torch.stack(head_gates)
            by_head = closed.heads[i].unflatten(-1, (len(head_gates), -1))
            emitted = (by_head * closed_share[:, None]).flatten(-2) @ original_weight
            layer.set_submodule(projection_path, Shifted(projection, emitted))
            layer.set_submodule(mlp, Shifted(layer.get_submodule(mlp), (1 - mlp_gate) * closed.mlps[i]))
        elif norm:  # it undoes any scale that all heads share, so the attention has a gate: 1 - prod(1 - gate)
            all_closed = torch.stack([1 - gate for gate in head_gates]).prod()
            layer.set_submodule(norm[0], Scaled(layer.get_submodule(norm[0]), 1 - all_closed))
    return lm


def logits(
    family: Family,
    lm: PreTrainedModel,
    input_ids: Tensor,
    gates: Tensor,
    closed: Sequence[NodeOutputs] | None = None,
) -> Tensor:
    """Return the logits (rows, tokens, vocabulary) of texts (rows, tokens), each under its own gates.

    Args:
        family: The family.
        lm: A model of it.
        input_ids: Shape (rows, tokens).
        gates: Shape (rows, layers, heads + 1).
        closed: What closed nodes emit in each row; nothing by default.
    """
    closed_rows = closed or [None] * len(gates)
    return torch.cat(
        [operated(family, lm, *row)(ids[None]).logits for ids, *row in zip(input_ids, gates, closed_rows, strict=True)]
    )
