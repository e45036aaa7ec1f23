"""Shared prefixes: forwards that agree in their first layers start from the residual stream of one of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from masklearn.models.diagnostics import differs, dummy_input_ids
from masklearn.models.forward_override import Forward, first_output, override_forward, with_first_output
from masklearn.models.layout import Layout

MAX_PREFIX_BYTES = 2**30
"""Streams of a batch are kept after every layer if they take no more memory than this, otherwise after fewer layers."""


@dataclass(frozen=True)
class Prefix:
    """What the layers of one forward put out."""

    streams: Mapping[int, Tensor]
    """The residual stream that enters a layer, by the number of that layer, shape (inputs, tokens, width)."""
    outputs: tuple[Any, ...]
    """The whole output of every layer with its stream left out: what a skipped layer returns besides the stream."""

    def select(self, inputs: slice) -> "Prefix":
        """The prefix of some of the inputs."""
        return Prefix({layer: stream[inputs] for layer, stream in self.streams.items()}, self.outputs)

    def nearest_start(self, layer: int) -> int:
        """The last layer up to this one whose stream is kept; 0 if none is."""
        return max((start for start in self.streams if start <= layer), default=0)


@contextmanager
def recording(layout: Layout) -> Iterator[list[Any]]:
    """Collect the output of every layer, in forward order, while the context is open."""
    outputs: list[Any] = []

    def record(forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            outputs.append(output)
            return output

        return run

    with ExitStack() as stack:
        for site in layout.sites:
            stack.enter_context(override_forward(site.layer, record))
        yield outputs


def prefix_of(layout: Layout, outputs: list[Any]) -> Prefix | None:
    """The prefix that a recorded forward gives; None if layers pass on more tensors than the residual stream."""
    rests = tuple(with_first_output(output, None) for output in outputs)
    if any(isinstance(part, Tensor) for rest in rests if rest is not None for part in rest):
        return None
    streams = [first_output(output) for output in outputs]
    stride = -(-sum(stream.nbytes for stream in streams) // MAX_PREFIX_BYTES)
    kept = range(stride, len(layout.sites), stride)
    # a copy, because a later layer may add to its input in place
    return Prefix({layer: streams[layer - 1].clone() for layer in kept}, rests)


@contextmanager
def starting_at(layout: Layout, prefix: Prefix, layer: int, repeats: int) -> Iterator[None]:
    """Let every forward of the model begin in a layer while the context is open; the layers before it are skipped.

    Args:
        layout: The model's layout.
        prefix: A prefix of the same inputs.
        layer: The first layer to run; its stream is kept in the prefix.
        repeats: How many times the forward repeats the inputs.
    """
    stream = prefix.streams[layer].repeat(repeats, 1, 1)

    def skip(output: Any) -> Callable[[Forward], Forward]:
        return lambda _: lambda *args, **kwargs: with_first_output(output, stream)

    with ExitStack() as stack:
        for site, output in zip(layout.sites[:layer], prefix.outputs, strict=False):
            stack.enter_context(override_forward(site.layer, skip(output)))
        yield


class _Stopped(Exception):
    """A forward has run all layers that are needed."""


@contextmanager
def stopped_before(layout: Layout, layer: int) -> Iterator[list[Tensor]]:
    """Stop the forward in the context before a layer, and collect the residual stream that enters it.

    Args:
        layout: The model's layout.
        layer: The first layer that is not run; not the first of the model.
    """
    streams: list[Tensor] = []

    def stop(forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            streams.append(first_output(forward(*args, **kwargs)))
            raise _Stopped

        return run

    with override_forward(layout.sites[layer - 1].layer, stop), suppress(_Stopped):
        yield streams


@torch.no_grad()
def can_share_prefixes(layout: Layout) -> bool:
    """Whether forwards that start in a later layer end as whole forwards do: tried on a few tokens, in every layer.

    Layers that read more than the residual stream, such as the keys of an earlier layer, fail this.
    """
    ids = dummy_input_ids(layout.lm, 2)
    try:
        with recording(layout) as outputs:
            full = layout.hidden(ids).clone()
        prefix = prefix_of(layout, outputs)
        if prefix is None:
            return False
        for layer in prefix.streams:
            with starting_at(layout, prefix, layer, 1):
                if differs(layout.lm, layout.hidden(ids), full, layout.graph.n_layers):
                    return False
    except Exception:  # a layer of an unknown kind may raise anything
        return False
    return True
