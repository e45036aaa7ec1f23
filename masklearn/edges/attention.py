"""An attention function for transformers' registry that puts a gate on every (head, target, source) after the softmax.

It is registered with the attention *and* the mask interface. With the first alone, transformers passes no mask, and the
attention is not causal. Gates come from a context, never from the keywords of a forward, which swallow what they do not
know. Every layer must read its gates exactly once in a forward.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from masklearn.errors import UserError, one_line
from masklearn.models import require_evaluation_mode, running_eagerly

NAME = "masklearn_edges"
"""Name of the attention function in transformers' registry."""
SELECTED_TOKENS = ("indices", "block_indices")
"""Keywords by which sparse attention, such as that of DeepSeek V3.2, says which tokens each token attends to."""
OTHER_GRAPH = "Choose --model.graph nodes, or another family, such as llama, qwen2, gemma3, olmo2, gpt2 or gpt_neox"


@dataclass(frozen=True)
class AttentionRecord:
    """What one layer's attention did in a forward without gates."""

    pattern: Tensor
    """Weights after the softmax, shape (rows, heads, targets, sources)."""
    values: Tensor
    """Values, repeated to one for each query head, shape (rows, heads, sources, head width)."""
    allowed: Tensor
    """Whether a source may be read at a target. Boolean, shape (targets, sources)."""


@dataclass
class AttentionReads:
    """The gates of one forward, and which layers have read them."""

    gates: Tensor | None
    """Shape (rows, layers, heads, targets, sources); None for all open."""
    counts: Counter[int] = field(default_factory=Counter)
    is_sparse: bool = False
    """Whether a layer asked to attend to selected tokens only, which the eager function does not."""
    records: dict[int, AttentionRecord] | None = None
    """By layer, if the forward is to be recorded."""
    patterns: dict[int, Tensor] | None = None
    """Weights after the softmax to use in place of the forward's own, by layer; shape (1, heads, targets, sources)."""


_reads: ContextVar[AttentionReads] = ContextVar("masklearn_edges")


def gated_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Attend as the model's own eager function does, with the weights after its softmax multiplied by gates.

    The model's own function makes the weights. So scaling, soft caps, sinks and precision are those of its family. The
    weights are not normalised again.
    """
    reads, layer = _reads.get(), int(module.layer_idx)  # pyright: ignore[reportArgumentType]
    reads.is_sparse |= any(kwargs.get(name) is not None for name in SELECTED_TOKENS)
    output, pattern = _eager_function(module)(module, query, key, value, attention_mask, **kwargs)
    reads.counts[layer] += 1
    values = value.repeat_interleave(pattern.shape[1] // value.shape[1], dim=1)
    if reads.records is not None:
        reads.records[layer] = AttentionRecord(pattern, values, _allowed(attention_mask, pattern))
    if reads.gates is not None:
        pattern = pattern if reads.patterns is None else reads.patterns[layer]
        gated = pattern * reads.gates[:, layer].to(pattern.dtype)
        output = (gated @ values).transpose(1, 2).contiguous()
    return output, pattern


def _eager_function(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The eager function of an attention's family: that of its class, or of the one it is derived from."""
    for kind in type(module).__mro__:
        if function := vars(sys.modules[kind.__module__]).get("eager_attention_forward"):
            return function
    raise UserError(
        f"model.graph edges: {type(module).__name__} and the classes it is derived from have no eager attention "
        f"function, into whose weights gates go. {OTHER_GRAPH}"
    )


def _allowed(mask: Tensor | None, pattern: Tensor) -> Tensor:
    """Which sources a mask of large negative numbers leaves, shape (targets, sources)."""
    if mask is None:
        return torch.ones_like(pattern[0, 0], dtype=torch.bool).tril()
    return mask[0, 0, :, : pattern.shape[-1]] > torch.finfo(mask.dtype).min / 2


@contextmanager
def attention_gates(
    lm: PreTrainedModel,
    n_layers: int,
    gates: Tensor | None,
    record: bool,
    patterns: dict[int, Tensor] | None = None,
) -> Iterator[AttentionReads]:
    """Let a model's attention read gates while the context is open, without compiled code; one forward is expected.

    Args:
        lm: The model; its attention function is restored at the end.
        n_layers: Its layers.
        gates: Shape (rows, layers, heads, targets, sources); None for all open.
        record: Whether to keep patterns and values.
        patterns: Weights to gate in place of the forward's own, by layer.

    Raises:
        UserError: If the model's attention does not go through transformers' interface, or is sparse; or if the model
            is in training mode.
    """
    require_evaluation_mode(lm)
    AttentionInterface.register(NAME, gated_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    reads = AttentionReads(gates, records={} if record else None, patterns=patterns)
    token = _reads.set(reads)
    try:
        with running_eagerly(), attention_function(lm, NAME):
            yield reads
    finally:
        _reads.reset(token)
    if reads.is_sparse:
        raise UserError(
            f"model.graph edges: the attention of {type(lm).__name__} leaves each token a selection of the tokens, "
            f"which gates would not follow. {OTHER_GRAPH}"
        )
    if reads.counts != Counter(range(n_layers)):
        once = sum(count == 1 for count in reads.counts.values())
        raise _bypassed(lm, f"{once} of {n_layers} layers read their gates once")


@contextmanager
def attention_function(lm: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model use the attention function of this name while the context is open.

    Raises:
        UserError: If the model does not support it.
    """
    parts = {name: getattr(lm.config, name, None) for name in lm.config.sub_configs}
    before = {name: used for name, part in parts.items() if (used := getattr(part, "_attn_implementation", None))}
    before |= {"": lm.config._attn_implementation or "eager"}
    try:
        lm.set_attn_implementation(name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise _bypassed(lm, one_line(error)) from error
    try:
        yield
    finally:
        lm.set_attn_implementation(before)


def _bypassed(lm: PreTrainedModel, found: str) -> UserError:
    return UserError(
        f"model.graph edges: the attention of {type(lm).__name__} does not go through transformers' attention "
        f"interface, so its edges cannot be gated ({found}). {OTHER_GRAPH}"
    )
