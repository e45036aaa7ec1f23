"""Figures and page of a run, of evidence and of a study. Needs the `report` extra (matplotlib, jinja2)."""

from masklearn.report.bank_page import bank_page, png_element, run_overview, write_run
from masklearn.report.evidence import write_evidence, write_matrix
from masklearn.report.node_map import node_map_svg
from masklearn.report.study import write_study

__all__ = [
    "bank_page",
    "node_map_svg",
    "png_element",
    "run_overview",
    "write_evidence",
    "write_matrix",
    "write_run",
    "write_study",
]
