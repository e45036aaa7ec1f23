"""Any Hugging Face causal language model to its node graph and the places where its nodes can be gated.

Found by structure, with two small tables of what structure does not tell. A model that does not fit is refused with
what was found and what was expected.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from masklearn.errors import UserError, one_line
from masklearn.graph import NodeGraph
from masklearn.tiny import MODEL

EMBEDDED = "embedded"
"""The name by which the model that comes with the package is asked for."""
DTypeName = Literal["float32", "bfloat16", "float16"]

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense")
"""What families call the projection that takes all heads side by side."""
POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")
"""A norm after the MLP would undo a scale put before it, so there the gate stands behind the norm."""
MLP_EXCEPTIONS = {"opt": "fc2", "bloom": "mlp.dense_4h_to_h"}
"""Families without a child `mlp` whose output is the MLP's alone: OPT has none, Bloom's adds the residual itself."""


@dataclass(frozen=True)
class Site:
    """Where the nodes of one layer can be gated."""

    layer: nn.Module
    """The whole layer: from the residual stream that comes in to the one that goes out."""
    heads: nn.Module
    """The attention output projection: its *input* is the heads' outputs side by side."""
    mlp: nn.Module
    """The module whose *output* is what the MLP adds to the residual stream."""


@dataclass(frozen=True)
class Layout:
    """A model's node graph and the sites of its layers."""

    lm: PreTrainedModel
    graph: NodeGraph
    sites: tuple[Site, ...]

    @classmethod
    def of(cls, lm: PreTrainedModel) -> "Layout":
        """Find the sites of a model.

        Raises:
            UserError: If the model is not laid out as a decoder with one attention and one MLP in every layer.
        """
        graph = NodeGraph.of(lm)
        return cls(lm, graph, tuple(_site(lm, layer, graph) for layer in _layers(lm, graph)))

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.lm)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Last hidden states, after the final norm: (rows, tokens) to (rows, tokens, width).

        There is no attention mask. Padding stands on the right, where no real token of a causal model can see it, and
        without a mask attention takes its fast path.
        """
        return self.lm.base_model(input_ids=input_ids, use_cache=False).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of last hidden states: (..., width) to (..., vocabulary)."""
        config: Any = self.lm.config.get_text_config(decoder=True)
        logits: Tensor = self.lm.get_output_embeddings()(hidden)  # pyright: ignore[reportOptionalCall]
        scale = getattr(config, "logit_scale", None)  # Cohere
        divisor = getattr(config, "logits_scaling", None)  # Granite
        logits = logits if scale is None else logits * scale  # a factor of 1 would cost a pass over all logits
        logits = logits if divisor is None else logits / divisor
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        return logits if cap is None else cap * torch.tanh(logits / cap)


def _refuse(lm: PreTrainedModel, found: str, expected: str) -> UserError:
    return UserError(
        f"model.lm: {type(lm).__name__} cannot be gated: found {found}, expected {expected}. "
        "Choose a decoder with attention heads and an MLP in every layer"
    )


def _layers(lm: PreTrainedModel, graph: NodeGraph) -> nn.ModuleList:
    lists = [m for m in lm.modules() if isinstance(m, nn.ModuleList) and len(m) == graph.n_layers]
    if len(lists) != 1:
        raise _refuse(lm, f"{len(lists)} module lists of {graph.n_layers} layers", "one")
    return lists[0]


def _site(lm: PreTrainedModel, layer: nn.Module, graph: NodeGraph) -> Site:
    attentions = [
        child
        for name, child in layer.named_children()
        if ("attn" in name or "attention" in name) and "norm" not in name
    ]
    projections = [
        module
        for attention in attentions
        for name, module in attention.named_modules()
        if name.rpartition(".")[2] in OUTPUT_PROJECTIONS
    ]
    if len(projections) != 1:
        raise _refuse(lm, f"{len(projections)} attention output projections in {type(layer).__name__}", "one")
    width = _inputs(projections[0])
    if width % graph.n_heads:
        raise _refuse(lm, f"an attention output projection of {width} inputs", f"a multiple of {graph.n_heads} heads")
    return Site(layer, projections[0], _mlp(lm, layer))


def _mlp(lm: PreTrainedModel, layer: nn.Module) -> nn.Module:
    path = MLP_EXCEPTIONS.get(lm.config.model_type) or next((n for n in POST_NORMS if hasattr(layer, n)), "mlp")
    try:
        return layer.get_submodule(path)
    except AttributeError:
        children = ", ".join(name for name, _ in layer.named_children())
        raise _refuse(lm, f"a layer of {children}", f"one with {path}") from None


def _inputs(projection: nn.Module) -> int:
    """Width of a projection's input; GPT-2's Conv1D keeps its weight the other way round."""
    width = getattr(projection, "in_features", None) or getattr(projection, "nx", None)
    if width is None:
        raise UserError(f"model.lm: an attention output projection of type {type(projection).__name__} is not known")
    return int(width)


def _source(lm: str) -> str:
    """Folder or hub id of a model's name; a path that is not there is refused before the hub is asked."""
    if lm == EMBEDDED:
        return str(MODEL)
    looks_local = lm.startswith((".", "/", "~")) or lm.count("/") > 1
    path = Path(lm).expanduser()
    if looks_local and not path.is_dir():
        raise UserError(f"model.lm: there is no folder {lm}. Give a model's folder, a hub id, or {EMBEDDED}")
    return str(path) if path.is_dir() else lm


def _unloadable(lm: str, error: Exception) -> UserError:
    return UserError(
        f"model.lm: cannot load {lm!r} ({one_line(error)}). "
        f"Give a model's folder, a hub id that this machine can reach, or {EMBEDDED}"
    )


def load_lm(
    lm: str = EMBEDDED, revision: str | None = None, dtype: DTypeName = "float32", device: str = "cpu"
) -> PreTrainedModel:
    """A causal language model: frozen, in evaluation mode.

    Args:
        lm: Folder, hub id, or `embedded`.
        revision: Branch, tag or commit on the hub.
        dtype: Precision of the weights.
        device: Where to put it, for example `cuda`.

    Raises:
        UserError: If it cannot be found or loaded.
    """
    source = _source(lm)
    try:
        AutoConfig.from_pretrained(source, revision=revision)  # cheap, and the clearest about what is wrong
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=getattr(torch, dtype))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unloadable(lm, error) from error
    model = model.eval().requires_grad_(False)
    nn.Module.to(model, device)  # moves in place
    return model


def load_tokenizer(lm: str = EMBEDDED, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model; one without a padding token pads with its end token.

    Raises:
        UserError: If it cannot be found or loaded.
    """
    source = _source(lm)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unloadable(lm, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"
    return tokenizer


def fingerprint(lm: PreTrainedModel) -> str:
    """What tells this model from another of the same shape, in float32 and bfloat16 alike (float16 rounds otherwise).

    A hash of every parameter's name, shape, and 64 values from all over it, rounded to bfloat16.
    """
    digest = hashlib.sha256()
    for chunk in _samples(lm):
        digest.update(chunk)
    return digest.hexdigest()[:16]


def _samples(lm: PreTrainedModel) -> Iterator[bytes]:
    for name, parameter in sorted(lm.named_parameters()):
        flat = parameter.detach().flatten()
        values = flat[:: max(1, len(flat) // 64)][:64].to(torch.bfloat16).float()
        yield f"{name} {tuple(parameter.shape)}".encode()
        yield values.cpu().numpy().tobytes()
