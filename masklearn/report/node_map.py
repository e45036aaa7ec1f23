"""The map of a model's nodes: layers upwards; heads and then the MLP to the right."""

import io

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from masklearn.graph import NodeGraph

SHARE_COLOURS = LinearSegmentedColormap.from_list("share", ["#eeeeee", "#0072b2"])
"""From closed in all masks to open in all masks."""


def node_map_svg(graph: NodeGraph, share: Tensor) -> str:
    """The map as a standalone SVG picture; the same values give the same characters.

    Args:
        graph: The nodes.
        share: For every node, the share of masks that keep it, in [0, 1]. Shape (nodes,).
    """
    with matplotlib.rc_context({"svg.hashsalt": "node-map"}):
        figure = Figure(figsize=(0.5 + 0.14 * (graph.n_heads + 1), 0.5 + 0.14 * graph.n_layers), layout="constrained")
        axes = figure.subplots()
        axes.pcolormesh(graph.by_layer(share).numpy(), cmap=SHARE_COLOURS, vmin=0, vmax=1, edgecolors="white")
        axes.set_axis_off()
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
