"""One style for every figure: legible at the width of a journal column, in colours that the colour-blind tell apart."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from typing import Any, cast

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, FigureBase
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import LayoutEngine, PlaceHolderLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

MIN_PLOTTED_KL = 1e-4
"""Smallest KL on a log axis, in nats."""
COLUMN, HEIGHT = 3.4, 2.6
"""Width of a column of most journals, and the usual height of a figure, in inches."""
INK, LINE = "#1b1b1f", "#d4d4da"
"""Colours of text and axes, and of background lines; the page replaces them with those of its light or dark theme."""
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c94",
)  # fmt: skip
"""The colour-blind safe palette of Okabe and Ito, and a grey."""
KIND_STYLES: dict[str, dict[str, Any]] = {
    "learned": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "s-trace": {"color": GREEN, "linestyle": "-", "marker": "D"},
    "norm": {"color": ORANGE, "linestyle": "-", "marker": "s"},
    "random-matched": {"color": GREY, "linestyle": "-", "marker": "^"},
    "random": {"color": GREY, "linestyle": ":", "marker": "v"},
    "inverse": {"color": RED, "linestyle": "--", "marker": "x"},
}
"""Line and marker of each kind of subgraph."""
OTHER_KIND_COLORS = (GREEN, PURPLE, SKY)
"""Colours of kinds that `KIND_STYLES` does not list."""
SCREEN_DPI = 120
"""Pixels of a screen for an inch of a figure."""
SMALL_FONT = 6
"""Points: labels inside dense panels."""
RC_PARAMS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so present on every machine
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 2.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # names may contain a dollar sign
    "text.usetex": False,
    "figure.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: text in a PDF can be selected
    "svg.fonttype": "path",  # glyphs as outlines: the page needs no font
}


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style to figures that are created or saved inside the context."""
    with mpl.rc_context(cast(Any, RC_PARAMS)):
        yield


class ShownFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def png(self) -> bytes:
        """Return the figure as a PNG file."""
        content = BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()

    def get_layout_engine(self) -> LayoutEngine | None:
        """Return what lays the figure out, None once that is done: with an engine, every saving draws twice."""
        engine = super().get_layout_engine()
        return None if isinstance(engine, PlaceHolderLayoutEngine) else engine

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, _ = self.get_size_inches()
        return self.png(), {"width": round(width * SCREEN_DPI)}


def empty_figure(width: float = COLUMN, height: float = HEIGHT) -> ShownFigure:
    """Create a figure without axes; width and height in inches."""
    return ShownFigure(figsize=(width, height), layout="constrained")


def lay_out_once(figure: Figure) -> None:
    """Compute the layout of a figure for good, and not again for every format."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def single_axes(width: float = COLUMN, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Create a figure with one pair of axes; width and height in inches."""
    figure = empty_figure(width, height)
    return figure, figure.subplots()


def line_style(kind: str, **changes: Any) -> dict[str, Any]:
    """Return colour, line and marker of a kind of subgraph, as arguments of `Axes.plot`."""
    other = {"color": OTHER_KIND_COLORS[sum(map(ord, kind)) % 3], "linestyle": "-.", "marker": "D"}
    return KIND_STYLES.get(kind, other) | changes


def size_axis(axes: Axes, smallest: float, unit: str = "nodes") -> None:
    """Make x a log axis of the relative size, labelled in percent.

    Args:
        axes: The axes.
        smallest: The smallest fraction.
        unit: What is kept: nodes, edges or positions.
    """
    axes.set_xscale("log")
    axes.set_xlim(0.9 * smallest, 1.05)
    share_ticks(axes.xaxis, smallest)
    axes.set_xlabel(f"{unit} kept (% of all, log)")


def share_ticks(axis: Axis, smallest: float) -> None:
    """Label a log axis of the relative size in percent.

    Args:
        axis: The axis.
        smallest: The smallest fraction.
    """
    fine = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    choice = fine if smallest > fine[0] / 2 else (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
    axis.set_ticks([tick for tick in choice if tick >= 0.9 * smallest])
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{100 * tick:.3g}"))
    axis.set_minor_locator(NullLocator())


def nats_axis(axes: Axes, values: Iterable[float]) -> None:
    """Make y a log axis of KL in nats that starts at the smallest finite value, but not below `MIN_PLOTTED_KL`."""
    smallest = min(filter(math.isfinite, values), default=MIN_PLOTTED_KL)
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(MIN_PLOTTED_KL, smallest) / 1.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend_below(figure: FigureBase, axes: Axes, ncols: int = 3) -> None:
    """Put the legend of the axes below them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, columnspacing=1.2, handlelength=2.2)


def count_nodes(s: int | float) -> str:
    """Return "1 node" or "<s> nodes"; for a share of a text's edges or positions, which is a float, its percentage."""
    return f"{100 * s:.3g} %" if isinstance(s, float) else f"{s} node{'' if s == 1 else 's'}"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def drawable(text: str, max_length: int = 40) -> str:
    """Return the text on one line, shortened, with a box for each character that the font lacks.

    A legend leaves out labels that begin with an underscore, so a space of no width stands before it.
    """
    shown = "".join(c if ord(c) in _glyphs() and c.isprintable() else "\N{WHITE SQUARE}" for c in visible(text))
    shown = shown if len(shown) <= max_length else shown[: max_length - 1] + "…"
    return f"\N{ZERO WIDTH SPACE}{shown}" if shown.startswith("_") else shown


def drawable_names(names: Sequence[str], max_length: int) -> dict[str, str]:
    """Return a label of each name, shortened in the middle, and numbered if two would look alike."""
    labels = {name: drawable(_shortened(name, max_length)) for name in names}
    if len(set(labels.values())) == len(labels):
        return labels
    return {name: f"{i}: {label}" for i, (name, label) in enumerate(labels.items(), start=1)}


def _shortened(name: str, max_length: int) -> str:
    """Return a name without its middle: runs differ in the date at their end, and groups follow the run's name."""
    n_first = max_length // 3
    return name if len(name) <= max_length else f"{name[:n_first]}…{name[n_first + 1 - max_length :]}"


def visible(text: str) -> str:
    """Return a token with symbols in place of line breaks and tabs, and of spaces if it has nothing else."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣" if not text.strip() else " ")
