"""Figures of what density goes with: properties of inputs, other models, the tokens of a text."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from masklearn.density.correlations import WORDS
from masklearn.density.measurements import SHOWN, MaskMeasurements
from masklearn.density.tables import select_rows
from masklearn.report.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    StudyFigure,
    blank,
    drawable,
    legend,
    line_style,
    one_axes,
    size_axis,
)

Tables = dict[str, pd.DataFrame]
RHO = LinearSegmentedColormap.from_list("rho", ["#d55e00", "#f4f4f6", "#0072b2"])
OVERLAP = LinearSegmentedColormap.from_list("overlap", ["#f4f4f6", "#8fbfdc", "#0072b2"])
ON_CELL = "#1b1b20"
"""Ink on a cell, whatever the page's own is."""
MOST_TOKENS, MOST_PAIRS, MOST_NUMBERED = 40, 6, 9
"""Tokens of a text, pairs of mean masks, and masks with numbers in a matrix's cells, that a figure has room for."""


def density_correlations(bank: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    table = select_rows(tables["relations"], bank=bank.name)
    table = table.dropna(subset=["rho"])
    if len(table):
        names = [name for name in WORDS if name in set(table["with"])]
        kinds = [kind for kind in bank.kinds if kind in set(table["kind"])]
        figure, axes = one_axes(COLUMN, 0.7 + 0.34 * len(names))
        axes.axvline(0, color=INK, linewidth=0.6, linestyle=":")
        for i, kind in enumerate(kinds):
            rows = select_rows(table, kind=kind).set_index("with").reindex(names)
            y = np.arange(len(names)) + (i - (len(kinds) - 1) / 2) * 0.7 / len(kinds)
            spread = np.stack([rows["rho"] - rows["low"], rows["high"] - rows["rho"]]).astype(float).clip(min=0)
            axes.errorbar(rows["rho"], y, xerr=spread, label=kind, elinewidth=0.8, **line_style(kind, linestyle="none"))
        axes.set_yticks(range(len(names)), [WORDS[name] for name in names])
        axes.invert_yaxis()
        axes.set_xlim(-1, 1)
        axes.set_xlabel("rank correlation with density")
        legend(figure, axes, 4)
        alt = f"Rank correlation of density with properties of the inputs of {bank.name}, with bootstrap intervals"
        yield StudyFigure("relations", "relations", bank.name, alt, figure)
    inputs = select_rows(tables["inputs"], bank=bank.name)
    if len(inputs.dropna(subset=["density_learned"])):
        figure, axes = one_axes()
        for kind in (kind for kind in reversed(SHOWN) if kind in bank.kinds):
            dots = line_style(kind) | {"linestyle": "none", "markersize": 2.2, "alpha": 0.5, "markeredgewidth": 0}
            axes.plot(inputs["entropy"], inputs[f"density_{kind}"], label=kind, **dots)
        axes.set_ylim(bottom=0)
        legend(figure, axes)
        axes.set_xlabel("entropy of the full model's distribution (nats)")
        axes.set_ylabel("computation density\n(TV x decades of size)")
        alt = f"Computation density of every input of {bank.name} against the full model's entropy"
        yield StudyFigure("density-entropy", "relations", bank.name, alt, figure)


def across(banks: list[MaskMeasurements], tables: Tables) -> Iterator[StudyFigure]:
    table, names = tables["across"], [bank.name for bank in banks]
    table = table.dropna(subset=["rho"])
    kinds = [kind for kind in SHOWN if kind in set(table["kind"])]
    if not kinds:
        return
    figure = blank(2 * COLUMN, min(2.0, 0.6 + 0.3 * len(names)) + 0.9)
    grid = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    places, short = np.arange(len(names)) + 0.5, [drawable(name, 18) for name in names]
    for axes, kind in zip(grid, kinds, strict=True):
        matrix = pd.DataFrame(np.eye(len(names)), names, names).replace(0, np.nan)
        for pair in select_rows(table, kind=kind).to_dict("records"):
            matrix.loc[pair["one"], pair["other"]] = matrix.loc[pair["other"], pair["one"]] = pair["rho"]
        _matrix(axes, matrix.to_numpy(float), RHO, -1, len(names) <= MOST_NUMBERED)
        axes.set_title(kind, fontsize=6.5, pad=3)
        axes.set_xticks(places, short, rotation=45, ha="right", rotation_mode="anchor")
    grid[0].set_yticks(places, short)
    grid[0].invert_yaxis()
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), RHO), ax=list(grid), shrink=0.8, aspect=25, pad=0.01)
    bar.set_label("rank correlation of density")
    yield StudyFigure("across", "across", "all", "Rank correlation of the inputs' densities between banks", figure)


def overlaps(tables: Tables) -> Iterator[StudyFigure]:
    """Lines where pairs of mean masks are few, and matrices for models with three masks or more."""
    table = tables["overlap"]
    if not len(table):
        return
    pairs = table.reindex(columns=["one", "other"]).drop_duplicates().to_dict("records")
    if len(pairs) <= MOST_PAIRS:
        figure, axes = one_axes()
        for pair, color in zip(pairs, (BLUE, RED, GREEN, PURPLE, ORANGE, SKY), strict=False):
            rows = select_rows(table, one=pair["one"], other=pair["other"])
            label = f"{drawable(pair['one'], 20)} / {drawable(pair['other'], 20)}"
            axes.plot(rows["fraction"], rows["overlap"], color=color, marker="o", label=label)
            axes.plot(rows["fraction"], rows["by_norm"].astype(float), color=color, linestyle="--", linewidth=0.8)
            axes.plot(rows["fraction"], rows["by_chance"], color=color, linestyle=":", linewidth=0.8)
        for line, label in (("--", "by norm"), (":", "by chance")):
            axes.plot([], [], color=GREY, linestyle=line, linewidth=0.8, label=label)
        size_axis(axes, table["fraction"].to_numpy().min())
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("overlap of mean masks (1: the same)")
        legend(figure, axes, 1 if len(pairs) < 4 else 2)
        alt = "Overlap of mean masks against relative size, beside those of the norm and of chance"
        yield StudyFigure("overlap", "across", "all", alt, figure)
    several = len(set(table["model"])) > 1
    for i, (_, rows) in enumerate(table.groupby("model", sort=False), start=1):
        if len(set(rows["one"])) > 1:
            yield _overlap_matrices(rows, f"overlap-matrix-{i}" if several else "overlap-matrix")


def _overlap_matrices(table: pd.DataFrame, name: str) -> StudyFigure:
    """Of the masks of one model, at a small size, a middling and a large one."""
    names = list(dict.fromkeys([*table["one"], *table["other"]]))
    sizes = sorted(table["s"].unique())
    chosen = [sizes[i] for i in sorted({0, len(sizes) // 3, 2 * len(sizes) // 3})]
    figure = blank(2 * COLUMN, min(0.34 * len(names), 2.0) + 1.4)
    grid = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    places, short = np.arange(len(names)) + 0.5, [drawable(name, 22) for name in names]
    size = 6 if len(names) <= MOST_NUMBERED else 4.5
    for axes, s in zip(grid, chosen, strict=True):
        rows = select_rows(table, s=s)
        matrix = pd.DataFrame(np.nan, names, names)
        for pair in rows.to_dict("records"):
            matrix.loc[pair["one"], pair["other"]] = matrix.loc[pair["other"], pair["one"]] = pair["overlap"]
        _matrix(axes, matrix.to_numpy(float), OVERLAP, 0, len(names) <= MOST_NUMBERED)
        axes.set_title(_title(int(s), rows), fontsize=6.5, pad=3)
        axes.set_xticks(places, short, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    grid[0].set_yticks(places, short, fontsize=size)
    grid[0].invert_yaxis()
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), OVERLAP), ax=list(grid), shrink=0.8, aspect=25, pad=0.01)
    bar.set_label("overlap of mean masks")
    alt = f"Overlap of mean masks at {', '.join(map(str, chosen))} nodes; above, the means of chance and of the norm"
    return StudyFigure(name, "across", "all", alt, figure)


def _title(s: int, rows: pd.DataFrame) -> str:
    """A size, and the mean overlap there of what stands beside."""
    means = {"chance": rows["by_chance"].mean(), "norm": rows["by_norm"].astype(float).mean()}
    beside = ", ".join(f"{name} {value:.2f}" for name, value in means.items() if not np.isnan(value))
    return f"{s} node{'' if s == 1 else 's'} ({beside})"


def _matrix(axes: Axes, values: np.ndarray, colours: LinearSegmentedColormap, low: float, numbers: bool) -> None:
    """A square of cells, with a number in each where there is room; what is not known stays empty."""
    axes.pcolormesh(values, cmap=colours, vmin=low, vmax=1, edgecolors="white", linewidth=0.8)
    for (y, x), value in np.ndenumerate(values):
        if numbers and not np.isnan(value):
            color = "white" if abs(value) > 0.6 else ON_CELL
            axes.text(x + 0.5, y + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def by_token(bank: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    table = select_rows(tables["by_token"], bank=bank.name)
    if not len(table.dropna(subset=["density"])):
        return
    first = select_rows(table, text=table["text"].iloc[0]).head(MOST_TOKENS)
    figure = blank(2 * COLUMN, 2.0)
    axes = figure.subplots()
    axes.bar(range(len(first)), first["density"], color=BLUE, width=0.8, label="learned")
    for kind in (kind for kind in SHOWN[1:] if kind in bank.kinds):
        axes.plot(range(len(first)), first[f"density_{kind}"], label=kind, **line_style(kind, linestyle="none"))
    axes.set_xticks(range(len(first)), [drawable(token, 12) for token in first["token"]], rotation=90, fontsize=6)
    axes.set_xlim(-0.6, len(first) - 0.4)
    axes.set_ylabel("computation density\n(TV x decades of size)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    alt = f"The density that each token of text {first['text'].iloc[0]} of {bank.name} takes, in order"
    yield StudyFigure("by-token", "by_token", bank.name, alt, figure)
