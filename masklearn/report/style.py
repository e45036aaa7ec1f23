"""One style for every figure: a column wide, legible there, colours that the colour-blind tell apart."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, cast

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

LEAST_KL = 1e-4
"""Nats at which a log axis of KL ends."""
COLUMN, HEIGHT = 3.4, 2.6
"""Inches: a column of most journals, and what looks well beside it."""
INK, LINE = "#1b1b1f", "#d4d4da"
"""Text and axes, and what stands behind; the page puts its own colours in their place, dark or light."""
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c94",
)  # fmt: skip
"""Okabe and Ito's colour-blind safe colours, and a grey."""
KINDS: dict[str, dict[str, Any]] = {
    "learned": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "norm": {"color": ORANGE, "linestyle": "-", "marker": "s"},
    "random-matched": {"color": GREY, "linestyle": "-", "marker": "^"},
    "random": {"color": GREY, "linestyle": ":", "marker": "v"},
    "inverse": {"color": RED, "linestyle": "--", "marker": "x"},
}
OTHERS = (GREEN, PURPLE, SKY)
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, whatever else the machine lacks
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
    "text.parse_math": False,  # a name may hold a dollar sign
    "text.usetex": False,
    "figure.dpi": 200,
    "pdf.fonttype": 42,  # text in a PDF stays text
    "svg.fonttype": "path",  # and a page needs no font
}


@dataclass(frozen=True)
class StudyFigure:
    """One figure and what it is called."""

    name: str
    """Of its files."""
    result: str
    """The result that it shows."""
    bank: str
    alt: str
    """What it shows, in a sentence."""
    figure: Figure

    @property
    def wide(self) -> bool:
        """Whether it takes two columns."""
        return self.figure.get_figwidth() > 1.5 * COLUMN


@contextmanager
def styled() -> Iterator[None]:
    with mpl.rc_context(cast(Any, STYLE)):
        yield


def blank(width: float = COLUMN, height: float = HEIGHT) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def one_axes(width: float = COLUMN, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = blank(width, height)
    return figure, figure.subplots()


def line_style(kind: str, **changes: Any) -> dict[str, Any]:
    """Colour, line and marker of a kind of subgraphs; those without a fixed one share three."""
    known = KINDS.get(kind) or {"color": OTHERS[sum(map(ord, kind)) % 3], "linestyle": "-.", "marker": "D"}
    return known | changes


def size_axis(axes: Axes, smallest: float) -> None:
    """Relative size on a log axis, in percent."""
    axes.set_xscale("log")
    axes.set_xlim(0.9 * smallest, 1.05)
    ticks = [tick for tick in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if tick >= 0.9 * smallest]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{100 * tick:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("nodes kept (% of all, log)")


def nats_axis(axes: Axes, values: Iterable[float]) -> None:
    """KL on a log axis, down to `LEAST_KL` where there is anything so small."""
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(LEAST_KL, min(values)) / 1.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, axes: Axes, ncols: int = 3) -> None:
    """Below the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, columnspacing=1.2, handlelength=2.2)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def drawable(text: str, most: int = 40) -> str:
    """Text as the font can show it, on one line, not too long."""
    shown = "".join(c if ord(c) in _glyphs() and c.isprintable() else "\N{WHITE SQUARE}" for c in visible(text))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def visible(text: str) -> str:
    """A token with blanks and breaks that can be seen."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣" if not text.strip() else " ")


def svg(drawn: StudyFigure, prefix: str) -> str:
    """A figure as SVG to stand in a page: no prolog, no size, the page's colours, ids that begin as no other's do."""
    buffer = BytesIO()
    with styled(), mpl.rc_context({"svg.hashsalt": drawn.name}):
        drawn.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns:xlink)="[^"]*"', "", head)
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}--\1"', rest)
    rest = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'href="#{prefix}--\2"', rest)
    rest = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}--\1)", rest)
    rest = re.sub(r"\n\s*", "\n", rest).replace(INK, "currentColor").replace(LINE, "var(--line)")
    return f"{head}>{rest}"


def render(drawn: StudyFigure, kind: str) -> bytes:
    """A figure as PNG or PDF."""
    buffer = BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else None
    with styled():
        drawn.figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
