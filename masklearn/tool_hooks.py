"""A mask as hook functions of other tools: TransformerLens and nnsight, with weights as they are (no folding).

The functions replace what closed heads put into the output projection, and what closed MLPs add to the stream.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from masklearn.ablation import Ablation, at_positions
from masklearn.errors import UserError
from masklearn.graph import NodeGraph

ToolName = Literal["transformer_lens", "nnsight"]
"""`transformer_lens`: a HookedTransformer or a TransformerBridge. `nnsight`: its LanguageModel."""
LAYERS = (
    "model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers", "model.language_model.layers",
)  # fmt: skip
OUTPUT_PROJECTIONS = (
    "self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attn.c_proj", "attn.out_proj", "attention.dense",
)  # fmt: skip
MLPS = ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp")
"""Names of the modules of families in transformers; of several that exist the first. A norm behind the MLP is where
its addition to the stream leaves."""


def hooks_of(graph: NodeGraph, mask: Tensor, ablation: Ablation, tool: ToolName) -> Any:
    """The hooks that keep the nodes of a mask.

    Args:
        graph: The nodes.
        mask: Boolean, shape (nodes,).
        ablation: What closed nodes emit, with its values.
        tool: Whose hooks.

    Returns:
        For `transformer_lens`, pairs of a hook point and a function, as `run_with_hooks(fwd_hooks=...)` takes them; for
        `nnsight` a function to call in a trace, with the model.

    Raises:
        UserError: If there is no such tool, or if the values that closed nodes emit are not known.
    """
    if tool not in get_args(ToolName):
        raise UserError(f"there are no hooks for {tool!r}. Choose one of {', '.join(get_args(ToolName))}")
    if ablation.name != "zero" and not ablation.known:
        raise UserError(
            f"{ablation.name} ablation takes its values from corrupted inputs, and hooks do not know these. Give them: "
            "mask.hooks(..., ablation=MaskedLM(lm).resampled(input_ids))"
        )
    edits = {}
    for layer, gates in enumerate(graph.by_layer(mask.bool())):
        for kind, is_open in (("heads", gates[:-1]), ("mlp", gates[-1:])):
            if not is_open.all():
                values = ablation.heads if kind == "heads" else ablation.mlps
                edits[layer, kind] = _edit(is_open, values[layer] if ablation.known else None)
    if tool == "nnsight":
        return lambda model: _edit_in_trace(model, edits)
    points = {"heads": "blocks.{}.attn.hook_z", "mlp": "blocks.{}.hook_mlp_out"}
    return [(points[kind].format(layer), edit) for (layer, kind), edit in edits.items()]


def _edit(is_open: Tensor, closed: Tensor | None) -> Callable[..., Tensor]:
    """Replaces the outputs of closed nodes.

    Args:
        is_open: Shape (nodes,).
        closed: What closed nodes emit, shape (inputs or 1, positions, nodes, width); None for zeros.
    """

    def edit(output: Tensor, hook: Any = None) -> Tensor:
        """Outputs of shape (rows, tokens, nodes * width), or with the nodes as a dimension."""
        nodes = output.unflatten(-1, (len(is_open), -1)) if output.dim() == 3 else output
        values = torch.zeros_like(nodes) if closed is None else at_positions(closed, nodes.shape[1]).to(nodes)
        return torch.where(is_open.to(output.device)[:, None], nodes, values).reshape(output.shape)

    return edit


def _edit_in_trace(model: Any, edits: dict[tuple[int, str], Callable[..., Tensor]]) -> None:
    """Apply edits in a trace of nnsight, in the order in which the modules run."""
    layers = _first_of(model, LAYERS)
    for (layer, kind), edit in edits.items():
        if kind == "heads":
            module = _first_of(layers[layer], OUTPUT_PROJECTIONS)
            module.input = edit(module.input)
        else:
            module = _first_of(layers[layer], MLPS)
            module.output = edit(module.output)


def _first_of(module: Any, paths: tuple[str, ...]) -> Any:
    """The first of some submodules that exists.

    Raises:
        UserError: If none does.
    """
    for path in paths:
        found = module
        for name in path.split("."):
            found = getattr(found, name, None)
            if found is None:
                break
        else:
            return found
    raise UserError(f"hooks for nnsight: none of {', '.join(paths)} is in this model; its family is not known")
