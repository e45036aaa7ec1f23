"""A causal language model without the attention heads and MLPs that a mask closes.

Exported folders carry a copy of this file, with the classes of the model's family at its end. It needs torch and
transformers, and nothing else.

`config.subgraph` says what is left: for every layer the heads that are kept, whether its MLP is, and which constants
stand in for what is gone; and where the modules of the family are.
"""

import copy
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import AttentionInterface

GROUPED_ATTENTION = "masklearn_grouped"
"""Name of the attention in which key-value heads serve different numbers of query heads."""


class SubgraphMixin:
    """Makes a family's causal language model smaller than its class: see `config.subgraph`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # pyright: ignore[reportCallIssue]
        remove_closed(self, config.subgraph)  # pyright: ignore[reportArgumentType]


def remove_closed(lm: nn.Module, subgraph: dict[str, Any]) -> None:
    """Remove closed heads and MLPs from a whole model, in place, with the weights that it has."""
    anatomy = subgraph["anatomy"]
    layers = lm.get_submodule(anatomy["layers"])
    for index, (layer, kept) in enumerate(zip(layers.children(), subgraph["layers"], strict=True)):
        attention = layer.get_submodule(anatomy["attention"])
        if kept["heads"]:
            _narrow_attention(attention, anatomy, kept, subgraph["n_heads"])
        else:
            setattr(layer, anatomy["attention"], AbsentAttention(_width(attention, anatomy), index, kept))
            _skip(layer, anatomy["attention_only"])
        if not kept["mlp"]:
            value = _width(attention, anatomy) if kept["mlp_value"] else None
            setattr(layer, anatomy["mlp"], AbsentMLP(value, "mlp_in_place" in anatomy))
            _skip(layer, anatomy["mlp_only"])


def _skip(layer: nn.Module, modules: list[str]) -> None:
    for name in modules:
        setattr(layer, name, nn.Identity())


def _width(attention: nn.Module, anatomy: dict[str, Any]) -> int:
    """Width of the residual stream."""
    projection = attention.get_submodule(anatomy["output"])
    return projection.nf if hasattr(projection, "nf") else projection.out_features  # pyright: ignore


def _narrow_attention(attention: Any, anatomy: dict[str, Any], kept: dict[str, Any], n_heads: int) -> None:
    """Keep some of the query heads, and the key-value heads that these read."""
    projection = attention.get_submodule(anatomy["output"])
    heads, width = kept["heads"], _width(attention, anatomy)
    head_width = projection.weight.numel() // width // n_heads
    if "fused" in anatomy:  # queries, keys and values in one matrix
        fused = attention.get_submodule(anatomy["fused"])
        if anatomy["order"] == "head by head":
            narrow(fused, slices(heads, 3 * head_width), output=True)
        elif anatomy["order"] == "group by group":
            _narrow_by_group(attention, fused, heads, head_width, n_heads)
        else:
            _narrow_parts(attention, fused, heads, head_width, n_heads)
    else:
        _narrow_grouped(attention, anatomy, heads, head_width, n_heads)
    if "count" in anatomy:
        setattr(attention, anatomy["count"], len(heads))
    narrow(projection, slices(heads, head_width), output=False)
    if kept["head_value"] and projection.bias is None:
        projection.bias = nn.Parameter(projection.weight.new_zeros(width), requires_grad=False)


def _narrow_parts(attention: Any, fused: Any, heads: list[int], width: int, n_heads: int) -> None:
    """Narrow a matrix of all queries, then all keys, then all values (GPT-2, Phi-3)."""
    n_outputs = fused.nf if hasattr(fused, "nf") else fused.out_features
    n_groups = (n_outputs // width - n_heads) // 2
    groups = sorted({head * n_groups // n_heads for head in heads})
    of_groups = slices(groups, width) + n_heads * width
    narrow(fused, torch.cat([slices(heads, width), of_groups, of_groups + n_groups * width]), output=True)
    attention.split_size = len(heads) * width
    attention.num_key_value_heads = len(groups)
    attention.config = FewerHeads(attention.config, len(heads))
    _share_keys(attention, heads, n_heads // n_groups)


class FewerHeads:
    """A model's config with another number of heads. All else is the model's own, also what is changed later."""

    def __init__(self, config: Any, n_heads: int) -> None:
        self._config, self.num_attention_heads = config, n_heads

    def __getattr__(self, name: str) -> Any:
        if name == "_config" or name.startswith("__"):  # not there yet while it is copied
            raise AttributeError(name)
        return getattr(self._config, name)


def _narrow_by_group(attention: Any, fused: Any, heads: list[int], width: int, n_heads: int) -> None:
    """Narrow a matrix in which the queries of a key-value head are followed by its key and its value (Falcon)."""
    one_group = attention.multi_query and not attention.new_decoder_architecture
    group = n_heads // attention.num_kv_heads if one_group or attention.new_decoder_architecture else 1
    first = {head: head // group * (group + 2) for head in heads}  # block of channels in which its group begins
    keys = [first[head] + group for head in (heads[:1] if one_group else heads)]
    blocks = [[first[head] + head % group for head in heads], keys, [key + 1 for key in keys]]
    kept = sorted({block for of_part in blocks for block in of_part})
    narrow(fused, slices(kept, width), output=True)
    for name, of_part in zip(("query_blocks", "key_blocks", "value_blocks"), blocks, strict=True):
        attention.register_buffer(name, torch.tensor([kept.index(block) for block in of_part]))
    attention.num_kv_heads = len(keys)
    attention._split_heads = partial(split_blocks, attention)


def split_blocks(attention: Any, fused: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values (rows, tokens, heads, width) of kept heads; a key serves several queries by copies."""
    states = fused.unflatten(-1, (-1, attention.head_dim))
    blocks = (attention.query_blocks, attention.key_blocks, attention.value_blocks)
    return tuple(states.index_select(2, of_part) for of_part in blocks)


def _narrow_grouped(attention: Any, anatomy: dict[str, Any], heads: list[int], width: int, n_heads: int) -> None:
    """Narrow separate projections of queries, keys and values; key-value heads may serve several queries."""
    query, key, value = (attention.get_submodule(anatomy[name]) for name in ("query", "key", "value"))
    group = n_heads * width // key.out_features
    groups = sorted({head // group for head in heads})
    for projection, kept, norm in ((query, heads, "q_norm"), (key, groups, "k_norm"), (value, groups, "")):
        n_before = projection.out_features
        module = getattr(attention, norm, None) if norm else None
        if module is not None and module.weight.numel() == n_before > width:  # the norm is over all heads together
            setattr(attention, norm, NormedHeads(module, slices(kept, width)))
        else:
            narrow(projection, slices(kept, width), output=True)
    _share_keys(attention, heads, group)


def _share_keys(attention: Any, heads: list[int], group: int) -> None:
    """Let the kept query heads read the kept key-value heads; `group` queries shared each before."""
    groups = sorted({head // group for head in heads})
    sizes = [sum(head // group == g for head in heads) for g in groups]
    attention.num_key_value_groups = sizes[0]
    if len(set(sizes)) > 1:
        attention.num_key_value_groups = 1
        reads = torch.tensor([groups.index(head // group) for head in heads])
        attention.register_buffer("key_value_of_query", reads)
        attention.model_config, attention.config = attention.config, copy.copy(attention.config)
        attention.config._attn_implementation = GROUPED_ATTENTION


def grouped_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The model's attention, after every query head has been given its own copy of the keys and values it reads."""
    key, value = (states.index_select(1, module.key_value_of_query) for states in (key, value))
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = AttentionInterface().get_interface(module.model_config._attn_implementation, eager)
    return attend(module, query, key, value, *args, **kwargs)


AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)


def slices(heads: list[int], width: int) -> Tensor:
    """Indices of the channels of some heads."""
    return (torch.tensor(heads, device="cpu")[:, None] * width + torch.arange(width, device="cpu")).flatten()


def narrow(projection: Any, channels: Tensor, output: bool) -> None:
    """Keep some of a projection's output channels, or of its input channels; a `Conv1D` has its weight transposed."""
    transposed = hasattr(projection, "nf")
    weight = projection.weight.detach()
    dimension = int(transposed) if output else 1 - int(transposed)
    chosen = channels.to(weight.device)
    projection.weight = nn.Parameter(weight.index_select(dimension, chosen), requires_grad=False)
    if output and projection.bias is not None:
        projection.bias = nn.Parameter(projection.bias.detach()[chosen], requires_grad=False)
    names = ("nx", "nf") if transposed else ("in_features", "out_features")
    setattr(projection, names[output], len(channels))


class NormedHeads(nn.Module):
    """Some heads of a norm over all heads together, which therefore needs the queries or keys of all."""

    def __init__(self, norm: nn.Module, channels: Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("channels", channels.to(next(norm.parameters()).device))

    def forward(self, states: Tensor) -> Tensor:
        """Norm all heads, and return those that are kept: (..., heads * width) to (..., kept * width)."""
        return self.norm(states).index_select(-1, self.channels)  # pyright: ignore[reportArgumentType]


class AbsentMLP(nn.Module):
    """In place of a closed MLP: a constant, or nothing.

    Args:
        width: Width of the constant; None for nothing.
        writable: Whether the layer changes the output in place, which then has all tokens.
    """

    def __init__(self, width: int | None, writable: bool = False) -> None:
        super().__init__()
        self.writable = writable
        self.value = None if width is None else nn.Parameter(torch.zeros(width), requires_grad=False)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What every token gets, shape (width,) or (1,); if it is writable, (..., width)."""
        value = hidden_states.new_zeros(1) if self.value is None else self.value
        return value.expand(hidden_states.shape).clone() if self.writable else value


class AbsentAttention(AbsentMLP):
    """In place of an attention without heads. It keeps one number a token in the cache, which counts tokens by it."""

    def __init__(self, width: int, layer_idx: int, kept: dict[str, Any]) -> None:
        super().__init__(width if kept["head_value"] else None)
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What every token gets, and no attention weights."""
        for cache in (*args, *kwargs.values()):
            if isinstance(cache, Cache):
                count = hidden_states.new_zeros(*hidden_states.shape[:1], 1, hidden_states.shape[1], 1)
                cache.update(count, count[..., :0], self.layer_idx)
        return super().forward(hidden_states), None
