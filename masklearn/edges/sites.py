"""Find where the residual and MLP edges of every layer can be gated, by structure."""

from dataclasses import dataclass

from torch import Tensor, nn

from masklearn.errors import UserError
from masklearn.models import Layout
from masklearn.models.diagnostics import dummy_input_ids
from masklearn.models.tracing import Trace


@dataclass(frozen=True)
class BlockSites:
    """Where the edges into the vertices of one layer can be gated."""

    layer: nn.Module
    """Its input and its output are the residual stream."""
    first_readers: tuple[nn.Module, ...]
    """The modules that read the layer's input: a norm, or the attention; in a parallel layer, the MLP's as well."""
    second_reader: nn.Module | None
    """The module that reads the stream after the attention: a norm, or the MLP; None in a parallel layer."""
    projection: nn.Module
    """The attention's output projection."""
    projection_bias: Tensor | None
    attention_end: nn.Module
    """The module whose output the attention adds to the stream: the norm after the attention, if there is one."""
    attention_norms: tuple[nn.Module, ...]
    """Modules between projection and stream, at most one of them a norm."""
    mlp_end: nn.Module
    """The module whose output the MLP adds to the stream."""


@dataclass(frozen=True)
class ModelSites:
    """The sites of every layer, and the norm that reads the last level."""

    blocks: tuple[BlockSites, ...]
    final_norm: nn.Module | None
    parallel: bool
    """Whether attention and MLP of every layer both read the layer's input."""


def no_edges(lm: nn.Module, found: str, expected: str) -> UserError:
    """The error for a model that cannot be taken apart into edges."""
    return UserError(
        f"model.graph edges: {type(lm).__name__} cannot be taken apart into edges: found {found}, expected {expected}. "
        "Choose --model.graph nodes, or another family"
    )


def find_sites(layout: Layout) -> ModelSites:
    """Find the sites with one forward of a few tokens.

    Raises:
        UserError: If some layers are not built as one attention and one MLP that each add to a stream.
    """
    around = list(layout.body.modules())
    trace = Trace.of(layout.lm, around, dummy_input_ids(layout.lm, 1))
    blocks = tuple(_block(layout, trace, index) for index in range(layout.graph.n_layers))
    parallel = {block.second_reader is None for block in blocks}
    if len(parallel) > 1:
        raise no_edges(layout.lm, "sequential and parallel layers", "one kind of layer")
    last = trace.single_call(layout.sites[-1].layer)
    inside = {part for site in layout.sites for part in site.layer.modules()}
    readers = [
        module
        for module in around
        if last and module not in inside and (call := trace.single_call(module)) and last.feeds(call)
    ]
    return ModelSites(blocks, readers[0] if readers else None, parallel.pop())


def _block(layout: Layout, trace: Trace, index: int) -> BlockSites:
    site = layout.sites[index]
    whole = trace.single_call(site.layer)
    children = {child: call for child in site.layer.children() if (call := trace.single_call(child))}
    first = tuple(child for child, call in children.items() if whole and call.input is whole.input)
    second = [
        child
        for child, call in children.items()
        if child not in first and not any(other.output is call.input for other in children.values())
    ]
    if not first or len(second) > 1:
        found = f"{len(first)} modules that read the input of layer {index}, {len(second)} that read it later"
        raise no_edges(layout.lm, found, "an attention and an MLP that add to a residual stream")
    chain = trace.chain(site.attention_branch, site.layer.children())
    norms = tuple(module for module in chain[1:] if (call := trace.single_call(module)) and not call.is_identity)
    return BlockSites(
        site.layer, first, second[0] if second else None, site.output_projection, site.projection_bias,
        chain[-1], norms, site.mlp,
    )  # fmt: skip
