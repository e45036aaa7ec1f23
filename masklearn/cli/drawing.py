"""Figures, if matplotlib is installed. It takes a second to import, so it is imported only to draw."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from masklearn.cli.run_folder import RunFolder
from masklearn.density import Study
from masklearn.density.study_folder import REPORT_FILE
from masklearn.evidence.gather import Evidence
from masklearn.mask_file import Mask
from masklearn.text_bank import TextBank


def can_draw() -> bool:
    """Whether figures can be drawn; if not, print how to get what is missing."""
    if find_spec("matplotlib"):
        return True
    print("No figures drawn: they need matplotlib. Get it with: pip install matplotlib jinja2")
    return False


def draw_run(
    folder: RunFolder, bank: Mask | TextBank, described: dict[str, Any], description: str
) -> tuple[list[Path], list[Path]]:
    """Draw as `masklearn.report.write_run`, if its libraries are there. Returns the PNG files and the page, or none."""
    if not can_draw():
        return [], []
    from masklearn import report

    figures, page = report.write_run(folder.path, bank, described, description)
    return figures, [page]


def node_maps(mask: Mask) -> dict[str, str]:
    """The node map of every size as SVG, by the name under which it is logged: `masks/s=8`."""
    from masklearn import report

    shares = zip(mask.sizes.tolist(), mask.share(), strict=True)
    return {f"masks/s={s}": report.node_map_svg(mask.graph, share) for s, share in shares}


def draw_study(folder: Path, study: Study, config: dict[str, dict[str, Any]]) -> tuple[list[Path], Path]:
    """Draw a study's figures and its page into a folder.

    Args:
        folder: The study's folder.
        study: The study.
        config: The settings under which every bank was learned, by the bank's name.

    Returns:
        The PNG files, and the page.
    """
    from masklearn import report

    return report.write_study(folder, study, config), folder / REPORT_FILE


def draw_evidence(file: Path, name: str, evidence: Evidence) -> list[Path]:
    """Write the page of evidence on a mask file, if its libraries are there; returns what was written.

    Args:
        file: The page.
        name: The mask file.
        evidence: What was found out.
    """
    if can_draw():
        from masklearn import report

        report.write_evidence(file, name, evidence)
        return [file]
    return []


def draw_matrix(file: Path, table: list[dict[str, Any]]) -> list[Path]:
    """Write the page of a transfer matrix, if its libraries are there; returns what was written."""
    if can_draw():
        from masklearn import report

        report.write_matrix(file, table)
        return [file]
    return []
