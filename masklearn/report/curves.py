"""Figures of how close subgraphs come: the density curve, nuclei, and what the sparsest know."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from masklearn.density.measurements import RECOVERED, SHOWN, MaskMeasurements
from masklearn.density.tables import select_rows
from masklearn.report.style import (
    BLUE,
    GREY,
    INK,
    LINE,
    PURPLE,
    StudyFigure,
    legend,
    line_style,
    nats_axis,
    one_axes,
    size_axis,
)

Tables = dict[str, pd.DataFrame]


def _band(axes: Axes, table: pd.DataFrame, name: str, label: str, style: dict) -> None:
    x, y = table["fraction"].to_numpy(), table[name].to_numpy()
    axes.plot(x, y, label=label, **style)
    low, high = table[f"{name}_low"].to_numpy(), table[f"{name}_high"].to_numpy()
    axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def density_curves(bank: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    table, phases = select_rows(tables["curve"], bank=bank.name), select_rows(tables["phases"], bank=bank.name)
    for name, label in (("tv", "TV distance from the full model"), ("kl", "KL from the full model (nats, log)")):
        figure, axes = one_axes()
        for kind in bank.kinds:
            _band(axes, select_rows(table, kind=kind), name, kind, line_style(kind))
        for phase, high in zip(phases.to_dict("records"), (1, 8), strict=False):
            if pd.isna(phase["s"]):
                continue
            side = "left" if phase["fraction"] ** 2 < bank.fractions[0] else "right"  # towards where there is room
            axes.axvline(phase["fraction"], color=INK, linewidth=0.6, linestyle=":")
            axes.annotate(
                f"{phase['what']}: {100 * phase['fraction']:.2g} %", (phase["fraction"], 1), fontsize=6, ha=side,
                xycoords=("data", "axes fraction"), xytext=(0, high), textcoords="offset points", va="bottom",
            )  # fmt: skip
        size_axis(axes, bank.fractions[0])
        axes.set_ylabel(label)
        if name == "tv":
            axes.set_ylim(0, 1.02)
        else:
            nats_axis(axes, table["kl"])
        legend(figure, axes)
        alt = f"{label} against relative size for {', '.join(bank.kinds)} subgraphs of {bank.name}, means over inputs"
        yield StudyFigure(f"curve-{name}", "curve", bank.name, alt, figure)


def nuclei(bank: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    table = select_rows(tables["nuclei"], bank=bank.name)
    kinds = [kind for kind in bank.kinds if kind in set(table["kind"])]
    figure, axes = one_axes()
    for i, kind in enumerate(kinds):
        rows = select_rows(table, kind=kind)
        x = np.arange(len(rows)) + (i - (len(kinds) - 1) / 2) * 0.7 / len(kinds)
        median = rows["median"].to_numpy()
        spread = np.stack([median - rows["lower_quartile"], rows["upper_quartile"] - median])
        axes.errorbar(x, median, spread, elinewidth=0.8, label=kind, **line_style(kind, linestyle="none"))
    axes.set_xticks(range(len(RECOVERED)), [f"{p}" for p in RECOVERED])
    axes.set_xlabel("nucleus (% of the probability)")
    axes.set_yscale("log")
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1) if tick >= 0.9 * bank.fractions[0]]
    axes.set_yticks(ticks, [f"{100 * tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylabel("nodes until recovered (% of all, log)")
    legend(figure, axes, 4)
    alt = f"Size at which ordered nuclei are recovered in {bank.name}, medians and quartiles over inputs"
    yield StudyFigure("nuclei", "nuclei", bank.name, alt, figure)


def unigrams(bank: MaskMeasurements, tables: Tables) -> Iterator[StudyFigure]:
    table = select_rows(tables["unigram"], bank=bank.name)
    learned = select_rows(table, kind="learned")
    figure, axes = one_axes()
    _band(axes, learned, "full_kl", "from the full model", {"color": BLUE, "marker": "o"})
    _band(axes, learned, "unigram_kl", "from the unigram", {"color": PURPLE, "marker": "D"})
    for kind, line in zip((kind for kind in SHOWN[1:] if kind in set(table["kind"])), ("--", ":"), strict=False):
        rows = select_rows(table, kind=kind)
        for name, color in (("full_kl", BLUE), ("unigram_kl", PURPLE)):
            axes.plot(rows["fraction"], rows[name], color=color, linestyle=line, linewidth=0.8)
        axes.plot([], [], color=GREY, linestyle=line, linewidth=0.8, label=f"those of {kind}")
    nats_axis(axes, learned["full_kl"])
    left = select_rows(tables["leaving"], bank=bank.name).set_index("kind").loc["learned"]
    axes.axvspan(left["lower_quartile"], left["upper_quartile"], color=LINE, alpha=0.5, linewidth=0)
    axes.axvline(left["median"], color=INK, linewidth=0.6, linestyle=":")
    size_axis(axes, bank.fractions[0])
    axes.set_ylabel("KL to the subgraph (nats, log)")
    legend(figure, axes, 2)
    alt = f"KL of subgraphs of {bank.name} from the full model and from the unigram, against relative size"
    yield StudyFigure("unigram-kl", "unigram", bank.name, alt, figure)
    figure, axes = one_axes()
    for kind in (kind for kind in bank.kinds if kind in set(table["kind"])):
        _band(axes, select_rows(table, kind=kind), "nearer_to_unigram", kind, line_style(kind))
    axes.axhline(0.5, color=LINE, linewidth=0.8)
    size_axis(axes, bank.fractions[0])
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("share of inputs nearer to the unigram")
    legend(figure, axes, 4)
    alt = f"Share of inputs of {bank.name} whose subgraph is nearer to the unigram than to the full model"
    yield StudyFigure("unigram-share", "unigram", bank.name, alt, figure)
