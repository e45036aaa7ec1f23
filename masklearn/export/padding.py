"""A subgraph in the family's own class: the weights of closed nodes stay, as zeros.

Such a model is as large and as slow as the whole one. It is for programs that know no other classes.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from masklearn.ablation import Ablation
from masklearn.errors import UserError
from masklearn.export.subgraph_model import slices
from masklearn.models import Layout

BIAS_SETTINGS = ("attention_bias", "mlp_bias", "use_bias")
"""Settings by which families have biases in their projections."""


@torch.no_grad()
def padded(
    layout: Layout, subgraph: dict[str, Any], constants: dict[int, Tensor], ablation: Ablation
) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    """The whole model's weights with zeros for closed nodes, and biases that emit their constants.

    Args:
        layout: The whole model.
        subgraph: What is open: see `subgraph_model.remove_closed`.
        constants: What the output projections of layers with closed heads emit for these, shape (width,).
        ablation: What closed MLPs emit.

    Returns:
        Config and weights of the family's class.

    Raises:
        UserError: If the family's class has no place for constants.
    """
    anatomy = subgraph["anatomy"]
    config, weights = _with_biases(layout, subgraph, ablation)
    for index, (site, kept) in enumerate(zip(layout.sites, subgraph["layers"], strict=True)):
        layer = f"{anatomy['layers']}.{index}"
        projection, mlp = f"{layer}.{anatomy['attention']}.{anatomy['output']}", f"{layer}.{anatomy['mlp']}"
        weight = weights[f"{projection}.weight"] = weights[f"{projection}.weight"].clone()
        inputs = weight if hasattr(site.output_projection, "nf") else weight.T  # a `Conv1D` is transposed
        heads, head_width = range(subgraph["n_heads"]), len(inputs) // subgraph["n_heads"]
        if closed := [head for head in heads if head not in kept["heads"]]:
            inputs[slices(closed, head_width)] = 0
        if index in constants:
            _set_bias(weights, projection, constants[index], ablation)
        if not kept["mlp"]:
            weights |= {name: torch.zeros_like(w) for name, w in weights.items() if name.startswith(f"{mlp}.")}
        if kept["mlp_value"]:
            behind_norm = "norm_after_attention" in anatomy  # families with this norm have one behind the MLP as well
            _set_bias(weights, "" if behind_norm else mlp, ablation.mlps[index].flatten(), ablation)
    return config, weights


def _with_biases(
    layout: Layout, subgraph: dict[str, Any], ablation: Ablation
) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    """Config and weights of the whole model; for constants with all biases that the family can have, new ones zero."""
    lm, weights = layout.lm, dict(layout.lm.state_dict())
    config = copy.deepcopy(lm.config)
    if not ablation.known:
        return config, weights
    for name in BIAS_SETTINGS:
        if hasattr(config, name):
            setattr(config, name, True)
    with torch.device("meta"):
        names = type(lm)(config).state_dict()
    added = {name: torch.zeros_like(w, device=lm.device, dtype=lm.dtype) for name, w in names.items()}
    return config, added | weights


def _set_bias(weights: dict[str, Tensor], module: str, value: Tensor, ablation: Ablation) -> None:
    """Let the last bias of a module emit a constant.

    Raises:
        UserError: If it has none of that width.
    """
    biases = [name for name in weights if name.startswith(f"{module}.") and name.endswith("bias")]
    fitting = [name for name in biases if weights[name].shape == value.shape]
    if not fitting:
        raise UserError(
            f"export to hf: --stock true needs biases for the constants of {ablation.name} ablation, and this family "
            "has none where they go. Leave --stock out, or learn the masks under zero ablation"
        )
    weights[fitting[-1]] = value.to(weights[fitting[-1]])
