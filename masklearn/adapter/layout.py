"""A model's node graph and the places where its nodes can be gated: found by structure, with small tables of exceptions.

A model that does not fit is refused with what was found and what was expected. What is found here is put to the test,
by other means, in `masklearn.check`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from masklearn.adapter.loading import fingerprint
from masklearn.adapter.surgery import replaced
from masklearn.adapter.trace import Trace
from masklearn.errors import UserError, one_line
from masklearn.graph import NodeGraph

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
PROBE = 4
"""Tokens of the short texts by which a model is looked at."""
ROUNDING = 8
"""Roundings that an output may be off by."""


@dataclass(frozen=True)
class Site:
    """Where the nodes of one layer can be gated."""

    layer: nn.Module
    """The whole layer: from the residual stream that comes in to the one that goes out."""
    heads: nn.Module
    """The attention output projection: its *input* is the heads' outputs side by side."""
    mlp: nn.Module
    """The module whose *output* is what the MLP adds to the residual stream: a norm behind the MLP, where there is one."""
    attention_norm: nn.Module | None
    """The norm behind an attention without output bias, where there is one: it undoes a scale that all heads share."""
    branches: tuple[nn.Module, nn.Module]
    """The modules of attention and MLP as a whole, norms behind them left out."""


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
            UserError: If the model is not laid out as a decoder with one attention and one MLP in every layer.
        """
        graph = NodeGraph.of(lm)
        _require_attention(lm)
        layers, bodies = _layers(lm, graph), _bodies(lm)
        try:
            trace = Trace.of(lm, [*bodies, *(part for layer in layers for part in layer.modules())], probe(lm, 2))
        except Exception as error:  # whatever a model of an unknown kind may raise
            raise _unreadable(lm, error) from error
        _require_causal(lm, trace.logits)
        body = next((body for body in bodies if trace.once(body)), None)
        if body is None:
            raise refusal(lm, "no body apart from its output head", "one")
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

    def to(self, device: torch.device) -> None:
        """Move the model, and see that it can be read there.

        Raises:
            UserError: If the device lacks the precision of the model.
        """
        try:
            nn.Module.to(self.lm, device)
            with torch.no_grad():
                self.hidden(probe(self.lm))
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise _unreadable(self.lm, error) from error

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Last hidden states, after the final norm: (rows, tokens) to (rows, tokens, width).

        There is no attention mask. Padding stands on the right, where no real token of a causal model can see it, and
        without a mask attention takes its fast path.
        """
        return self.body(input_ids=input_ids, use_cache=False).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of last hidden states: (..., width) to (..., vocabulary).

        By the model's own forward, with the hidden states in place of what its body would have put out, so that
        whatever it does to logits (scales, caps, cuts) is done.
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


def probe(lm: PreTrainedModel, rows: int = 1) -> Tensor:
    """A short text in all rows, but for the last token of the last row: (rows, tokens)."""
    vocabulary = lm.config.get_text_config(decoder=True).vocab_size
    ids = (torch.arange(3, 3 + PROBE, device=lm.device) % vocabulary).repeat(rows, 1)
    ids[1:, -1][-1:] = ids[0, 0]
    return ids


def apart(lm: PreTrainedModel, found: Tensor, expected: Tensor, layers: int = 1) -> bool:
    """Whether two outputs of a model differ by more than rounding, which adds up like chance over layers."""
    gap, norm = (difference.float().norm() for difference in (found - expected, expected))
    return bool(gap > layers**0.5 * rounding(lm) * norm)


def rounding(lm: PreTrainedModel) -> float:
    """What the output of a layer may be off by, relative to its norm, in the precision of the model."""
    return ROUNDING * torch.finfo(lm.dtype).eps


def refusal(lm: PreTrainedModel, found: str, expected: str) -> UserError:
    """The error of a model that cannot be gated: what was found in it, and what was expected."""
    return UserError(
        f"model.lm: {type(lm).__name__} cannot be gated: found {found}, expected {expected}. "
        "Choose a decoder with attention heads and an MLP in every layer"
    )


def _unreadable(lm: PreTrainedModel, error: Exception) -> UserError:
    if lm.dtype == torch.float32:
        return refusal(lm, f"that it cannot read a short text ({one_line(error)})", "a causal language model")
    dtype = str(lm.dtype).removeprefix("torch.")
    return UserError(
        f"model.lm: {type(lm).__name__} cannot read a short text in {dtype} on this {lm.device.type} ({one_line(error)}). "
        "Choose another precision, for example --model.dtype float32"
    )


def _require_attention(lm: PreTrainedModel) -> None:
    """Refuse what its config tells to be something else than layers of attention heads."""
    config: Any = lm.config.get_text_config(decoder=True)
    expected = "attention heads in every layer"
    if config.model_type in NO_HEADS:
        raise refusal(lm, NO_HEADS[config.model_type], expected)
    kinds = getattr(config, "layer_types", None) or []
    others = sorted({kind for kind in kinds if kind not in SOFTMAX})
    if others:
        n = sum(kind in others for kind in kinds)
        raise refusal(lm, f"{', '.join(others)} in {n} of {len(kinds)} layers", expected)


def _require_causal(lm: PreTrainedModel, logits: Tensor) -> None:
    """Refuse a model whose predictions for two texts differ before the texts do."""
    if logits[:, :-1].isfinite().all() and apart(lm, logits[1, :-1], logits[0, :-1], len(_layers(lm, NodeGraph.of(lm)))):
        raise refusal(lm, "predictions that depend on later tokens", "a causal language model")


def _bodies(lm: PreTrainedModel) -> list[nn.Module]:
    """What may be the body of a model, the likeliest first: OPT calls its decoder past the model that holds it."""
    found = [lm.base_model, lm.get_decoder(), getattr(lm, "model", None)]
    return [module for module in found if isinstance(module, nn.Module) and module is not lm]


def _layers(lm: PreTrainedModel, graph: NodeGraph) -> nn.ModuleList:
    lists = [m for m in lm.modules() if isinstance(m, nn.ModuleList)]
    inner = {part for some in lists for part in some.modules() if part is not some}
    lists = [m for m in lists if len(m) == graph.n_layers and m not in inner]
    if len(lists) > 1:  # an encoder of images beside the decoder
        lists = [m for m in lists if m in set(lm.get_decoder().modules())]
    if len(lists) != 1:
        raise refusal(lm, f"{len(lists)} module lists of {graph.n_layers} layers", "one")
    return lists[0]


def _matrices(module: nn.Module) -> bool:
    """Whether a module holds more than vectors: norms and scales do not, whatever mixes channels or tokens does."""
    return any(weights.dim() > 1 for weights in (*module.parameters(), *module.buffers()))


@dataclass(frozen=True)
class _Finder:
    """The search for the sites of one layer."""

    lm: PreTrainedModel
    graph: NodeGraph
    trace: Trace
    index: int
    layer: nn.Module

    def refusal(self, found: str, expected: str) -> UserError:
        return refusal(self.lm, f"{found} in layer {self.index} ({type(self.layer).__name__})", expected)

    def site(self) -> Site:
        children = {name: child for name, child in self.layer.named_children() if _matrices(child)}
        attention = self._attention({name: child for name, child in children.items() if "att" in name})
        mlp = self._mlp({name: child for name, child in children.items() if child is not attention})
        ends = BRANCH_ENDS.get(self.lm.config.model_type, {})
        branches = tuple(
            self.layer.get_submodule(ends[kind]) if kind in ends else branch
            for kind, branch in (("attention", attention), ("mlp", mlp))
        )
        heads = branches[0] if "attention" in ends else self._projection(attention)
        behind, after_mlp = (self.trace.chain(branch, self.layer.children()) for branch in branches)
        norms = [m for m in behind[1:] if (p := self.trace.once(m)) and not p.untouched]
        biased = getattr(heads, "bias", None) is not None
        self._require_heads(attention, heads)
        return Site(self.layer, heads, after_mlp[-1], None if biased or not norms else norms[-1], (branches[0], branches[1]))

    def _attention(self, found: dict[str, nn.Module]) -> nn.Module:
        if len(found) != 1:
            names = f" ({', '.join(found)})" if found else ""
            raise self.refusal(f"{len(found)} attentions{names}", "one")
        return next(iter(found.values()))

    def _mlp(self, found: dict[str, nn.Module]) -> nn.Module:
        """The module at the end of the MLP, which may be one child of the layer or several in a row."""
        if not found:
            raise self.refusal("no MLP", "one")
        row = self.trace.chain(next(iter(found.values())), self.layer.children())
        last = [module for module in row if module in found.values()]
        if len(last) != len(found) or any(weights.dim() > 1 for weights in self.layer.parameters(recurse=False)):
            raise self.refusal(f"attention and {', '.join(found)}", "attention and one MLP")
        return last[-1]

    def _projection(self, attention: nn.Module) -> nn.Module:
        end = self.trace.end(attention)
        if end is None or not _matrices(end):
            at_end = "no part" if end is None else f"a {type(end).__name__}"
            raise self.refusal(f"{at_end} that makes the output of {type(attention).__name__}", "an output projection")
        return end

    def _require_heads(self, attention: nn.Module, projection: nn.Module) -> None:
        n = self.graph.n_heads
        passage = self.trace.once(projection)
        if passage is None or not isinstance(passage.given, Tensor):
            raise self.refusal("an attention output projection that is not passed once", "one pass in a forward")
        if passage.given.shape[-1] % n:
            raise self.refusal(
                f"an attention output projection of {passage.given.shape[-1]} inputs", f"a multiple of {n} heads"
            )
        around = [vars(module) for module in attention.modules() if projection in set(module.modules())]
        own = {counts[name] for counts in around for name in COUNTS_OF_HEADS if name in counts}
        if own - {n}:
            raise self.refusal(f"{min(own - {n})} attention heads", f"the {n} that the config tells")
