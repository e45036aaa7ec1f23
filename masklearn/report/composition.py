"""Figures of which nodes subgraphs keep: parts of the model, maps of node use, and its inequality."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from masklearn.density.composition import lorenz
from masklearn.density.measurements import MATCHED_KIND, MaskMeasurements
from masklearn.density.tables import Tables, select_rows
from masklearn.graph import NodeGraph
from masklearn.report.node_map import draw_node_map, map_height, share_bar
from masklearn.report.study_figure import StudyFigure
from masklearn.report.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    LINE,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SMALL_FONT,
    count_nodes,
    empty_figure,
    legend_below,
    line_style,
    single_axes,
    size_axis,
)

PART_STYLES = {
    "heads": (BLUE, "o"), "attention": (BLUE, "o"), "MLPs": (ORANGE, "s"), "residual": (GREEN, "^"),
    "quarter 1": (SKY, "o"), "quarter 2": (GREEN, "s"), "quarter 3": (PURPLE, "^"), "quarter 4": (RED, "D"),
}  # fmt: skip
"""Colour and marker of each part of the model."""
PART_FIGURES = {
    "kinds": ("heads", "attention", "MLPs", "residual"),
    "depth": tuple(f"quarter {i}" for i in (1, 2, 3, 4)),
}
"""Parts by figure."""
MAX_MAP_SIZES = 4
"""Sizes at which node use is drawn."""
SIZE_COLORS = (RED, ORANGE, GREEN, BLUE)
"""Colours of those sizes."""
OTHER_LINES = ("--", ":", "-.")
"""Lines of kinds of subgraphs other than the bank's own."""


def composition(measured: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    """Draw the relative shares of heads and MLPs, and of the quarters of the depth, against size."""
    table = select_rows(tables["composition"], bank=measured.name)
    for name, all_parts in PART_FIGURES.items():
        parts = [part for part in all_parts if part in set(table["part"])]
        others = _other_kinds(measured, name)
        figure, axes = single_axes()
        axes.axhline(1, color=LINE, linewidth=1, label="the whole model")
        for part in parts:
            _draw_part(axes, measured.own_kind, others, select_rows(table, part=part), part)
        for kind, line in others.items():
            axes.plot([], [], color=GREY, linewidth=0.8, linestyle=line, label=kind)
        size_axis(axes, measured.fractions[0], measured.unit)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of the subgraph over\nshare of the model")
        legend_below(figure, axes, 2)
        alt = (
            f"Relative shares of {', '.join(parts)} in {measured.own_kind} subgraphs of {measured.name} against size "
            f"in {measured.unit}, with those of {', '.join(others)}; 1 is the share in the whole model"
        )
        yield StudyFigure(f"composition-{name}", "composition", measured.name, alt, figure)


def _other_kinds(measured: MaskMeasurements, figure: str) -> dict[str, str]:
    """Return the line of each kind of subgraph to compare with, but those that have the same shares by construction."""
    alike = {measured.own_kind, MATCHED_KIND if (figure, measured.unit) == ("kinds", "nodes") else None}
    return dict(zip((kind for kind in measured.compared_kinds if kind not in alike), OTHER_LINES, strict=False))


def _draw_part(axes: Axes, own_kind: str, others: dict[str, str], table: pd.DataFrame, part: str) -> None:
    color, marker = PART_STYLES[part]
    rows = select_rows(table, kind=own_kind)
    axes.plot(rows["fraction"], rows["relative"], color=color, marker=marker, label=part)
    axes.fill_between(rows["fraction"], rows["low"], rows["high"], color=color, alpha=0.2, linewidth=0)
    for kind, line in others.items():
        rows = select_rows(table, kind=kind)
        axes.plot(rows["fraction"], rows["relative"], color=color, linestyle=line, linewidth=0.8)


def node_use(measured: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    """Draw how often each node is kept: as maps, as Lorenz curves, and its Gini index against size."""
    table = select_rows(tables["node_use"], bank=measured.name)
    kinds = measured.compared_kinds
    sizes = [measured.sizes[i] for i in linspace_indices(len(measured.sizes), MAX_MAP_SIZES)]
    use = {kind: [select_rows(table, kind=kind, s=s)["use"].to_numpy() for s in sizes] for kind in kinds}
    n_masks, n_inputs = len(measured.mask.groups), len(measured.names)
    of_what = "inputs" if n_masks == n_inputs else "masks"
    label = "kept (1) or closed (0)" if n_masks == 1 else f"share of {of_what} that keep the node"
    figure = map_figure(measured.mask.graph, sizes, use, label)
    alt = f"How often subgraphs of {measured.name} keep each node, by layer and head, at growing size"
    yield StudyFigure("node-use", "node_use", measured.name, alt, figure)
    alt = f"Lorenz curves of node use in subgraphs of {measured.name}; the diagonal is use of all nodes alike"
    yield StudyFigure("lorenz", "gini", measured.name, alt, _lorenz_figure(sizes, use))
    alt = f"Gini index of node use in {measured.name} against relative size, with random subgraphs and a shared mask"
    figure = _gini_figure(measured, select_rows(tables["gini"], bank=measured.name))
    yield StudyFigure("gini", "gini", measured.name, alt, figure)


def map_figure(
    graph: NodeGraph, sizes: Sequence[int | float], shares: dict[str, list[np.ndarray]], label: str
) -> Figure:
    """Create a grid of maps: a row for each kind of subgraph, a column for each size.

    Args:
        graph: The nodes.
        sizes: Nodes kept, one for each column.
        shares: By kind, the share of masks that keep each node at each size, shape (nodes,) each.
        label: Label of the colour scale.
    """
    figure = empty_figure(COLUMN, len(shares) * map_height(graph) + 0.55)
    grid = figure.subplots(len(shares), len(sizes), squeeze=False, sharex=True, sharey=True)
    for row, (kind, by_size) in zip(grid, shares.items(), strict=True):
        for axes, share in zip(row, by_size, strict=True):
            draw_node_map(axes, graph, share)
        row[0].set_ylabel(f"{kind}\nlayer", fontsize=SMALL_FONT)
    for axes, s in zip(grid[0], sizes, strict=True):
        axes.set_title(count_nodes(s), fontsize=SMALL_FONT, pad=2)
    share_bar(figure, list(grid.flat), label)
    return figure


def linspace_indices(n: int, limit: int) -> list[int]:
    """Return up to `limit` evenly spaced indices of n things, the first and the last included."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, limit))})


def _lorenz_figure(sizes: Sequence[int | float], use: dict[str, list[np.ndarray]]) -> Figure:
    figure, axes = single_axes()
    lines = dict(zip(use, ("-", *OTHER_LINES), strict=False))
    for i, (s, color) in enumerate(zip(sizes, SIZE_COLORS, strict=False)):
        for kind, line in lines.items():
            shares, first = lorenz(use[kind][i]), line == "-"
            axes.plot(
                np.linspace(0, 1, len(shares)), shares, color=color, linestyle=line,
                linewidth=1.2 if first else 0.8, label=count_nodes(s) if first else None,
            )  # fmt: skip
    for kind, line in lines.items():
        axes.plot([], [], color=GREY, linestyle=line, linewidth=0.8, label=kind)
    axes.set_xlabel("share of nodes, least used first")
    axes.set_ylabel("share of all use")
    axes.set_aspect("equal")
    axes.legend(loc="upper left", handlelength=2.2)
    return figure


def _gini_figure(measured: MaskMeasurements, table: pd.DataFrame) -> Figure:
    figure, axes = single_axes()
    for kind in (kind for kind in measured.kinds if kind in set(table["kind"])):
        rows = select_rows(table, kind=kind)
        label = f"chance ({kind})" if kind == measured.control_kind else kind
        axes.plot(rows["fraction"], rows["gini"], label=label, **line_style(kind))
    rows = select_rows(table, kind=measured.own_kind)
    axes.plot(rows["fraction"], rows["one_mask_for_all"], color=LINE, linewidth=1, label="one mask for all inputs")
    size_axis(axes, measured.fractions[0], measured.unit)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("Gini index of node use")
    legend_below(figure, axes, 2)
    return figure
