"""Figures of how subgraphs approach the full model: the density curve, nuclei, and the unigram."""

from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from masklearn.density.curves import MIN_CURVE_SIZES
from masklearn.density.measurements import REPORTED_NUCLEI, MaskMeasurements
from masklearn.density.tables import Tables, select_rows
from masklearn.report.study_figure import FIRST_FIGURE, StudyFigure
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
    SMALL_FONT,
    drawable,
    legend_below,
    line_style,
    nats_axis,
    share_ticks,
    single_axes,
    size_axis,
)

BANK_COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
"""Colours of banks drawn together."""


def density_curves(measured: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    """Draw mean TV and mean KL of every kind of subgraph against size, with the phases."""
    table, phases = (select_rows(tables[name], bank=measured.name) for name in ("curve", "phases"))
    for metric, label in (("tv", "TV distance from the full model"), ("kl", "KL from the full model (nats, log)")):
        figure, axes = single_axes()
        for kind in measured.kinds:
            _draw_mean(axes, select_rows(table, kind=kind), metric, kind, line_style(kind))
        _mark_phases(axes, phases, measured.fractions[0])
        size_axis(axes, measured.fractions[0], measured.unit)
        axes.set_ylabel(label)
        if metric == "tv":
            axes.set_ylim(0, 1.02)
        else:
            nats_axis(axes, table["kl"])
        legend_below(figure, axes)
        kinds = ", ".join(measured.kinds)
        alt = f"{label} against relative size for {kinds} subgraphs of {measured.name}, means over inputs"
        yield StudyFigure(f"curve-{metric}", "curve", measured.name, alt, figure)


def curves_together(measurements: Sequence[MaskMeasurements], tables: Tables) -> Iterator[StudyFigure]:
    """Draw mean TV of every bank's own and of random subgraphs against relative size, with bands."""
    measurements = [measured for measured in measurements if len(measured.sizes) >= MIN_CURVE_SIZES]
    if not measurements:
        return
    figure, axes = single_axes(1.4 * COLUMN, 2.9)
    for measured, color in zip(measurements, cycle(BANK_COLORS)):
        rows = select_rows(tables["curve"], bank=measured.name, kind=measured.own_kind)
        label = f"{drawable(measured.name, 28)}: {measured.own_kind}, {measured.unit}"
        _draw_mean(axes, rows, "tv", label, {"color": color, "marker": "o" if measured.unit == "nodes" else "s"})
        if measured.control_kind:
            rows = select_rows(tables["curve"], bank=measured.name, kind=measured.control_kind)
            label = f"{drawable(measured.name, 28)}: {measured.control_kind}"
            axes.plot(rows["fraction"], rows["tv"], label=label, color=color, linestyle=":", linewidth=0.9)
    units = " or ".join(dict.fromkeys(measured.unit for measured in measurements))
    size_axis(axes, min(measured.fractions[0] for measured in measurements), units)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("TV distance from the full model")
    legend_below(figure, axes, 2)
    bands = " with 95 % bands" if tables["curve"]["tv_low"].notna().to_numpy().any() else ""
    dotted = "; dotted: random subgraphs" if any(measured.control_kind for measured in measurements) else ""
    alt = (
        f"Density curves: TV distance from the full model against the share of all {units} kept, means over inputs"
        f"{bands}{dotted}"
    )
    yield StudyFigure("curves", FIRST_FIGURE, "all", alt, figure)


def _draw_mean(axes: Axes, table: pd.DataFrame, metric: str, label: str, style: dict) -> None:
    """Draw a metric's mean with its bootstrap interval as a band."""
    x, mean = table["fraction"].to_numpy(), table[metric].to_numpy()
    axes.plot(x, mean, label=label, **style)
    low, high = table[f"{metric}_low"].to_numpy(), table[f"{metric}_high"].to_numpy()
    axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _mark_phases(axes: Axes, phases: pd.DataFrame, smallest: float) -> None:
    """Mark each phase with a vertical line, and label it above the axes on the side with more room."""
    for phase, height in zip(phases.to_dict("records"), (1, 8), strict=False):
        if pd.isna(phase["s"]):
            continue
        side = "left" if phase["fraction"] ** 2 < smallest else "right"
        axes.axvline(phase["fraction"], color=INK, linewidth=0.6, linestyle=":")
        axes.annotate(
            f"{phase['what']}: {100 * phase['fraction']:.2g} %", (phase["fraction"], 1), fontsize=SMALL_FONT, ha=side,
            xycoords=("data", "axes fraction"), xytext=(0, height), textcoords="offset points", va="bottom",
        )  # fmt: skip


def nuclei(measured: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    """Draw the relative size at which each nucleus is recovered: medians and quartiles over inputs."""
    table = select_rows(tables["nuclei"], bank=measured.name)
    kinds = [kind for kind in measured.kinds if kind in set(table["kind"])]
    figure, axes = single_axes()
    for i, kind in enumerate(kinds):
        rows = select_rows(table, kind=kind)
        x = np.arange(len(rows)) + (i - (len(kinds) - 1) / 2) * 0.7 / len(kinds)
        median = rows["median"].to_numpy()
        quartiles = np.stack([median - rows["lower_quartile"], rows["upper_quartile"] - median])
        axes.errorbar(x, median, quartiles, elinewidth=0.8, label=kind, **line_style(kind, linestyle="none"))
    axes.set_xticks(range(len(REPORTED_NUCLEI)), [f"{p}" for p in REPORTED_NUCLEI])
    axes.set_xlabel("nucleus (% of the probability)")
    axes.set_yscale("log")
    share_ticks(axes.yaxis, measured.fractions[0])
    axes.set_ylabel(f"{measured.unit} until recovered (% of all, log)")
    legend_below(figure, axes, 4)
    alt = f"Size at which ordered nuclei are recovered in {measured.name}, medians and quartiles over inputs"
    yield StudyFigure("nuclei", "nuclei", measured.name, alt, figure)


def unigrams(measured: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    """Draw KL from the full model and from the unigram against size, and the share of inputs nearer to the unigram."""
    table = select_rows(tables["unigram"], bank=measured.name)
    yield _unigram_kl(measured, table, select_rows(tables["leaving"], bank=measured.name))
    figure, axes = single_axes()
    for kind in (kind for kind in measured.kinds if kind in set(table["kind"])):
        _draw_mean(axes, select_rows(table, kind=kind), "nearer_to_unigram", kind, line_style(kind))
    axes.axhline(0.5, color=LINE, linewidth=0.8)
    size_axis(axes, measured.fractions[0], measured.unit)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("share of inputs nearer to the unigram")
    legend_below(figure, axes, 4)
    alt = f"Share of inputs of {measured.name} whose subgraph is nearer to the unigram than to the full model"
    yield StudyFigure("unigram-share", "unigram", measured.name, alt, figure)


def _unigram_kl(measured: MaskMeasurements, table: pd.DataFrame, crossover: pd.DataFrame) -> StudyFigure:
    own = select_rows(table, kind=measured.own_kind)
    figure, axes = single_axes()
    _draw_mean(axes, own, "full_kl", "from the full model", {"color": BLUE, "marker": "o"})
    _draw_mean(axes, own, "unigram_kl", "from the unigram", {"color": PURPLE, "marker": "D"})
    other_kinds = [kind for kind in measured.compared_kinds if kind != measured.own_kind]
    for kind, line in zip(other_kinds, ("--", ":", "-."), strict=False):
        rows = select_rows(table, kind=kind)
        for metric, color in (("full_kl", BLUE), ("unigram_kl", PURPLE)):
            axes.plot(rows["fraction"], rows[metric], color=color, linestyle=line, linewidth=0.8)
        axes.plot([], [], color=GREY, linestyle=line, linewidth=0.8, label=f"the same for {kind}")
    plotted = pd.concat([own, *(select_rows(table, kind=kind) for kind in other_kinds)])
    nats_axis(axes, plotted[["full_kl", "unigram_kl"]].to_numpy().ravel())
    size = crossover.set_index("kind").loc[measured.own_kind]
    axes.axvspan(size["lower_quartile"], size["upper_quartile"], color=LINE, alpha=0.5, linewidth=0)
    axes.axvline(size["median"], color=INK, linewidth=0.6, linestyle=":")
    size_axis(axes, measured.fractions[0], measured.unit)
    axes.set_ylabel("KL to the subgraph (nats, log)")
    legend_below(figure, axes, 2)
    alt = f"KL of subgraphs of {measured.name} from the full model and from the unigram, against relative size"
    return StudyFigure("unigram-kl", "unigram", measured.name, alt, figure)
