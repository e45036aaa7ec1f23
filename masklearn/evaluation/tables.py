"""Results as tables to read in a terminal."""

from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

from masklearn.evaluation.measure import Row

ANSWER_COLUMNS = {
    "answer_logp": "answer logp",
    "full_answer_logp": "full logp",
    "logit_diff": "logit diff",
    "full_logit_diff": "full diff",
    "prob_diff": "prob diff",
    "accuracy": "accuracy",
    "full_accuracy": "full acc",
    "answer_top1": "answer top-1",
    "faithfulness": "faithful",
}
"""Titles of the columns that are shown if texts have answers, by metric."""
AREA_RANGES = {
    "mib": "MIB's sizes",
    "mib-input": "MIB's sizes, with the embedding as a node",
    "sizes": "these sizes, from none to all (MIB's are --model.sizes mib)",
}
"""The sizes over which areas are taken, in words."""
STAGES = {
    "soft": "gates at their probability of being open",
    "sampled": "gates drawn at random",
    "cut": "the top s nodes",
    "polished": "after swaps of nodes",
}
"""What a mask is at every stage from gates to masks."""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(name: str, row: Row) -> str:
    """A mean number of nodes: three digits, or all before the point."""
    return f"{row[name]:.0f}" if row[name] >= 100 else f"{row[name]:.3g}"


def _metric(name: str, row: Row) -> str:
    return _number(row[name])


def _control(name: str, row: Row) -> str:
    control = row["controls"][name]
    if "n" not in control:
        return _number(control["kl"])
    return "-" if control["kl_mean"] is None else "{kl_mean:.2f} ± {kl_std:.2f}".format(**control)


def table(rows: list[Row]) -> list[list[str]]:
    """The rows of `evaluate` as the cells of a table, the titles of the columns first."""
    columns: dict[str, Callable[[Row], str]] = {
        "s": lambda r: f"{r['s']}",
        "of all": lambda r: f"{r['fraction']:.0%}" if r["fraction"] >= 0.01 else f"{r['fraction']:.1%}",
        **{kind: partial(_count, kind) for kind in ("heads", "mlps")},
        "KL": partial(_metric, "kl"),
        **{f"{name} KL": partial(_control, name) for name in rows[0]["controls"]},
        "TV": partial(_metric, "tv"),
        "JS": partial(_metric, "js"),
        "top-1": lambda r: f"{r['top1']:.1%}",
        "nucleus": lambda r: f"{r['nucleus_median']:.0f}%",
        **{title: partial(_metric, name) for name, title in ANSWER_COLUMNS.items() if name in rows[0]},
        "CE": partial(_metric, "cross_entropy"),
        "full CE": partial(_metric, "full_cross_entropy"),
    }
    return [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]


def html_table(cells: list[list[str]]) -> str:
    """Cells (lines, columns), the titles first, as a table of HTML."""
    head, *body = cells
    titles = "".join(f"<th scope='col'>{escape(title)}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in body)
    table = f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"
    return f"<div style='overflow-x:auto; white-space:nowrap'>{table}</div>"


def text_table(rows: list[Row], unit: str) -> list[list[str]]:
    """The rows of `evaluate_edges` or `evaluate_positions` as cells, the titles first; shares are in percent.

    Args:
        rows: One for each size.
        unit: What sizes count: edges or positions.
    """
    columns: dict[str, Callable[[Row], str]] = {
        "of all": lambda r: f"{100 * r['s']:.3g}%",
        unit: lambda r: f"{r[unit]:.0f}",
        "TV": partial(_metric, "tv"),
        **{f"{name} TV": partial(_control_tv, name) for name in rows[0]["controls"]},
        "KL": partial(_metric, "kl"),
        "top-1": lambda r: f"{r['top1']:.1%}",
        "nucleus": lambda r: f"{r['nucleus_median']:.0f}%",
        **{name.removesuffix("_share"): partial(_share, name) for name in rows[0] if name.endswith("_share")},
        **{kind: partial(_count, kind) for kind in ("heads", "mlps")},
    }
    return [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]


def _control_tv(name: str, row: Row) -> str:
    return _number(row["controls"][name]["tv"])


def _share(name: str, row: Row) -> str:
    return f"{row[name]:.0%}"


def stages(rows: list[Row], polishes: bool) -> list[Row]:
    """A learner's `stages`; without that of polish if there was none, which is that of the cut masks."""
    return rows if polishes else [{name: v for name, v in row.items() if name != "polished"} for row in rows]


def phase_title(phase: str, polishes: bool) -> str:
    """Name of a run's phase: discretisation is part of polish, and all of it without rounds of swaps."""
    return "discretisation" if phase == "polish" and not polishes else phase


def stages_legend(rows: list[Row]) -> str:
    """One line that explains the columns of `stages`."""
    return "; ".join(f"{name}: {what}" for name, what in STAGES.items() if rows and name in rows[0]) + "."


def stages_table(rows: list[Row], loss: str = "KL") -> str:
    """The KL of each size after learning, discretisation and polish, as a table; `rows` are a learner's `stages`."""
    header, *_ = [["s", *(f"{name} {loss}" for name in row if name != "s")] for row in rows]
    return aligned([header, *([f"{v:.3f}" if name != "s" else f"{v}" for name, v in row.items()] for row in rows)])


def aligned(cells: list[list[str]]) -> str:
    """Cells (lines, columns) as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)


def format_report(described: dict[str, Any]) -> str:
    """The content of `metrics.json` as a table, and the areas under the faithfulness if texts have answers."""
    if "graph" in described:
        return aligned(text_table(described["sizes"], described["graph"]))
    areas = described.get("areas")
    suffix = ""
    if areas:
        suffix = "\n\nCPR {cpr:.3f}, CMD {cmd:.3f} over {sizes}".format(**areas, sizes=AREA_RANGES[areas["over"]])
    return aligned(table(described["sizes"])) + suffix
