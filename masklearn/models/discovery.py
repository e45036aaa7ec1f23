"""Find where the nodes of a model can be gated, by structure: which module's output is which module's input.

Small tables cover what structure does not show. A model that does not fit is refused with what was found and what was
expected. `masklearn.models.verification` then tests the result by other means.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from masklearn.errors import UserError
from masklearn.graph import NodeGraph
from masklearn.models.diagnostics import text_config, unsupported_model
from masklearn.models.tracing import Trace

BRANCHES_WITHOUT_RESIDUAL = {
    "bloom": {"attention": "self_attention.dense", "mlp": "mlp.dense_4h_to_h"},
    "mpt": {"mlp": "ffn.down_proj"},
}
"""Families whose attention or MLP module adds the residual itself, and the submodule whose output excludes it."""
HEADS_NOT_SEPARABLE = {"diffllama": "attention whose heads are differences of two"}
"""Families whose heads are not slices of the output projection's input, and what they are instead."""
SOFTMAX_LAYER_TYPES = {
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "indexed_attention",
    "minimax_m3_sparse",
}
"""Entries of a config's `layer_types` that mean softmax attention with heads."""
HEAD_COUNT_NAMES = ("num_heads", "num_attention_heads", "n_heads", "n_head")
"""Attributes in which an attention module may store its own number of heads."""


@dataclass(frozen=True)
class LayerSites:
    """Where the nodes of one layer can be gated."""

    layer: nn.Module
    """The whole layer: its input and its output are the residual stream."""
    output_projection: nn.Module
    """The attention output projection. Its *input* is the outputs of all heads, concatenated."""
    mlp: nn.Module
    """The module whose *output* the MLP adds to the residual stream: the norm after the MLP, if there is one."""
    attention_norm: nn.Module | None
    """The norm after the attention, if there is one and the projection has no bias.

    It undoes any scale that all heads share.
    """
    attention_branch: nn.Module
    """The whole attention, without a norm after it."""
    mlp_branch: nn.Module
    """The whole MLP, without a norm after it."""
    projection_bias: Tensor | None
    """The output projection's bias, shape (width,). It belongs to no head."""


def require_attention_heads(lm: PreTrainedModel) -> None:
    """Refuse a model whose config says that some layers have no attention heads.

    Raises:
        UserError: What the layers are instead.
    """
    config, expected = text_config(lm), "attention heads in every layer"
    if config.model_type in HEADS_NOT_SEPARABLE:
        raise unsupported_model(lm, HEADS_NOT_SEPARABLE[config.model_type], expected)
    layer_types = getattr(config, "layer_types", None) or []
    others = [layer_type for layer_type in layer_types if layer_type not in SOFTMAX_LAYER_TYPES]
    if others:
        raise unsupported_model(
            lm, f"{', '.join(sorted(set(others)))} in {len(others)} of {len(layer_types)} layers", expected
        )


def candidate_bodies(lm: PreTrainedModel) -> list[nn.Module]:
    """Return the modules that may put out the last hidden states, most likely first.

    There are several because OPT calls its decoder directly and not the model around it.
    """
    candidates = [lm.base_model, lm.get_decoder(), getattr(lm, "model", None)]
    return [module for module in candidates if isinstance(module, nn.Module) and module is not lm]


def find_layers(lm: PreTrainedModel, graph: NodeGraph) -> nn.ModuleList:
    """Return the decoder's layers: the only outermost module list of that length.

    Raises:
        UserError: If there is no such list, or several.
    """
    lists = [module for module in lm.modules() if isinstance(module, nn.ModuleList)]
    inner = {part for outer in lists for part in outer.modules() if part is not outer}
    found = [module for module in lists if len(module) == graph.n_layers and module not in inner]
    if len(found) > 1:  # for example an image encoder beside the decoder
        found = [module for module in found if module in set(lm.get_decoder().modules())]
    if len(found) != 1:
        raise unsupported_model(lm, f"{len(found)} module lists of {graph.n_layers} layers", "one")
    return found[0]


@dataclass(frozen=True)
class SiteFinder:
    """Finds the sites of one layer in the trace of a forward."""

    lm: PreTrainedModel
    graph: NodeGraph
    trace: Trace
    index: int
    """Number of the layer, from 0."""
    layer: nn.Module

    def find(self) -> LayerSites:
        """Return the sites of the layer.

        Raises:
            UserError: If the layer is not one attention with an output projection and one MLP.
        """
        children = {name: child for name, child in self.layer.named_children() if has_weight_matrix(self.lm, child)}
        attention = self._attention({name: child for name, child in children.items() if "att" in name})
        mlp = self._mlp({name: child for name, child in children.items() if child is not attention})
        paths = BRANCHES_WITHOUT_RESIDUAL.get(self.lm.config.model_type, {})
        attention_branch, mlp_branch = (
            self.layer.get_submodule(paths[kind]) if kind in paths else branch
            for kind, branch in (("attention", attention), ("mlp", mlp))
        )
        projection = attention_branch if "attention" in paths else self._output_projection(attention)
        bias = _projection_bias(projection, self._projection_input(attention, projection))
        after_attention, after_mlp = (self._chain(branch) for branch in (attention_branch, mlp_branch))
        norms = [
            module
            for module in after_attention[1:]
            if (call := self.trace.single_call(module)) and not call.is_identity
        ]
        norm = norms[-1] if norms and bias is None else None
        return LayerSites(self.layer, projection, after_mlp[-1], norm, attention_branch, mlp_branch, bias)

    def _attention(self, candidates: dict[str, nn.Module]) -> nn.Module:
        """Return the layer's only attention."""
        if len(candidates) != 1:
            names = f" ({', '.join(candidates)})" if candidates else ""
            raise self._unsupported(f"{len(candidates)} attentions{names}", "one")
        return next(iter(candidates.values()))

    def _mlp(self, candidates: dict[str, nn.Module]) -> nn.Module:
        """Return the module at the end of the MLP, which is one child of the layer or several in sequence."""
        if not candidates:
            raise self._unsupported("no MLP", "one")
        chain = self._chain(next(iter(candidates.values())))
        in_sequence = [module for module in chain if module in candidates.values()]
        has_own_matrix = any(weights.dim() > 1 for weights in self.layer.parameters(recurse=False))
        if len(in_sequence) != len(candidates) or has_own_matrix:
            raise self._unsupported(f"attention and {', '.join(candidates)}", "attention and one MLP")
        return in_sequence[-1]

    def _output_projection(self, attention: nn.Module) -> nn.Module:
        """Return the submodule whose output is the attention's."""
        projection = self.trace.output_submodule(attention)
        if projection is None or not has_weight_matrix(self.lm, projection):
            last = "no part" if projection is None else f"a {type(projection).__name__}"
            found = f"{last} that makes the output of {type(attention).__name__}"
            raise self._unsupported(found, "an output projection")
        return projection

    def _projection_input(self, attention: nn.Module, projection: nn.Module) -> Tensor:
        """Return what the output projection got in the trace: one slice for each head, shape (..., heads * width)."""
        n_heads, call = self.graph.n_heads, self.trace.single_call(projection)
        if call is None or not isinstance(call.input, Tensor):
            raise self._unsupported("an attention output projection that is not called once", "one call in a forward")
        if call.input.shape[-1] % n_heads:
            found = f"an attention output projection of {call.input.shape[-1]} inputs"
            raise self._unsupported(found, f"a multiple of {n_heads} heads")
        owners = [vars(module) for module in attention.modules() if projection in set(module.modules())]
        head_counts = {attributes[name] for attributes in owners for name in HEAD_COUNT_NAMES if name in attributes}
        others = head_counts - {n_heads}
        if others:
            raise self._unsupported(f"{others.pop()} attention heads", f"the {n_heads} of its config")
        return call.input

    def _chain(self, module: nn.Module) -> list[nn.Module]:
        return self.trace.chain(module, self.layer.children())

    def _unsupported(self, found: str, expected: str) -> UserError:
        return unsupported_model(self.lm, f"{found} in layer {self.index} ({type(self.layer).__name__})", expected)


def has_weight_matrix(lm: PreTrainedModel, module: nn.Module) -> bool:
    """Return whether a module mixes channels: norms hold only vectors of the stream's width.

    The length counts as well as the dimensions, since quantised matrices may be packed into a long vector.

    Args:
        lm: The model.
        module: A part of it.
    """
    width = text_config(lm).hidden_size
    return any(held.dim() > 1 or held.numel() > width for held in (*module.parameters(), *module.buffers()))


def _projection_bias(projection: nn.Module, example_input: Tensor) -> Tensor | None:
    """Return a projection's bias, or None.

    If the module has no readable attribute of that name, the bias is the projection's output for zeros.
    """
    bias = getattr(projection, "bias", example_input)
    if bias is None or (isinstance(bias, Tensor) and bias.dim() == 1 and not bias.is_meta):
        return bias
    with torch.no_grad():
        output_for_zeros = projection(torch.zeros_like(example_input[:1, :1])).flatten()
    return output_for_zeros if output_for_zeros.any() else None
