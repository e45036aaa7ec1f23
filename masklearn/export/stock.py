"""Whether plain transformers can hold a subgraph: its classes have one number of heads for all layers."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel


def stock_config(lm: PreTrainedModel, smaller: PreTrainedModel, subgraph: dict[str, Any]) -> PreTrainedConfig | None:
    """The config with which the family's own class has exactly the weights of a smaller model; None if there is none.

    There is one if every layer keeps its MLP and as many heads, which share key-value heads evenly, and if the class
    takes a number of heads that does not divide its width.

    Args:
        lm: The whole model.
        smaller: The same model without its closed nodes.
        subgraph: What is left of it.
    """
    counts = {len(layer["heads"]) for layer in subgraph["layers"]}
    if len(counts) > 1 or 0 in counts or "fused" in subgraph["anatomy"]:
        return None
    weights, anatomy = smaller.state_dict(), subgraph["anatomy"]
    key = weights.get(f"{anatomy['layers']}.0.{anatomy['attention']}.{anatomy['key']}.weight")
    query = weights.get(f"{anatomy['layers']}.0.{anatomy['attention']}.{anatomy['query']}.weight")
    if key is None or query is None:
        return None
    (n_heads,) = counts
    head_width = len(query) // n_heads
    try:
        config = copy.deepcopy(lm.config)
        config.num_attention_heads, config.num_key_value_heads = n_heads, max(1, len(key) // head_width)
        config.head_dim = head_width
        config = type(config)(**config.to_dict())
        with torch.device("meta"):
            stock = type(lm)(config)
    except Exception:  # a config's own checks may raise anything
        return None
    return config if _shapes(stock.state_dict()) == _shapes(weights) else None


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}
