"""A figure of the study, as PNG, as PDF, or as SVG inside the page."""

import re
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.figure import Figure

from masklearn.report.style import COLUMN, INK, LINE, styled

FIRST_FIGURE = "together"
"""`StudyFigure.result` of the figure at the top of the page."""
MAX_FILE_NAME = 60
"""Characters of a bank's name in file names."""


@dataclass(frozen=True)
class StudyFigure:
    """One figure of the study with its names."""

    name: str
    """File name without the bank and the ending."""
    result: str
    """Table whose section of the page shows the figure."""
    bank: str
    """Name of its bank; `all` if it compares banks."""
    alt: str
    """What the figure shows, in a sentence."""
    figure: Figure

    @property
    def wide(self) -> bool:
        """Whether the figure spans two columns."""
        return self.figure.get_figwidth() > 1.5 * COLUMN


def render(study_figure: StudyFigure, file_format: Literal["png", "pdf"]) -> bytes:
    """Render a figure as the content of a file."""
    buffer = BytesIO()
    metadata = {"CreationDate": None} if file_format == "pdf" else None
    with styled():
        study_figure.figure.savefig(buffer, format=file_format, metadata=metadata)
    return buffer.getvalue()


def inline_svg(study_figure: StudyFigure, prefix: str) -> str:
    """Render a figure as SVG inside a page: in the colours of the page's theme, with `prefix` before the ids in use."""
    head, rest = svg_parts(study_figure.figure, study_figure.name, transparent=True)
    head = re.sub(r'\sxmlns="[^"]*"', "", head)  # HTML knows the element
    used = {*re.findall(r'(?:href="|url\()#([^")]+)', rest)}
    rest = re.sub(r'\sid="([^"]+)"', lambda found: f' id="{prefix}--{found[1]}"' if found[1] in used else "", rest)
    rest = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'href="#{prefix}--\2"', rest)
    rest = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}--\1)", rest)
    rest = re.sub(r"(?<!scale\(0)(\.\d\d)\d\d+", r"\1", rest)  # hundredths of a point; a scale is a ratio
    rest = re.sub(r"\s*\n(?=[A-Zz]\b)", "", rest)  # a path on one line
    rest = re.sub(r"\n\s*", "\n", rest).replace(INK, "currentColor").replace(LINE, "var(--line)")
    return f"{head}>{rest}"


def svg_parts(figure: Figure, salt: str, **options: Any) -> tuple[str, str]:
    """Render a figure as SVG without prolog, metadata and fixed size, and split it after the attributes of `<svg`.

    Args:
        figure: The figure.
        salt: Seed of the ids, so that equal figures give equal text.
        options: Arguments of `Figure.savefig`.
    """
    buffer = BytesIO()
    with styled(), mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, **options)
    text = buffer.getvalue().decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    head, rest = text.split(">", 1)
    return re.sub(r'\s(width|height|version|xmlns:xlink)="[^"]*"', "", head), rest


def file_stems(names: list[str]) -> dict[str, str]:
    """Return a distinct stem for every bank, of characters that every file system takes."""
    stems: dict[str, str] = {}
    for name in names:
        base = stem = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:MAX_FILE_NAME] or "bank"
        number = 1
        while stem in stems.values():
            number += 1
            stem = f"{base}-{number}"
        stems[name] = stem
    return stems
