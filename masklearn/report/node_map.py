"""The layer x head map of a mask: layers upwards, heads to the right, the MLP in the last column."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import FigureBase
from torch import Tensor

from masklearn.graph import NodeGraph
from masklearn.report.study_figure import svg_parts
from masklearn.report.style import INK, SMALL_FONT, empty_figure, styled

SHARE_COLORS = LinearSegmentedColormap.from_list("share", ["#e9eef2", "#8fbfdc", "#0072b2", "#00304d"])
"""Colour of a node by the share of masks that keep it, from 0 to 1."""
MAX_LAYER_LABELS = 6
"""Labelled layers, about."""


def draw_node_map(axes: Axes, graph: NodeGraph, share: Tensor | np.ndarray) -> None:
    """Draw one map.

    Args:
        axes: Axes to draw on.
        graph: The nodes.
        share: Share of masks that keep each node, in [0, 1]; 0 or 1 for a single mask. Shape (nodes,).
    """
    cells = np.asarray(share).reshape(graph.n_layers, graph.n_heads + 1)
    n_layers, n_columns = cells.shape
    axes.imshow(  # pixels, which take a tenth of the bytes of as many rectangles
        cells, cmap=SHARE_COLORS, vmin=0, vmax=1, origin="lower", extent=(0, n_columns, 0, n_layers), aspect="auto",
        interpolation="none",
    )  # fmt: skip
    axes.hlines(range(1, n_layers), 0, n_columns, colors="white", linewidth=0.4)
    axes.vlines(range(1, n_columns), 0, n_layers, colors="white", linewidth=0.4)
    axes.axvline(graph.n_heads, color=INK, linewidth=0.6)
    heads = range(0, graph.n_heads, -(-graph.n_heads // 2))
    layers = range(0, graph.n_layers, max(1, graph.n_layers // MAX_LAYER_LABELS))
    head_labels = [*(f"h{head}" for head in heads), "mlp"]
    axes.set_xticks([*(head + 0.5 for head in heads), graph.n_heads + 0.5], head_labels, fontsize=SMALL_FONT)
    axes.set_yticks([layer + 0.5 for layer in layers], [str(layer) for layer in layers], fontsize=SMALL_FONT)
    axes.tick_params(length=0, pad=1)
    axes.spines[:].set_visible(False)


def map_height(graph: NodeGraph, limit: float = 1.5) -> float:
    """Return the height in inches of a map with its labels, at most `limit`."""
    return min(limit, 0.42 + 0.09 * graph.n_layers)


def share_bar(figure: FigureBase, axes: Sequence[Axes], label: str) -> None:
    """Put the colour scale of maps below them."""
    mappable = ScalarMappable(Normalize(0, 1), SHARE_COLORS)
    bar = figure.colorbar(mappable, ax=axes, location="bottom", shrink=0.5, aspect=30, pad=0.02)
    bar.set_label(label, fontsize=SMALL_FONT)
    bar.ax.tick_params(labelsize=SMALL_FONT, length=2)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def node_map_svg(graph: NodeGraph, share: Tensor) -> str:
    """Render one map as a standalone SVG on white, as wide as its container.

    Args:
        graph: The nodes.
        share: Share of masks that keep each node, in [0, 1]. Shape (nodes,).
    """
    with styled():
        figure = empty_figure(0.5 + 0.13 * (graph.n_heads + 1), 0.3 + 0.13 * graph.n_layers)
        axes = figure.subplots()
        draw_node_map(axes, graph, share)
        axes.set_ylabel("layer", fontsize=SMALL_FONT)
        head, rest = svg_parts(figure, "node-map", facecolor="white")
    return f'{head} xmlns:xlink="http://www.w3.org/1999/xlink" width="100%">{rest}'
