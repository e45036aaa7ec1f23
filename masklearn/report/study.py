"""A study to its figures, as files and on the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masklearn.density import Study
from masklearn.density.curves import MIN_CURVE_SIZES
from masklearn.density.study_folder import FIGURES_FOLDER, REPORT_FILE
from masklearn.files import atomic_write
from masklearn.report import comparison, composition, correlations, curves
from masklearn.report.page import page
from masklearn.report.study_figure import StudyFigure, file_stems, render
from masklearn.report.style import lay_out_once, styled
from masklearn.report.top_tokens import top_tokens


def draw(study: Study) -> Iterator[StudyFigure]:
    """Draw every figure whose results are defined."""
    tables = study.tables
    yield from curves.curves_together(study.measurements, tables)
    for measured in study.measurements:
        has_curve = len(measured.sizes) >= MIN_CURVE_SIZES
        if has_curve:
            yield from curves.density_curves(measured, tables)
            yield from curves.nuclei(measured, tables)
            yield from composition.composition(measured, tables)
        yield from composition.node_use(measured, tables)
        yield from correlations.density_correlations(measured, tables)
        if has_curve:
            yield from curves.unigrams(measured, tables)
        yield from correlations.token_densities(measured, tables)
        if measured.name in study.top_tokens:
            yield from top_tokens(measured, study.top_tokens[measured.name])
    yield from comparison.density_agreement(study.measurements, tables)
    yield from comparison.mask_overlaps(tables)


def write_study(out: Path, study: Study, config: dict[str, dict[str, Any]]) -> list[Path]:
    """Draw a study into a folder: figures as PNG and PDF, and report.html.

    Args:
        out: The folder.
        study: The study.
        config: The settings of the run that learned each bank, by the bank's name.

    Returns:
        The PNG files.
    """
    with styled():
        study_figures = list(draw(study))
        for one in study_figures:
            lay_out_once(one.figure)
    stems = file_stems([measured.name for measured in study.measurements])
    paths = []
    for one in study_figures:
        path = out / FIGURES_FOLDER / (one.name if one.bank == "all" else f"{stems[one.bank]}-{one.name}")
        for file_format in ("png", "pdf"):
            atomic_write(path.with_name(f"{path.name}.{file_format}"), render(one, file_format))
        paths.append(path.with_name(f"{path.name}.png"))
    atomic_write(out / REPORT_FILE, page(study, study_figures, config).encode())
    return paths
