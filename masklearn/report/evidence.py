"""The evidence on a bank as one page: verdicts, a paragraph to quote, what was not tested, and all tables."""

from pathlib import Path
from typing import Any

import pandas as pd

from masklearn.evidence.gather import Evidence
from masklearn.evidence.verdicts import CLAIMS, UNKNOWN
from masklearn.files import atomic_write
from masklearn.report.page import render_page, table_view

SECTIONS = {
    "tests": (
        "Hypothesis tests",
        "Random subgraphs have as many heads and MLPs as the mask and are drawn from the whole model. p-values are "
        "corrected for the number of masks, of all groups and sizes (Holm). Equivalence, independence and minimality "
        "are passed by default: what is not rejected is not shown.",
    ),
    "controls": (
        "Controls",
        "KL of other masks of the same size on the same held-out texts, in nats. difference: the control's KL minus "
        "the mask's, with its 95 % bootstrap interval over texts. search: most tokens that its search scores, over "
        "those of the run's. again: masks learned again with as long a search; again_difference: KL minus "
        "theirs.",
    ),
    "stability": (
        "Stability",
        "Agreement of masks that were learned again, as means over pairs. jaccard: nodes of both over nodes of either; "
        "chance: its expectation for random masks with as many heads and MLPs. weighted and rank_correlation compare "
        "the scores behind the masks. run_kl: that of the run, whose search was longer. Other columns run_*: the same "
        "agreement with the run's mask.",
    ),
    "near_optimal": (
        "Near-optimal masks",
        "n: different masks, of those searched, with a KL within 2 % of the lowest; jaccard: the lowest of any two. "
        "reached: rediscoveries with at most the run's KL plus 2 %; others: different ones among them with other nodes "
        "than the run's; run_jaccard: the lowest of these with it; nearest_kl: the lowest of a rediscovery.",
    ),
    "nodes": (
        "Nodes",
        "Share of rediscovered masks that keep a node. core: all; never: none; contingent: some.",
    ),
    "completeness": (
        "Completeness",
        "An adversary closes a fifth of the mask's nodes in subgraph and model. gap: KL between the two afterwards; "
        "run_kl: before; in nats on held-out texts.",
    ),
    "pairs": (
        "Pairs",
        "interaction: KL that closing both nodes adds to closing each, in nats. Positive: each makes up for the other.",
    ),
    "transfer": (
        "Transfer",
        "KL of the masks on other texts, lengths and checkpoints, in nats, beside that of random masks with as many "
        "heads and MLPs. what: what differs from the run; group stands for the run's texts of another group, texts for "
        "those of --plan.transfer, run for those of another run. recovered: 1 minus the ratio of the KLs.",
    ),
}
"""Title and explanation of every table."""


def write_evidence(file: Path, name: str, evidence: Evidence) -> None:
    """Write the page. All strings from texts, models and settings are escaped.

    Args:
        file: The HTML file.
        name: What the evidence is on.
        evidence: The evidence.
    """
    verdicts = evidence.tables["verdicts"]
    cells = list(dict.fromkeys((row["group"], row["s"]) for row in verdicts))
    of_cell = {(row["claim"], row["group"], row["s"]): (row["verdict"], row["measured"]) for row in verdicts}
    rows = [(claim, [of_cell.get((claim, *cell), (UNKNOWN, "")) for cell in cells]) for claim in CLAIMS]
    several = len({group for group, _ in cells}) > 1
    content: dict[str, Any] = {
        "title": f"Evidence: {name}",
        "name": name,
        "cells": [f"{group}, s = {s}" if several else f"s = {s}" for group, s in cells],
        "rows": rows,
        "claims": CLAIMS,
        "summary": evidence.summary,
        "not_tested": evidence.not_tested,
        "facts": evidence.facts,
        "sections": [
            (title, explanation, table_view(key, pd.DataFrame(evidence.tables[key])))
            for key, (title, explanation) in SECTIONS.items()
            if evidence.tables[key]
        ],
    }
    atomic_write(file, render_page("evidence.html", content).encode())


def write_matrix(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write the page of a transfer matrix: for each size, masks by texts, and all rows. All strings are escaped.

    Args:
        file: The HTML file.
        rows: The rows of `evidence.transfer.transfer_matrix`.
    """
    texts = list(dict.fromkeys(row["texts"] for row in rows))
    found = {(row["s"], row["mask"], row["texts"]): (row["kl"], row["over_own"]) for row in rows}
    masks = dict.fromkeys((row["s"], row["mask"]) for row in rows)
    lines = [(s, mask, [found.get((s, mask, text), (None, None)) for text in texts]) for s, mask in sorted(masks)]
    content = {
        "title": "Transfer matrix",
        "texts": texts,
        "lines": lines,
        "table": table_view("transfer_matrix", pd.DataFrame(rows)),
    }
    atomic_write(file, render_page("matrix.html", content).encode())
