"""Figures of what density correlates with, and of the density of every token of a text."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from masklearn.density.correlations import PROPERTY_LABELS
from masklearn.density.measurements import MaskMeasurements
from masklearn.density.tables import Tables, select_rows
from masklearn.report.study_figure import StudyFigure
from masklearn.report.style import (
    BLUE,
    COLUMN,
    INK,
    SMALL_FONT,
    drawable,
    empty_figure,
    legend_below,
    line_style,
    single_axes,
)

DENSITY_LABEL = "computation density\n(mean TV over log size)"
"""Axis of density."""
MAX_TOKENS = 40
"""Tokens of a text in a figure."""


def density_correlations(measured: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    """Draw the rank correlations of density with properties of inputs, and density against entropy."""
    table = select_rows(tables["relations"], bank=measured.name).dropna(subset=["rho"])
    if len(table):
        kinds = [kind for kind in measured.kinds if kind in set(table["kind"])]
        alt = f"Rank correlation of density with properties of the inputs of {measured.name}, with bootstrap intervals"
        yield StudyFigure("relations", "relations", measured.name, alt, _correlation_figure(table, kinds))
    inputs = select_rows(tables["inputs"], bank=measured.name)
    if len(inputs.dropna(subset=[f"normalized_density_{measured.own_kind}"])):
        kinds = measured.compared_kinds[::-1]
        alt = f"Computation density of every input of {measured.name} against the full model's entropy"
        yield StudyFigure("density-entropy", "relations", measured.name, alt, _entropy_figure(inputs, kinds))


def _correlation_figure(table: pd.DataFrame, kinds: list[str]) -> Figure:
    names = [name for name in PROPERTY_LABELS if name in set(table["with"])]
    figure, axes = single_axes(COLUMN, 0.7 + 0.34 * len(names))
    axes.axvline(0, color=INK, linewidth=0.6, linestyle=":")
    for i, kind in enumerate(kinds):
        rows = select_rows(table, kind=kind).set_index("with").reindex(names)
        y = np.arange(len(names)) + (i - (len(kinds) - 1) / 2) * 0.7 / len(kinds)
        interval = np.stack([rows["rho"] - rows["low"], rows["high"] - rows["rho"]]).astype(float).clip(min=0)
        axes.errorbar(rows["rho"], y, xerr=interval, label=kind, elinewidth=0.8, **line_style(kind, linestyle="none"))
    axes.set_yticks(range(len(names)), [PROPERTY_LABELS[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(-1, 1)
    axes.set_xlabel("rank correlation with density")
    legend_below(figure, axes, 4)
    return figure


def _entropy_figure(inputs: pd.DataFrame, kinds: list[str]) -> Figure:
    figure, axes = single_axes()
    for kind in kinds:
        dots = line_style(kind) | {"linestyle": "none", "markersize": 2.2, "alpha": 0.5, "markeredgewidth": 0}
        axes.plot(inputs["entropy"], inputs[f"normalized_density_{kind}"], label=kind, **dots)
    axes.set_ylim(bottom=0)
    legend_below(figure, axes)
    axes.set_xlabel("entropy of the full model's distribution (nats)")
    axes.set_ylabel(DENSITY_LABEL)
    return figure


def token_densities(measured: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    """Draw the density of the first tokens of a bank's first text, if every position is an input of its own."""
    table = select_rows(tables["by_token"], bank=measured.name)
    if not len(table.dropna(subset=["normalized_density"])):
        return
    first = select_rows(table, text=table["text"].iloc[0]).head(MAX_TOKENS)
    figure = empty_figure(2 * COLUMN, 2.0)
    axes = figure.subplots()
    axes.bar(range(len(first)), first["normalized_density"], color=BLUE, width=0.8, label=measured.own_kind)
    for kind in measured.compared_kinds[1:]:
        axes.plot(
            range(len(first)), first[f"normalized_density_{kind}"], label=kind, **line_style(kind, linestyle="none")
        )
    labels = [drawable(token, 12) for token in first["token"]]
    axes.set_xticks(range(len(first)), labels, rotation=90, fontsize=SMALL_FONT)
    axes.set_xlim(-0.6, len(first) - 0.4)
    axes.set_ylabel(DENSITY_LABEL)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    alt = f"The density of each token of text {first['text'].iloc[0]} of {measured.name}, in order"
    yield StudyFigure("by-token", "by_token", measured.name, alt, figure)
