"""The figures of one run: its masks, and their KL and TV against size."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from masklearn.mask_file import Mask
from masklearn.report.node_map import draw_node_map, map_height, share_bar
from masklearn.report.style import (
    COLUMN,
    MIN_PLOTTED_KL,
    ShownFigure,
    empty_figure,
    lay_out_once,
    legend_below,
    line_style,
    nats_axis,
    size_axis,
    styled,
)
from masklearn.text_bank import TextBank

RUN_WIDTH = 2 * COLUMN
"""Width of a run's figures, in inches."""
MIN_WIDTH = 2.4
"""Width of the figure of a single mask, in inches."""
CURVE_HEIGHT = 2.3
"""Height of the two curves, in inches."""
MAX_MAP_HEIGHT = 2.0
"""Height of a map of many layers, in inches."""
MAX_COLUMNS = 6
"""Masks side by side."""


def run_figures(bank: Mask | TextBank, rows: Sequence[dict[str, Any]]) -> dict[str, ShownFigure]:
    """Draw a run: its curves as `curve`, and where nodes are kept also its `masks`.

    Args:
        bank: The masks of the run, or its subgraphs of texts.
        rows: Results of every size, as in `metrics.json`.
    """
    with styled():
        if isinstance(bank, Mask):
            figures = {"masks": mask_figure(bank), "curve": curve_figure(rows)}
        else:
            figures = {"curve": curve_figure(rows, bank.method)}
        for figure in figures.values():
            lay_out_once(figure)
    return figures


def overview(mask: Mask, rows: Sequence[dict[str, Any]]) -> ShownFigure:
    """Create the figure of the masks with the curves below."""
    height = _masks_height(mask)
    figure = empty_figure(RUN_WIDTH, height + CURVE_HEIGHT)
    halves = figure.subfigures(2, 1, height_ratios=(height, CURVE_HEIGHT), squeeze=False)
    draw_masks(halves[0, 0], mask)
    draw_curves(halves[1, 0], rows)
    return figure


def mask_figure(mask: Mask) -> ShownFigure:
    """Create the figure of the masks alone."""
    _, n_columns = _grid_shape(len(mask.sizes))
    figure = empty_figure(min(max(1.6 * n_columns, MIN_WIDTH), RUN_WIDTH), _masks_height(mask))
    draw_masks(figure, mask)
    return figure


def curve_figure(rows: Sequence[dict[str, Any]], own: str = "learned") -> ShownFigure:
    """Create the figure of the curves alone; `own` is the kind of the bank's subgraphs."""
    figure = empty_figure(RUN_WIDTH, CURVE_HEIGHT)
    draw_curves(figure, rows, own)
    return figure


def _grid_shape(n_masks: int) -> tuple[int, int]:
    """Return rows and columns of the fewest rows, filled evenly."""
    n_rows = -(-n_masks // MAX_COLUMNS)
    return n_rows, -(-n_masks // n_rows)


def _masks_height(mask: Mask) -> float:
    n_rows, _ = _grid_shape(len(mask.sizes))
    scale_bar = 0.4 if len(mask.groups) > 1 else 0.0
    return n_rows * (0.15 + map_height(mask.graph, MAX_MAP_HEIGHT)) + 0.1 + scale_bar


def draw_masks(figure: FigureBase, mask: Mask) -> None:
    """Draw the map of every size: the mask, or the share of groups that keep a node."""
    shares, sizes = mask.share(), mask.sizes.tolist()
    n_rows, n_columns = _grid_shape(len(sizes))
    grid: list[Axes] = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for i, (axes, share, s) in enumerate(zip(grid, shares, sizes, strict=False)):
        draw_node_map(axes, mask.graph, share)
        axes.set_title(f"{s} of {mask.graph.n_nodes} nodes", fontsize=7, pad=3)
        first_column, last_row = i % n_columns == 0, i + n_columns >= len(sizes)
        axes.tick_params(labelleft=first_column, labelbottom=last_row)
        if first_column:
            axes.set_ylabel("layer")
        if n_columns < MAX_COLUMNS:  # few maps stay as narrow as many
            axes.set_box_aspect((map_height(mask.graph, MAX_MAP_HEIGHT) - 0.2) / (RUN_WIDTH / MAX_COLUMNS - 0.2))
    for axes in grid[len(sizes) :]:
        axes.set_visible(False)
    if len(mask.groups) > 1:
        share_bar(figure, grid, "share of groups whose mask keeps the node")


def draw_curves(figure: FigureBase, rows: Sequence[dict[str, Any]], own: str = "learned") -> None:
    """Draw KL and TV of a bank's own subgraphs and of its controls against relative size."""
    panels: list[Axes] = list(figure.subplots(1, 2))
    for axes, metric in zip(panels, ("kl", "tv"), strict=True):
        _draw_curve(axes, rows, metric, own)
    panels[0].set_ylabel("KL from the full model\n(nats per token, log)")
    controls = [_mean(control, "kl") for row in rows for control in row["controls"].values()]
    nats_axis(panels[0], _numbers([row["kl"] for row in rows] + controls))
    panels[1].set_ylabel("TV distance from the full model")
    panels[1].set_ylim(0, 1.02)
    legend_below(figure, panels[0], 3)


def _draw_curve(axes: Axes, rows: Sequence[dict[str, Any]], metric: str, own: str) -> None:
    fractions = [row["fraction"] for row in rows]
    for name in rows[0]["controls"]:
        controls = [row["controls"][name] for row in rows]
        mean = _numbers([_mean(control, metric) for control in controls])
        std = _numbers([control.get(f"{metric}_std", 0.0) for control in controls])
        low = np.maximum(MIN_PLOTTED_KL / 10, mean - std)  # a log axis has no 0
        high = np.minimum(mean + std, math.inf if metric == "kl" else 1.0)
        style, n = line_style(name), controls[0].get("n")
        axes.fill_between(fractions, low, high, color=style["color"], alpha=0.25, linewidth=0)
        axes.plot(fractions, mean, label=f"{name} (mean ± sd of {n})" if n else name, **style)
    axes.plot(fractions, _numbers([row[metric] for row in rows]), label=own, **line_style(own))
    size_axis(axes, min(fractions), next((unit for unit in ("edges", "positions") if unit in rows[0]), "nodes"))


def _mean(control: dict[str, Any], metric: str) -> float | None:
    """Return a metric of a control: the mean over its draws, if it has several."""
    return control.get(f"{metric}_mean", control.get(metric))


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """Return results as an array: NaN, which lines leave out, in place of those that are not finite."""
    return np.array(values, dtype=float)
