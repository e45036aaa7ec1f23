"""Masks x data x metrics to one tidy table: the one code path for every reported number."""

from masklearn.evaluation.answer_check import implausible_answers
from masklearn.evaluation.bank_report import describe, evaluate, subgraphs_evaluated, texts_in_words
from masklearn.evaluation.edge_report import EdgeMode, evaluate_edges
from masklearn.evaluation.measure import Row, measure, top_tokens
from masklearn.evaluation.measured_bank import MeasuredBank
from masklearn.evaluation.per_text import PerTextRecorder, PerTextResults
from masklearn.evaluation.position_report import evaluate_positions
from masklearn.evaluation.tables import (
    aligned,
    format_report,
    html_table,
    phase_title,
    stages,
    stages_legend,
    stages_table,
    table,
    text_table,
)
from masklearn.evaluation.text_report import TextMeasurer, describe_texts, scored_text

__all__ = [
    "EdgeMode",
    "MeasuredBank",
    "PerTextRecorder",
    "PerTextResults",
    "Row",
    "TextMeasurer",
    "aligned",
    "describe",
    "describe_texts",
    "evaluate",
    "evaluate_edges",
    "evaluate_positions",
    "format_report",
    "html_table",
    "implausible_answers",
    "measure",
    "phase_title",
    "scored_text",
    "stages",
    "stages_legend",
    "stages_table",
    "subgraphs_evaluated",
    "table",
    "text_table",
    "texts_in_words",
    "top_tokens",
]
