"""A model's node graph, the places where its nodes can be gated, and its forward in two halves: body and head."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, masking_utils

from masklearn.errors import UserError
from masklearn.graph import NodeGraph
from masklearn.models.diagnostics import differs, dummy_input_ids, failed_forward, text_config, unsupported_model
from masklearn.models.discovery import LayerSites, SiteFinder, candidate_bodies, find_layers, require_attention_heads
from masklearn.models.forward_override import override_forward
from masklearn.models.loading import fingerprint
from masklearn.models.placement import move_model
from masklearn.models.tracing import Trace
from masklearn.models.unwrapping import running_eagerly

WHOLE_OR_WINDOWS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Entries of a config's `layer_types` with which a token attends to all tokens before it, or to those in a window."""
WINDOW_NAMES = ("sliding_window", "attention_chunk_size", "window_size", "index_topk")
"""Attributes in which a config stores how many tokens a token attends to."""


@dataclass(frozen=True)
class Layout:
    """A model's node graph and the sites of its layers."""

    lm: PreTrainedModel
    graph: NodeGraph
    sites: tuple[LayerSites, ...]
    """One for each layer."""
    body: nn.Module
    """The module that puts out the last hidden states; the model's head turns them into logits."""
    module_ids: tuple[int, ...]
    """Identities of all modules of the model."""

    @classmethod
    def of(cls, lm: PreTrainedModel) -> "Layout":
        """Find the sites of a model, with one forward of a few tokens.

        Raises:
            UserError: If the model is not a causal decoder with one attention and one MLP in every layer, or if it is
                in training mode.
        """
        require_evaluation_mode(lm)
        graph = NodeGraph.of(lm)
        require_attention_heads(lm)
        layers, bodies = find_layers(lm, graph), candidate_bodies(lm)
        modules = [*bodies, *(module for layer in layers for module in layer.modules())]
        try:
            with running_eagerly():
                trace = Trace.of(lm, modules, dummy_input_ids(lm, 2))
        except Exception as error:  # an unknown kind of model may raise anything
            raise failed_forward(lm, error) from error
        same, other = trace.logits[:, :-1]  # of two rows that differ in their last token only
        if same.isfinite().all() and differs(lm, same, other, graph.n_layers):
            raise unsupported_model(lm, "predictions that depend on later tokens", "a causal language model")
        body = next((body for body in bodies if trace.single_call(body)), None)
        if body is None:
            raise unsupported_model(lm, "no body apart from its output head", "one")
        sites = tuple(SiteFinder(lm, graph, trace, i, layer).find() for i, layer in enumerate(layers))
        return cls(lm, graph, sites, body, tuple(map(id, lm.modules())))

    @property
    def fingerprint(self) -> str:
        """The model's fingerprint: see `masklearn.models.fingerprint`."""
        return fingerprint(self.lm)

    @property
    def context(self) -> int | None:
        """Context length of the model in tokens; None if its config does not say."""
        return getattr(text_config(self.lm), "max_position_embeddings", None)

    @property
    def shortest_window(self) -> float:
        """Tokens up to which a text is one in which every token attends to all before it, by the model's config."""
        config = text_config(self.lm)
        if set(getattr(config, "layer_types", None) or ()) - WHOLE_OR_WINDOWS:
            return 0
        windows = (getattr(config, name, None) for name in WINDOW_NAMES)
        return min((window for window in windows if isinstance(window, int) and window > 0), default=math.inf)

    @property
    def n_embeddings(self) -> int:
        """Rows of the embedding: tokens that the model can read."""
        return self.lm.get_input_embeddings().get_parameter("weight").shape[0]

    @property
    def current(self) -> bool:
        """Whether the model has the modules that it had; False once some were replaced, or wrapped by an adapter."""
        return self.module_ids == tuple(map(id, self.lm.modules()))

    def move(self, device: torch.device) -> None:
        """Move the model to a device and run it there once.

        Raises:
            UserError: If there is no such device, or if the device does not support the model's dtype.
        """
        move_model(self.lm, device)
        try:
            with torch.no_grad():
                self.hidden(dummy_input_ids(self.lm, 1))
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise failed_forward(self.lm, error) from error

    def require_text(self, input_ids: Tensor) -> None:
        """Refuse what is not the tokens of one text, shape (tokens,), that the model can read.

        Raises:
            UserError: What it is instead.
        """
        if not isinstance(input_ids, Tensor) or input_ids.is_floating_point() or input_ids.dim() != 1:
            found = f"shape {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids).__name__
            raise UserError(
                f"the tokens of one text are expected, a tensor of whole numbers of shape (tokens,), not {found}. "
                "Of a tokenizer's output that is input_ids[0]"
            )
        if not (1 <= len(input_ids) <= (self.context or len(input_ids))):
            raise UserError(f"a text has {len(input_ids)} tokens; the model reads 1 to {self.context}. Truncate it")
        low, high = input_ids.amin().item(), input_ids.amax().item()
        if low < 0 or high >= self.n_embeddings:
            unknown = low if low < 0 else high
            raise UserError(f"there is no token {unknown} among the model's {self.n_embeddings}. Use its own tokenizer")

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Return the last hidden states, after the final norm: (rows, tokens) to (rows, tokens, width).

        There is no attention mask. Padding is on the right, where no real token of a causal model attends to it, and
        attention without a mask takes its fast path.
        """
        with _no_read_backs(self.body):
            return self.body(input_ids=input_ids, use_cache=False).last_hidden_state

    def unembed(self, hidden: Tensor) -> Tensor:
        """Return the logits of last hidden states: (..., width) to (..., vocabulary).

        Runs the model's own forward with the hidden states in place of its body's output. So it includes whatever the
        family does to logits, such as scaling or soft-capping.
        """
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        with override_forward(self.body, lambda _: lambda *args, **kwargs: _BodyOutput(flat)):
            logits = self.lm(input_ids=torch.zeros(flat.shape[:2], dtype=torch.long, device=flat.device)).logits
        return logits.reshape(*hidden.shape[:-1], -1)


def require_evaluation_mode(lm: nn.Module) -> None:
    """Refuse a model in training mode: one with dropout, or with a module that may call its function.

    Raises:
        UserError: What to call.
    """
    calls = (
        module for module in lm.modules() if isinstance(module, nn.Dropout) or any(True for _ in module.children())
    )
    if any(module.training for module in calls):
        raise UserError("the model is in training mode, in which dropout acts at random. Call lm.eval() first")


@contextmanager
def _no_read_backs(body: nn.Module) -> Iterator[None]:
    """Leave out two checks of transformers that read input ids or positions back from the device.

    One asks whether rows hold several packed texts, the other warns of padding without an attention mask.
    """
    unchecked = {(masking_utils, "find_packed_sequence_indices"), (body, "warn_if_padding_and_no_attention_mask")}
    with ExitStack() as stack:
        for owner, name in unchecked:
            if hasattr(owner, name):
                stack.enter_context(_disabled(owner, name))
        yield


@contextmanager
def _disabled(owner: Any, name: str) -> Iterator[None]:
    """Let a function of a module or an object do nothing while the context is open."""
    is_own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, lambda *_: None)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


class _BodyOutput:
    """Stands in for the output of a model's body: has last hidden states, and None for every other attribute."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None
