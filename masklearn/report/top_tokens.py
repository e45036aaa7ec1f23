"""Figures of one input: its subgraphs as maps, and the next tokens that they predict."""

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from masklearn.density.measurements import MaskMeasurements, TopTokens
from masklearn.report.composition import MAX_MAP_SIZES, linspace_indices, map_figure
from masklearn.report.study_figure import StudyFigure
from masklearn.report.style import BLUE, COLUMN, GREY, SMALL_FONT, count_nodes, drawable, empty_figure

MAX_RANKS = 4
"""Top tokens drawn for each subgraph."""
MAX_TOKEN_SIZES = 4
"""Sizes whose top tokens are drawn, beside the full model."""


def top_tokens(measured: MaskMeasurements, shown: TopTokens) -> Iterator[StudyFigure]:
    """Draw one input's subgraphs as maps, and the most probable next tokens under each."""
    group = measured.group_index[list(measured.names).index(shown.name)] if len(measured.mask.groups) > 1 else 0
    chosen = linspace_indices(len(measured.sizes), MAX_MAP_SIZES)
    masks = {
        kind: [measured.results[kind].masks[0, i, group].numpy().astype(float) for i in chosen] for kind in shown.tokens
    }
    sizes = [measured.sizes[i] for i in chosen]
    figure = map_figure(measured.mask.graph, sizes, masks, "kept (1) or closed (0)")
    alt = f"The subgraphs of input {shown.name} of {measured.name}, by layer and head, at growing size"
    yield StudyFigure("subgraph", "thoughts", measured.name, alt, figure)
    alt = f"The most probable next tokens after input {shown.name} of {measured.name} under subgraphs of growing size"
    yield StudyFigure("top-tokens", "thoughts", measured.name, alt, _token_figure(shown))


def _token_figure(shown: TopTokens) -> Figure:
    full_model = len(shown.sizes) - 1
    columns = [*linspace_indices(full_model, MAX_TOKEN_SIZES), full_model]
    n_ranks = min(MAX_RANKS, len(next(iter(shown.tokens.values()))[0]))
    figure = empty_figure(COLUMN, 0.3 + (0.15 + 0.2 * n_ranks) * len(shown.tokens))
    grid = figure.subplots(len(shown.tokens), squeeze=False)[:, 0]
    expected = {token for token, _ in next(iter(shown.tokens.values()))[full_model]}
    for axes, (kind, by_size) in zip(grid, shown.tokens.items(), strict=True):
        _draw_tokens(axes, [by_size[i][:n_ranks] for i in columns], expected)
        axes.set_ylabel(kind, fontsize=SMALL_FONT)
    for x, i in enumerate(columns):
        title = "full model" if i == full_model else count_nodes(shown.sizes[i])
        grid[0].text(x + 0.5, -0.75, title, ha="center", va="bottom", fontsize=SMALL_FONT, fontweight="bold")
    return figure


def _draw_tokens(axes: Axes, columns: Sequence[Sequence[tuple[str, float]]], expected: set[str]) -> None:
    """Draw tokens with bars as long as their probability, blue for tokens that the full model expects too.

    A dash stands for what a subgraph predicts whose output is not finite.
    """
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(columns[0]) - 0.4, -0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    for x, tokens in enumerate(columns):
        for y, (token, p) in enumerate(tokens):
            if not math.isfinite(p):
                axes.text(x + 0.06, y, "-", va="center", fontsize=SMALL_FONT)
                continue
            color = BLUE if token in expected else GREY
            axes.barh(y, 0.94 * p, left=x + 0.03, height=0.86, color=color, alpha=0.35)
            axes.text(x + 0.06, y, drawable(token, 7), va="center", fontsize=SMALL_FONT, clip_on=True)
            axes.text(x + 0.95, y, f"{p:.2f}", va="center", ha="right", fontsize=SMALL_FONT)
