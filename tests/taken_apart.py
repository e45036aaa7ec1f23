"""A third, independent implementation of gated models, for every family: the model itself with other weights and parts.

A head is scaled in the weights of the output projection, an MLP by a module in its place. There is no hook, and the
places are those that `families` has written down.
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
    """A module whose output, or the first part of it, is multiplied."""

    def __init__(self, module: nn.Module, by: Tensor) -> None:
        super().__init__()
        self.module, self.by = module, by

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        return (self.by * output[0], *output[1:]) if isinstance(output, tuple) else self.by * output


class Watched(nn.Module):
    """A module that keeps what it is given and what it gives."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.given, self.gave = torch.empty(0), torch.empty(0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        self.given, self.gave = args[0].clone(), (output[0] if isinstance(output, tuple) else output).clone()
        return output


class Plus(nn.Module):
    """A module to whose output, or the first part of it, something is added."""

    def __init__(self, module: nn.Module, more: Tensor) -> None:
        super().__init__()
        self.module, self.more = module, more

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        return (self.more + output[0], *output[1:]) if isinstance(output, tuple) else self.more + output


@dataclass(frozen=True)
class Closed:
    """What the closed nodes of every layer emit at every token of one text."""

    heads: Tensor
    """What goes into the output projection: shape (layers, tokens, width)."""
    mlps: Tensor
    """Shape (layers, tokens, width)."""


def outputs(family: Family, lm: PreTrainedModel, input_ids: Tensor) -> Closed:
    """What the nodes of a model put out on one text, shape (tokens)."""
    lm = deepcopy(lm)
    layers, heads, mlp, *_ = family.places
    watched: list[list[Watched]] = []
    for layer in lm.get_submodule(layers).children():
        watched.append([Watched(layer.get_submodule(place)) for place in (heads, mlp)])
        for place, module in zip((heads, mlp), watched[-1], strict=True):
            layer.set_submodule(place, module)
    lm(input_ids[None])
    given, gave = (
        torch.stack([value.reshape(len(input_ids), -1) for value in values])
        for values in ([one.given for one, _ in watched], [two.gave for _, two in watched])
    )
    return Closed(given, gave)


def operated(family: Family, lm: PreTrainedModel, gates: Tensor, closed: Closed | None = None) -> PreTrainedModel:
    """A copy of a model whose nodes are scaled by gates of shape (layers, heads + 1), the MLP last.

    What closed nodes emit, if anything, is added behind the output projection and behind the MLP.
    """
    lm = deepcopy(lm)
    layers, heads, mlp, *norm = family.places
    for i, (layer, (*of_heads, of_mlp)) in enumerate(
        zip(lm.get_submodule(layers).children(), gates.to(lm.dtype), strict=True)
    ):
        projection = layer.get_submodule(heads)
        weight = projection.weight if isinstance(projection, Conv1D) else projection.weight.T  # (inputs, outputs)
        whole = weight.clone()
        for part, gate in zip(weight.chunk(len(of_heads)), of_heads, strict=True):
            part *= gate
        layer.set_submodule(mlp, Scaled(layer.get_submodule(mlp), of_mlp))
        if closed:
            rest = 1 - torch.stack(of_heads)
            emitted = (closed.heads[i].unflatten(-1, (len(of_heads), -1)) * rest[:, None]).flatten(-2) @ whole
            layer.set_submodule(heads, Plus(projection, emitted))
            layer.set_submodule(mlp, Plus(layer.get_submodule(mlp), (1 - of_mlp) * closed.mlps[i]))
        elif norm:  # which no scale of all heads gets through: the attention is open as far as any head is
            shut = torch.stack([1 - gate for gate in of_heads]).prod()
            layer.set_submodule(norm[0], Scaled(layer.get_submodule(norm[0]), 1 - shut))
    return lm


def logits(
    family: Family, lm: PreTrainedModel, input_ids: Tensor, gates: Tensor, closed: Sequence[Closed] | None = None
) -> Tensor:
    """Logits (rows, tokens, vocabulary) of texts (rows, tokens), each under its own gates (rows, layers, heads + 1).

    And each with what its own closed nodes emit, if they do.
    """
    rest = closed or [None] * len(gates)
    return torch.cat(
        [operated(family, lm, *how)(row[None]).logits for row, *how in zip(input_ids, gates, rest, strict=True)]
    )
