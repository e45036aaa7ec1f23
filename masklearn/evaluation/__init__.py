"""Masks x data x metrics to one tidy table: the one code path for every reported number."""

from masklearn.evaluation.answer_check import implausible_answers
from masklearn.evaluation.bank_report import describe, evaluate, subgraphs_evaluated
from masklearn.evaluation.edge_report import EdgeMeasurer, describe_edges, evaluate_edges, scored_text
from masklearn.evaluation.measure import Row, measure, top_tokens
from masklearn.evaluation.per_text import PerTextRecorder, PerTextResults
from masklearn.evaluation.tables import aligned, format_report, html_table, stages_table, table

__all__ = [
    "EdgeMeasurer",
    "PerTextRecorder",
    "PerTextResults",
    "Row",
    "aligned",
    "describe",
    "describe_edges",
    "evaluate",
    "evaluate_edges",
    "format_report",
    "html_table",
    "implausible_answers",
    "measure",
    "scored_text",
    "stages_table",
    "subgraphs_evaluated",
    "table",
    "top_tokens",
]
