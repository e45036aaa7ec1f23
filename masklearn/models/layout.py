"""A model's node graph and the places where its nodes can be gated.

Found by structure: by what feeds what in a layer, with small tables of what structure does not tell. A model that does
not fit is refused with what was found and what was expected; what was found is then put to the test, by other means,
in `masklearn.models.verification`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from masklearn.errors import UserError
from masklearn.graph import NodeGraph
from masklearn.models.diagnostics import differs, probe, text_config, unreadable, unsupported_model
from masklearn.models.forward_override import replaced
from masklearn.models.loading import fingerprint, move
from masklearn.models.tracing import Trace

BRANCH_ENDS = {
    "bloom": {"attention": "self_attention.dense", "mlp": "mlp.dense_4h_to_h"},
    "mpt": {"mlp": "ffn.down_proj"},
}
"""Families whose attention or MLP adds the residual itself, and the part whose output is the branch's alone."""
NO_HEADS = {"diffllama": "attention whose heads are differences of two"}
"""Families whose heads are no slices of the output projection's input."""
SOFTMAX = {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "minimax_m3_sparse"}
"""What a config may call its layers if all of them are to have attention heads."""
COUNTS_OF_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
"""What an attention module may call the number of its own heads."""


@dataclass(frozen=True)
class Site:
    """Where the nodes of one layer can be gated."""

    layer: nn.Module
    """The whole layer: from the residual stream that comes in to the one that goes out."""
    heads: nn.Module
    """The attention output projection: its *input* is the heads' outputs side by side."""
    mlp: nn.Module
    """The module whose *output* is what the MLP adds to the residual stream: a norm behind the MLP, if there is one."""
    attention_norm: nn.Module | None
    """The norm behind an attention without bias, if there is one: it undoes a scale that all heads share."""
    branches: tuple[nn.Module, nn.Module]
    """Attention and MLP as a whole, norms behind them left out."""
    bias: Tensor | None
    """What the output projection adds for no input, if anything: it is of no head. Shape (width,)."""


@dataclass(frozen=True)
class Layout:
    """A model's node graph and the sites of its layers."""

    lm: PreTrainedModel
    graph: NodeGraph
    sites: tuple[Site, ...]
    body: nn.Module
    """The module that puts out the last hidden states, which the model then turns into logits."""

    @classmethod
    def of(cls, lm: PreTrainedModel) -> "Layout":
        """Find the sites of a model, by one forward of a few tokens.

        Raises:
            UserError: If the model is not laid out as a causal decoder with one attention and one MLP in every layer.
        """
        graph = NodeGraph.of(lm)
        _require_attention(lm)
        layers, bodies = _layers(lm, graph), _bodies(lm)
        try:
            trace = Trace.of(lm, [*bodies, *(part for layer in layers for part in layer.modules())], probe(lm, 2))
        except Exception as error:  # whatever a model of an unknown kind may raise
            raise unreadable(lm, error) from error
        same, other = trace.logits[:, :-1]
        if same.isfinite().all() and differs(lm, same, other, graph.n_layers):  # texts that differ in their last token
            raise unsupported_model(lm, "predictions that depend on later tokens", "a causal language model")
        body = next((body for body in bodies if trace.once(body)), None)
        if body is None:
            raise unsupported_model(lm, "no body apart from its output head", "one")
        sites = tuple(_Finder(lm, graph, trace, i, layer).site() for i, layer in enumerate(layers))
        return cls(lm, graph, sites, body)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.lm)

    @property
    def current(self) -> bool:
        """Whether the sites are still parts of the model, and not of what it was before parts of it were exchanged."""
        parts = set(self.lm.modules())
        return all({site.layer, site.heads, site.mlp} <= parts for site in self.sites)

    def move(self, device: torch.device) -> None:
        """Move the model, and see that it can be read there.

        Raises:
            UserError: If there is no such device, or if it lacks the precision of the model.
        """
        move(self.lm, device)
        try:
            with torch.no_grad():
                self.hidden(probe(self.lm, 1))
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise unreadable(self.lm, error) from error

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Last hidden states, after the final norm: (rows, tokens) to (rows, tokens, width).

        There is no attention mask. Padding stands on the right, where no real token of a causal model can see it, and
        without a mask attention takes its fast path.
        """
        return self.body(input_ids=input_ids, use_cache=False).last_hidden_state

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of last hidden states: (..., width) to (..., vocabulary).

        By the model's own forward, with the hidden states in place of what its body would have put out, so that
        whatever a family does to logits (scales, caps, cuts) is done.
        """
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        with replaced(self.body, lambda _: lambda *args, **kwargs: _Body(flat)):
            logits = self.lm(input_ids=torch.zeros(flat.shape[:2], dtype=torch.long, device=flat.device)).logits
        return logits.reshape(*hidden.shape[:-1], -1)


class _Body:
    """What the body of a model puts out, as far as its head looks: last hidden states, and nothing of anything else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


def _require_attention(lm: PreTrainedModel) -> None:
    """Refuse what its config tells to be something else than layers of attention heads."""
    config, expected = text_config(lm), "attention heads in every layer"
    if config.model_type in NO_HEADS:
        raise unsupported_model(lm, NO_HEADS[config.model_type], expected)
    kinds = getattr(config, "layer_types", None) or []
    others = [kind for kind in kinds if kind not in SOFTMAX]
    if others:
        raise unsupported_model(
            lm, f"{', '.join(sorted(set(others)))} in {len(others)} of {len(kinds)} layers", expected
        )


def _bodies(lm: PreTrainedModel) -> list[nn.Module]:
    """What may be the body of a model, the likeliest first: OPT calls its decoder past the model that holds it."""
    found = [lm.base_model, lm.get_decoder(), getattr(lm, "model", None)]
    return [module for module in found if isinstance(module, nn.Module) and module is not lm]


def _layers(lm: PreTrainedModel, graph: NodeGraph) -> nn.ModuleList:
    lists = [module for module in lm.modules() if isinstance(module, nn.ModuleList)]
    inner = {part for some in lists for part in some.modules() if part is not some}
    found = [module for module in lists if len(module) == graph.n_layers and module not in inner]
    if len(found) > 1:  # an encoder of images beside the decoder
        found = [module for module in found if module in set(lm.get_decoder().modules())]
    if len(found) != 1:
        raise unsupported_model(lm, f"{len(found)} module lists of {graph.n_layers} layers", "one")
    return found[0]


@dataclass(frozen=True)
class _Finder:
    """The search for the sites of one layer."""

    lm: PreTrainedModel
    graph: NodeGraph
    trace: Trace
    index: int
    layer: nn.Module

    def site(self) -> Site:
        children = {name: child for name, child in self.layer.named_children() if self._has_weight_matrix(child)}
        attention = self._attention({name: child for name, child in children.items() if "att" in name})
        mlp = self._mlp({name: child for name, child in children.items() if child is not attention})
        ends = BRANCH_ENDS.get(self.lm.config.model_type, {})
        attention_branch, mlp_branch = (
            self.layer.get_submodule(ends[kind]) if kind in ends else branch
            for kind, branch in (("attention", attention), ("mlp", mlp))
        )
        heads = attention_branch if "attention" in ends else self._projection(attention)
        bias = _bias(heads, self._input(attention, heads))
        behind, after_mlp = (self._chain(branch) for branch in (attention_branch, mlp_branch))
        norms = [module for module in behind[1:] if (p := self.trace.once(module)) and not p.untouched]
        undone = norms[-1] if norms and bias is None else None
        return Site(self.layer, heads, after_mlp[-1], undone, (attention_branch, mlp_branch), bias)

    def _attention(self, found: dict[str, nn.Module]) -> nn.Module:
        if len(found) != 1:
            names = f" ({', '.join(found)})" if found else ""
            raise self._refusal(f"{len(found)} attentions{names}", "one")
        return next(iter(found.values()))

    def _mlp(self, found: dict[str, nn.Module]) -> nn.Module:
        """The module at the end of the MLP, which may be one child of the layer or several in a row."""
        if not found:
            raise self._refusal("no MLP", "one")
        row = [module for module in self._chain(next(iter(found.values()))) if module in found.values()]
        if len(row) != len(found) or any(weights.dim() > 1 for weights in self.layer.parameters(recurse=False)):
            raise self._refusal(f"attention and {', '.join(found)}", "attention and one MLP")
        return row[-1]

    def _projection(self, attention: nn.Module) -> nn.Module:
        end = self.trace.end(attention)
        if end is None or not self._has_weight_matrix(end):
            at_end = "no part" if end is None else f"a {type(end).__name__}"
            raise self._refusal(f"{at_end} that makes the output of {type(attention).__name__}", "an output projection")
        return end

    def _input(self, attention: nn.Module, projection: nn.Module) -> Tensor:
        """What the output projection was given: a slice for each head."""
        n, passage = self.graph.n_heads, self.trace.once(projection)
        if passage is None or not isinstance(passage.given, Tensor):
            raise self._refusal("an attention output projection that is not passed once", "one pass in a forward")
        if passage.given.shape[-1] % n:
            found = f"an attention output projection of {passage.given.shape[-1]} inputs"
            raise self._refusal(found, f"a multiple of {n} heads")
        around = [vars(module) for module in attention.modules() if projection in set(module.modules())]
        others = {counts[name] for counts in around for name in COUNTS_OF_HEADS if name in counts} - {n}
        if others:
            raise self._refusal(f"{others.pop()} attention heads", f"the {n} that the config tells")
        return passage.given

    def _has_weight_matrix(self, module: nn.Module) -> bool:
        """Whether a module holds more than vectors of the stream's width: norms do not, what mixes channels does.

        Quantised matrices may be packed into a long vector.
        """
        width = text_config(self.lm).hidden_size
        return any(held.dim() > 1 or held.numel() > width for held in (*module.parameters(), *module.buffers()))

    def _chain(self, module: nn.Module) -> list[nn.Module]:
        return self.trace.chain(module, self.layer.children())

    def _refusal(self, found: str, expected: str) -> UserError:
        return unsupported_model(self.lm, f"{found} in layer {self.index} ({type(self.layer).__name__})", expected)


def _bias(projection: nn.Module, given: Tensor) -> Tensor | None:
    """A projection's bias; where that is not there to be read, what the projection makes of nothing."""
    bias = getattr(projection, "bias", given)
    if bias is None or (isinstance(bias, Tensor) and bias.dim() == 1 and not bias.is_meta):
        return bias
    with torch.no_grad():
        at_rest = projection(torch.zeros_like(given[:1, :1])).flatten()
    return at_rest if at_rest.any() else None
