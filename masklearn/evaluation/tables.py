"""Results as tables to read in a terminal."""

from collections.abc import Callable
from functools import partial
from typing import Any

from masklearn.evaluation.measure import Row

ANSWERS = {
    "logit_diff": "logit diff",
    "full_logit_diff": "full diff",
    "prob_diff": "prob diff",
    "accuracy": "accuracy",
    "full_accuracy": "full acc",
    "faithfulness": "faithful",
}
"""Columns that there are where texts have answers."""


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _column(name: str, row: Row) -> str:
    return _shown(row[name])


def _control(name: str, row: Row) -> str:
    found = row["controls"][name]
    return "{kl_mean:.2f} ± {kl_std:.2f}".format(**found) if "n" in found else f"{found['kl']:.3f}"


def table(rows: list[Row]) -> str:
    """The rows as a person would read them."""
    columns: dict[str, Callable[[Row], str]] = {
        "s": lambda r: f"{r['s']}",
        "of all": lambda r: f"{r['fraction']:.0%}",
        "heads": lambda r: f"{r['heads']:.3g}",
        "mlps": lambda r: f"{r['mlps']:.3g}",
        "KL": lambda r: f"{r['kl']:.3f}",
        **{f"{name} KL": partial(_control, name) for name in rows[0]["controls"]},
        "TV": lambda r: f"{r['tv']:.3f}",
        "JS": lambda r: f"{r['js']:.3f}",
        "top-1": lambda r: f"{r['top1']:.1%}",
        "nucleus": lambda r: f"{r['nucleus_median']:.0f}%",
        **{title: partial(_column, name) for name, title in ANSWERS.items() if name in rows[0]},
        "CE": lambda r: _shown(r["cross_entropy"]),
        "full CE": lambda r: _shown(r["full_cross_entropy"]),
    }
    return aligned([list(columns), *([show(row) for show in columns.values()] for row in rows)])


def stages_table(rows: list[Row]) -> str:
    """What cutting cost and what polish brought back, as a person would read it; rows are a learner's `stages`."""
    header, *_ = [["s", *(f"{name} KL" for name in row if name != "s")] for row in rows]
    return aligned([header, *([f"{v:.3f}" if name != "s" else f"{v}" for name, v in row.items()] for row in rows)])


def aligned(cells: list[list[str]]) -> str:
    """Cells (lines, columns) as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)


def format_report(described: dict[str, Any]) -> str:
    """The table of a bank, and the areas under its faithfulness where texts have answers."""
    found = described.get("areas")
    of_what = {"mib": "MIB's sizes", "sizes": "these sizes, from none to all (MIB's are --model.sizes mib)"}
    last = "\n\nCPR {cpr:.3f}, CMD {cmd:.3f} over {of}".format(**found, of=of_what[found["over"]]) if found else ""
    return table(described["sizes"]) + last
