"""A third, independent implementation of gated models, for every family: the model itself with other weights and parts.

A head is scaled in the weights of the output projection, an MLP by a module in its place. There is no hook, and the
places are those that `families` has written down.
"""

from copy import deepcopy
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


def operated(family: Family, lm: PreTrainedModel, gates: Tensor) -> PreTrainedModel:
    """A copy of a model whose nodes are scaled by gates of shape (layers, heads + 1), the MLP last."""
    lm = deepcopy(lm)
    layers, heads, mlp, *norm = family.places
    for layer, (*of_heads, of_mlp) in zip(lm.get_submodule(layers), gates.to(lm.dtype), strict=True):
        projection = layer.get_submodule(heads)
        weight = projection.weight if isinstance(projection, Conv1D) else projection.weight.T  # (inputs, outputs)
        for part, gate in zip(weight.chunk(len(of_heads)), of_heads, strict=True):
            part *= gate
        layer.set_submodule(mlp, Scaled(layer.get_submodule(mlp), of_mlp))
        if norm:  # which no scale of all heads gets through: the attention is open as far as any head is
            shut = torch.stack([1 - gate for gate in of_heads]).prod()
            layer.set_submodule(norm[0], Scaled(layer.get_submodule(norm[0]), 1 - shut))
    return lm


def logits(family: Family, lm: PreTrainedModel, input_ids: Tensor, gates: Tensor) -> Tensor:
    """Logits (rows, tokens, vocabulary) of texts (rows, tokens), each under its own gates (rows, layers, heads + 1)."""
    return torch.cat([operated(family, lm, gate)(row[None]).logits for row, gate in zip(input_ids, gates, strict=True)])
