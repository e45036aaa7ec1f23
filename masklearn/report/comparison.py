"""Figures that compare banks: agreement of their densities, and overlap of their masks."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from masklearn.density.measurements import MaskMeasurements
from masklearn.density.tables import Tables, select_rows
from masklearn.report.study_figure import StudyFigure
from masklearn.report.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    count_nodes,
    drawable_names,
    empty_figure,
    legend_below,
    single_axes,
    size_axis,
)

RHO_COLORS = LinearSegmentedColormap.from_list("rho", ["#d55e00", "#f4f4f6", "#0072b2"])
"""Colour of a rank correlation, from -1 to 1."""
OVERLAP_COLORS = LinearSegmentedColormap.from_list("overlap", ["#f4f4f6", "#8fbfdc", "#0072b2"])
"""Colour of an overlap, from 0 to 1."""
PAIR_COLORS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
"""Colours of pairs of masks; there are lines for at most as many pairs."""
CELL_INK = "#1b1b20"
"""Dark text on a light cell; unlike `INK`, the page's theme does not change it."""
MAX_NUMBERS_IN_ROW = 20
"""Numbers that stand side by side in the cells of a row of matrices; with more cells there are none."""
MAX_LABELLED_MASKS = 30
"""Masks up to which a matrix names them; the table lists those of a larger one in the same order."""
MAX_MATRICES_IN_ROW = 4
"""Matrices side by side; more would be too narrow for their numbers."""
MATRIX_FONT = 6.5
"""Points: titles and labels of matrices."""


def density_agreement(measurements: Sequence[MaskMeasurements], tables: Tables) -> Iterator[StudyFigure]:
    """Draw a matrix of rank correlations of density between banks, for each compared kind of subgraph."""
    table, names = tables["across"].dropna(subset=["rho"]), [measured.name for measured in measurements]
    kinds = list(dict.fromkeys(table["kind"]))
    if not kinds:
        return
    n_rows = -(-len(kinds) // MAX_MATRICES_IN_ROW)
    figure = empty_figure(2 * COLUMN, n_rows * (min(2.0, 0.6 + 0.3 * len(names)) + 0.9))
    every = [*figure.subplots(n_rows, min(len(kinds), MAX_MATRICES_IN_ROW), squeeze=False, sharey=True).flat]
    grid, unused = every[: len(kinds)], every[len(kinds) :]
    for axes in unused:
        axes.set_axis_off()
    labels = [*drawable_names(names, 18).values()]
    for axes, kind in zip(grid, kinds, strict=True):
        matrix = _symmetric(select_rows(table, kind=kind), names, "rho")
        has_kind = [not set(kind.split(" / ")).isdisjoint(measured.kinds) for measured in measurements]
        np.fill_diagonal(matrix, np.where(has_kind, 1.0, np.nan))
        _draw_matrix(axes, matrix, labels, RHO_COLORS, -1, len(grid) // n_rows)
        axes.set_title(kind, fontsize=MATRIX_FONT, pad=3)
    _finish_matrices(figure, grid, labels, ScalarMappable(Normalize(-1, 1), RHO_COLORS), "rank correlation of density")
    yield StudyFigure("across", "across", "all", "Rank correlation of the inputs' densities between banks", figure)


def mask_overlaps(tables: Tables) -> Iterator[StudyFigure]:
    """Draw overlap against size as lines if pairs are few, and as matrices for each model with three masks or more."""
    table = tables["overlap"]
    if not len(table):
        return
    pairs = table.reindex(columns=["one", "other"]).drop_duplicates().to_dict("records")
    if len(pairs) <= len(PAIR_COLORS):
        alt = "Overlap of mean masks against relative size, with that of the norm's subgraphs and of chance"
        yield StudyFigure("overlap", "across", "all", alt, _overlap_lines(table, pairs))
    several = len(set(table["model"])) > 1
    for i, (_, rows) in enumerate(table.groupby("model", sort=False), start=1):
        if len(set(rows["one"])) > 1:
            yield _overlap_matrices(rows, f"overlap-matrix-{i}" if several else "overlap-matrix")


def _overlap_lines(table: pd.DataFrame, pairs: Sequence[dict[Any, Any]]) -> Figure:
    figure, axes = single_axes()
    names = drawable_names([name for pair in pairs for name in pair.values()], 20)
    for pair, color in zip(pairs, PAIR_COLORS, strict=False):
        rows = select_rows(table, one=pair["one"], other=pair["other"])
        label = f"{names[pair['one']]} / {names[pair['other']]}"
        axes.plot(rows["fraction"], rows["overlap"], color=color, marker="o", label=label)
        axes.plot(rows["fraction"], rows["by_norm"].astype(float), color=color, linestyle="--", linewidth=0.8)
        axes.plot(rows["fraction"], rows["by_chance"], color=color, linestyle=":", linewidth=0.8)
    for line, label in (("--", "by norm"), (":", "by chance")):
        axes.plot([], [], color=GREY, linestyle=line, linewidth=0.8, label=label)
    size_axis(axes, table["fraction"].to_numpy().min())
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("overlap of mean masks")
    legend_below(figure, axes, 1 if len(pairs) < 4 else 2)
    return figure


def _overlap_matrices(table: pd.DataFrame, name: str) -> StudyFigure:
    """Draw the overlaps of one model's masks at a small, a medium and a large size."""
    names = list(dict.fromkeys([*table["one"], *table["other"]]))
    sizes = sorted(table["s"].unique())
    chosen = [sizes[i] for i in sorted({0, len(sizes) // 3, 2 * len(sizes) // 3})]
    figure = empty_figure(2 * COLUMN, min(0.34 * len(names), 2.0) + 1.4)
    grid = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    labels, fontsize = [*drawable_names(names, 22).values()], 6 if len(names) < 10 else 4.5
    labels = labels if len(labels) <= MAX_LABELLED_MASKS else [""] * len(labels)
    for axes, s in zip(grid, chosen, strict=True):
        rows = select_rows(table, s=s)
        _draw_matrix(axes, _symmetric(rows, names, "overlap"), labels, OVERLAP_COLORS, 0, len(chosen), fontsize)
        axes.set_title(_overlap_title(int(s), rows), fontsize=MATRIX_FONT, pad=3)
    mappable = ScalarMappable(Normalize(0, 1), OVERLAP_COLORS)
    _finish_matrices(figure, grid, labels, mappable, "overlap of mean masks", fontsize)
    alt = f"Overlap of mean masks at {', '.join(map(str, chosen))} nodes; titles give the means by chance and by norm"
    return StudyFigure(name, "across", "all", alt, figure)


def _overlap_title(s: int, rows: pd.DataFrame) -> str:
    """Return the size with the mean overlaps by chance and by norm."""
    means = {"chance": rows["by_chance"].mean(), "norm": rows["by_norm"].astype(float).mean()}
    known = ", ".join(f"{name} {value:.2f}" for name, value in means.items() if not np.isnan(value))
    return f"{count_nodes(s)} ({known})"


def _symmetric(pairs: pd.DataFrame, names: Sequence[str], column: str) -> np.ndarray:
    """Return a matrix (names, names) of a column of pairs; NaN where there is no pair."""
    matrix = np.full((len(names), len(names)), np.nan)
    for one, other, value in zip(pairs["one"], pairs["other"], pairs[column], strict=True):
        i, j = names.index(one), names.index(other)
        matrix[i, j] = matrix[j, i] = value
    return matrix


def _draw_matrix(
    axes: Axes, values: np.ndarray, labels: Sequence[str], colors: LinearSegmentedColormap, low: float,
    n_in_row: int, fontsize: float = MATRIX_FONT,
) -> None:  # fmt: skip
    """Draw a square of cells from `low` to 1, with numbers if all in a row of matrices fit; NaN stays empty."""
    axes.pcolormesh(values, cmap=colors, vmin=low, vmax=1, edgecolors="white", linewidth=0.8)
    for (y, x), value in np.ndenumerate(values):
        if n_in_row * len(labels) <= MAX_NUMBERS_IN_ROW and not np.isnan(value):
            color = "white" if abs(value) > 0.6 else CELL_INK
            axes.text(x + 0.5, y + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color)
    ticks = np.arange(len(labels)) + 0.5
    axes.set_xticks(ticks, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=fontsize)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _finish_matrices(
    figure: Figure, grid: Sequence[Axes], labels: Sequence[str], mappable: ScalarMappable, label: str,
    fontsize: float = MATRIX_FONT,
) -> None:  # fmt: skip
    """Label the shared y axis of a row of matrices and add their colour scale."""
    grid[0].set_yticks(np.arange(len(labels)) + 0.5, labels, fontsize=fontsize)
    grid[0].invert_yaxis()
    bar = figure.colorbar(mappable, ax=list(grid), shrink=0.8, aspect=25, pad=0.01)
    bar.set_label(label)
