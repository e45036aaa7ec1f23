"""Figures of where subgraphs sit: composition, node use, and one subgraph by itself."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from masklearn.density.composition import lorenz
from masklearn.density.measurements import LEARNED, SHOWN, MaskMeasurements, TopTokens
from masklearn.density.tables import select_rows
from masklearn.graph import NodeGraph
from masklearn.report.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    INK,
    LINE,
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
PARTS = {
    "heads": (BLUE, "o"), "MLPs": (ORANGE, "s"),
    "quarter 1": (SKY, "o"), "quarter 2": (GREEN, "s"), "quarter 3": (PURPLE, "^"), "quarter 4": (RED, "D"),
}  # fmt: skip
USE = LinearSegmentedColormap.from_list("use", ["#e9eef2", "#8fbfdc", "#0072b2", "#00304d"])
MAPS = 4
"""Sizes that node use is drawn at."""
RANKS = 4
"""Top tokens drawn of each kind of subgraphs."""


def composition(bank: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    table = select_rows(tables["composition"], bank=bank.name)
    for name, parts in (("kinds", ("heads", "MLPs")), ("depth", [p for p in PARTS if p.startswith("quarter")])):
        figure, axes = one_axes()
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
        for part in (part for part in parts if part in set(table["part"])):
            color, marker = PARTS[part]
            for kind in (kind for kind in ("learned", "norm") if kind in set(table["kind"])):
                rows = select_rows(table, kind=kind, part=part)
                learned = kind == LEARNED
                axes.plot(
                    rows["fraction"], rows["relative"], color=color, marker=marker if learned else "",
                    linestyle="-" if learned else "--", linewidth=1.2 if learned else 0.8,
                    label=f"{part}{'' if learned else ', by norm'}",
                )  # fmt: skip
                if learned:
                    axes.fill_between(rows["fraction"], rows["low"], rows["high"], color=color, alpha=0.2, linewidth=0)
        axes.plot([], [], color=GREY, linewidth=0.8, linestyle=":", label="random")
        size_axis(axes, bank.fractions[0])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of the subgraph over\nshare of the model")
        legend(figure, axes, 2)
        alt = f"Relative shares of {', '.join(parts)} in subgraphs of {bank.name} against size; 1 is chance"
        yield StudyFigure(f"composition-{name}", "composition", bank.name, alt, figure)


def _map(axes: Axes, graph: NodeGraph, values: np.ndarray) -> None:
    """Layers upwards; heads, then the MLP."""
    picture = values.reshape(graph.n_layers, graph.n_heads + 1)
    axes.pcolormesh(
        picture, cmap=USE, vmin=0, vmax=1, edgecolors="white", linewidth=0.4, rasterized=picture.size > 2000
    )
    axes.axvline(graph.n_heads, color=INK, linewidth=0.6)
    heads = range(0, graph.n_heads, -(-graph.n_heads // 2))
    layers = range(0, graph.n_layers, max(1, graph.n_layers // 6))
    axes.set_xticks([h + 0.5 for h in heads] + [graph.n_heads + 0.5], [*(f"h{h}" for h in heads), "mlp"], fontsize=6)
    axes.set_yticks([layer + 0.5 for layer in layers], [f"{layer}" for layer in layers], fontsize=6)
    axes.tick_params(length=0, pad=1)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _maps(bank: MaskMeasurements, titles: list[str], rows: dict[str, list[np.ndarray]], label: str) -> Figure:
    """A row of maps for each kind of subgraphs."""
    high = min(1.5, 0.42 + 0.09 * bank.mask.graph.n_layers)
    figure = blank(COLUMN, len(rows) * high + 0.55)
    grid = figure.subplots(len(rows), len(titles), squeeze=False, sharex=True, sharey=True)
    for row, (kind, pictures) in zip(grid, rows.items(), strict=True):
        for axes, picture in zip(row, pictures, strict=True):
            _map(axes, bank.mask.graph, picture)
        row[0].set_ylabel(f"{kind}\nlayer", fontsize=6)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=6, pad=2)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), USE), ax=grid, location="bottom", shrink=0.5, aspect=30, pad=0.02
    )
    bar.set_label(label, fontsize=6)
    bar.ax.tick_params(labelsize=6, length=2)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def _nodes(s: int) -> str:
    return f"{s} node{'' if s == 1 else 's'}"


def _spread(n: int, most: int = MAPS) -> list[int]:
    """Places of up to so many things, evenly spread, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))})


def node_use(bank: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    table = select_rows(tables["node_use"], bank=bank.name)
    kinds = [kind for kind in SHOWN if kind in set(table["kind"])]
    chosen = [bank.sizes[i] for i in _spread(len(bank.sizes))]

    def use(kind: str, s: int) -> np.ndarray:
        return select_rows(table, kind=kind, s=s)["use"].to_numpy()

    maps = {kind: [use(kind, s) for s in chosen] for kind in kinds}
    several = len(bank.mask.groups) > 1
    label = "share of inputs that keep the node" if several else "kept (1) or closed (0)"
    alt = f"How often subgraphs of {bank.name} keep each node, by layer and head, at growing size"
    figure = _maps(bank, [_nodes(s) for s in chosen], maps, label)
    yield StudyFigure("node-use", "node_use", bank.name, alt, figure)
    figure, axes = one_axes()
    for s, color in zip(chosen, (RED, ORANGE, GREEN, BLUE), strict=False):
        for kind, line in zip(kinds, ("-", "--", ":"), strict=False):
            shares, width = lorenz(use(kind, s)), 1.2 if kind == LEARNED else 0.8
            label = _nodes(s) if kind == LEARNED else None
            axes.plot(np.linspace(0, 1, len(shares)), shares, color=color, linestyle=line, linewidth=width, label=label)
    for kind, line in zip(kinds, ("-", "--", ":"), strict=False):
        axes.plot([], [], color=GREY, linestyle=line, linewidth=0.8, label=kind)
    axes.set_xlabel("share of nodes, least used first")
    axes.set_ylabel("share of all use")
    axes.set_aspect("equal")
    axes.legend(loc="upper left", handlelength=2.2)
    alt = f"Lorenz curves of node use in subgraphs of {bank.name}; the diagonal is use of all nodes alike"
    yield StudyFigure("lorenz", "gini", bank.name, alt, figure)
    figure, axes = one_axes()
    gini = select_rows(tables["gini"], bank=bank.name)
    for kind in (kind for kind in bank.kinds if kind in set(gini["kind"])):
        rows = select_rows(gini, kind=kind)
        label = "chance (random-matched)" if kind == "random-matched" else kind
        axes.plot(rows["fraction"], rows["gini"], label=label, **line_style(kind))
    rows = select_rows(gini, kind=LEARNED)
    axes.plot(rows["fraction"], rows["one_mask_for_all"], color=LINE, linewidth=1, label="one mask for all inputs")
    size_axis(axes, bank.fractions[0])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("Gini index of node use")
    legend(figure, axes, 2)
    alt = f"Gini index of node use in {bank.name} against relative size, beside chance and a single mask for all"
    yield StudyFigure("gini", "gini", bank.name, alt, figure)


def thought(bank: MaskMeasurements, shown: TopTokens) -> Iterator[StudyFigure]:
    """One input's subgraphs as maps, and what each makes of it."""
    place = bank.groups[list(bank.names).index(shown.name)] if len(bank.mask.groups) > 1 else 0
    chosen = _spread(len(bank.sizes))
    maps = {kind: [bank.seen[kind].masks[0, i, place].numpy().astype(float) for i in chosen] for kind in shown.tokens}
    alt = f"The subgraphs of input {shown.name} of {bank.name}, by layer and head, at growing size"
    figure = _maps(bank, [_nodes(bank.sizes[i]) for i in chosen], maps, "kept (1) or closed (0)")
    yield StudyFigure("subgraph", "thoughts", bank.name, alt, figure)
    columns = [*_spread(len(shown.sizes) - 1, 4), len(shown.sizes) - 1]
    ranks = min(RANKS, len(shown.tokens[LEARNED][0]))
    figure = blank(COLUMN, 0.3 + (0.15 + 0.2 * ranks) * len(shown.tokens))
    grid = figure.subplots(len(shown.tokens), squeeze=False)[:, 0]
    full = [token for token, _ in shown.tokens[LEARNED][-1]]
    for axes, (kind, by_size) in zip(grid, shown.tokens.items(), strict=True):
        axes.set_xlim(0, len(columns))
        axes.set_ylim(ranks - 0.4, -0.6)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(kind, fontsize=6)
        for x, column in enumerate(columns):
            for y, (token, p) in enumerate(by_size[column][:ranks]):
                axes.barh(y, 0.94 * p, left=x + 0.03, height=0.86, color=BLUE if token in full else GREY, alpha=0.35)
                axes.text(x + 0.06, y, drawable(token, 9), va="center", fontsize=6, clip_on=True)
                axes.text(x + 0.95, y, f"{p:.2f}", va="center", ha="right", fontsize=6)
    for x, column in enumerate(columns):
        name = _nodes(shown.sizes[column]) if column < len(shown.sizes) - 1 else "full model"
        grid[0].text(x + 0.5, -0.75, name, ha="center", va="bottom", fontsize=6, fontweight="bold")
    alt = f"The most probable next tokens after input {shown.name} of {bank.name} under subgraphs of growing size"
    yield StudyFigure("top-tokens", "thoughts", bank.name, alt, figure)
