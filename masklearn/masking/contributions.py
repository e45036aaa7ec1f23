"""Node contributions: how large a share each node has in what it adds to, without closing anything."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from masklearn.masking.hooks import ActivationEdit, edit_input, edit_output, edited_activations
from masklearn.masking.masked_lm import MaskedLM


@torch.no_grad()
def node_contributions(masked_lm: MaskedLM, input_ids: Tensor) -> Tensor:
    """Return the share of every node in the sum that it enters, at every token of the full model.

    The share is the L1 norm of the node's contribution to the residual stream over the sum of the L1 norms of all
    terms: for a head, the incoming stream and the heads of its layer; for an MLP, the stream and the MLP. The factor
    of Granite's layers, `residual_multiplier`, is applied. A norm after the attention is not.

    This is a node-level analogue of s-Trace's edge importance, in its L1 form (Kervadec et al. 2026, arXiv
    2605.27033). It is not the paper's score, which is defined on edges.

    Args:
        masked_lm: The model; its gates and its ablation play no part.
        input_ids: Shape (inputs, tokens).

    Returns:
        Shape (inputs, tokens, nodes), in [0, 1]; 0 where nothing at all is added.
    """
    latest: dict[str, Tensor] = {}  # activations of the layer that is running
    contributions: list[Tensor] = []
    branch_factor = getattr(masked_lm.lm.config, "residual_multiplier", 1.0)

    def record(name: str) -> ActivationEdit:
        def run(value: Tensor) -> Tensor:
            latest[name] = value.reshape(*input_ids.shape, -1).clone()  # Falcon adds to its MLP's output in place
            return value

        return run

    def finish_layer(projection: nn.Module) -> ActivationEdit:
        def run(output: Tensor) -> Tensor:
            record("layer output")(output)
            shares = _shares(projection, latest, masked_lm.graph.n_heads, branch_factor)
            contributions.append(shares.to(input_ids.device))
            return output

        return run

    edits = edited_activations(masked_lm.layout, lambda _: record("heads"), lambda _: record("mlp"))
    with edits, ExitStack() as stack:
        for site in masked_lm.layout.sites:
            stack.callback(edit_input(site.layer, record("layer input")).remove)
            stack.callback(edit_output(site.layer, finish_layer(site.output_projection)).remove)
        masked_lm.layout.hidden(input_ids)
    return torch.cat(contributions, -1).nan_to_num()


def _shares(projection: nn.Module, activations: dict[str, Tensor], n_heads: int, branch_factor: float) -> Tensor:
    """Return the contributions of one layer's nodes, from its recorded activations: (inputs, tokens, heads + 1).

    The layer adds `branch_factor` times the outputs of its attention and its MLP. Its input may be on another device.
    """
    heads = branch_factor * _head_norms(projection, activations["heads"], n_heads)
    stream = _l1_norm(activations["layer input"]).to(heads.device)
    added_by_mlp = branch_factor * activations["mlp"]
    mlp, stream_before_mlp = _l1_norm(added_by_mlp), _l1_norm(activations["layer output"] - added_by_mlp)
    return torch.cat([heads / (stream + heads.sum(-1, keepdim=True)), mlp / (stream_before_mlp + mlp)], -1)


def _head_norms(projection: nn.Module, outputs: Tensor, n_heads: int) -> Tensor:
    """Return the L1 norms of what each head adds to the residual stream, without the projection's bias.

    Args:
        projection: The attention output projection.
        outputs: Its input, shape (inputs, tokens, heads * width).
        n_heads: Number of heads.

    Returns:
        Shape (inputs, tokens, heads).
    """
    bias = projection.forward(torch.zeros_like(outputs[..., :1, :]))
    width = outputs.shape[-1] // n_heads
    norms = []
    for head in range(n_heads):
        alone, columns = torch.zeros_like(outputs), slice(head * width, (head + 1) * width)
        alone[..., columns] = outputs[..., columns]
        norms.append(_l1_norm(projection.forward(alone) - bias))
    return torch.cat(norms, -1)


def _l1_norm(vectors: Tensor) -> Tensor:
    """Return L1 norms (..., 1) of vectors (..., width)."""
    return vectors.float().abs().sum(-1, keepdim=True)
