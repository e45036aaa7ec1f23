"""A study to its figures, on paper and on a page."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masklearn.density import Study
from masklearn.density.curves import LEAST_SIZES
from masklearn.files import atomic_write
from masklearn.report import composition, correlations, curves
from masklearn.report.page import page
from masklearn.report.style import StudyFigure, render, styled

REPORT, FIGURES = "report.html", "figures"


def draw(study: Study) -> Iterator[StudyFigure]:
    """Every figure that the study has what it takes for."""
    tables = study.tables
    for bank in study.banks:
        if len(bank.sizes) >= LEAST_SIZES:
            yield from curves.density_curves(bank, tables)
            yield from curves.nuclei(bank, tables)
            yield from composition.composition(bank, tables)
        yield from composition.node_use(bank, tables)
        yield from correlations.density_correlations(bank, tables)
        if len(bank.sizes) >= LEAST_SIZES:
            yield from curves.unigrams(bank, tables)
        yield from correlations.by_token(bank, tables)
        if bank.name in study.thoughts:
            yield from composition.thought(bank, study.thoughts[bank.name])
    yield from correlations.across(list(study.banks), tables)
    yield from correlations.overlaps(tables)


def write_study(out: Path, study: Study, config: dict[str, dict[str, Any]]) -> list[Path]:
    """Draw a study into a folder: figures as PNG and PDF, and report.html.

    Args:
        out: The folder.
        study: The study.
        config: The settings under which every bank was learned, by its name.

    Returns:
        The PNG files.
    """
    with styled():
        drawn = list(draw(study))
        for one in drawn:  # laid out once, not anew for every format
            one.figure.draw_without_rendering()
            one.figure.set_layout_engine("none")
    shorts = _file_names([bank.name for bank in study.banks])
    pngs = []
    for figure in drawn:
        stem = figure.name if figure.bank == "all" else f"{shorts[figure.bank]}-{figure.name}"
        for kind in ("png", "pdf"):
            path = out / FIGURES / f"{stem}.{kind}"
            atomic_write(path, render(figure, kind))
        pngs.append(out / FIGURES / f"{stem}.png")
    atomic_write(out / REPORT, page(study, drawn, config).encode())
    return pngs


def _file_names(names: list[str]) -> dict[str, str]:
    """A name of its own for every bank, of what file systems take."""
    found: dict[str, str] = {}
    for name in names:
        stem = short = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "bank"
        number = 1
        while short in found.values():
            number += 1
            short = f"{stem}-{number}"
        found[name] = short
    return found
