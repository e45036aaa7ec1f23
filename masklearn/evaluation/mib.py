"""Scores of a bank as the MIB benchmark takes them: faithfulness and accuracy at its fractions of nodes, CPR and CMD.

Source: Mueller et al. 2025 (arXiv 2504.13151), and the evaluator of its circuit track.
"""

from collections.abc import Sequence
from typing import Any

from masklearn.evaluation.answer_metrics import areas
from masklearn.sizes import MIB_FRACTIONS, MIB_INPUT_SERIES, MIB_SERIES, mib_counts

ON_CURVE = ("faithfulness", "accuracy", "answer_top1")
"""Metrics at each fraction."""


def answer_areas(rows: Sequence[dict[str, Any]], n_nodes: int) -> dict[str, Any] | None:
    """CPR and CMD of the rows of `evaluate`: see `areas`.

    At MIB's ten fractions if the sizes are theirs, otherwise at all sizes, from no node to every node.

    Args:
        rows: One row for each size, with `faithfulness` and `references`.
        n_nodes: Nodes of the model.

    Returns:
        `cpr`, `cmd`, `over` (`mib`, `mib-input` or `sizes`), and at MIB's fractions also `average`, the mean
        faithfulness, and `curve`, a row for each fraction. None if a faithfulness is not defined.
    """
    if any(found.get("faithfulness") is None for row in rows for found in (row, *row.get("references", {}).values())):
        return None
    full = {name: rows[0].get(f"full_{name}") for name in ON_CURVE} | {"faithfulness": 1.0}
    by_count = {-1: rows[0]["references"]["empty"], 0: rows[0]["references"]["input"], n_nodes: full}
    by_count |= {row["s"]: row for row in rows}
    for series in (MIB_SERIES, MIB_INPUT_SERIES):
        counts = mib_counts(n_nodes, with_input=series == MIB_INPUT_SERIES)
        if set(counts) <= set(by_count):
            curve = [
                {"fraction": fraction, "s": count, **{name: by_count[count].get(name) for name in ON_CURVE}}
                for fraction, count in zip(MIB_FRACTIONS, counts, strict=True)
            ]
            found = areas([(point["fraction"], point["faithfulness"]) for point in curve])
            average = sum(point["faithfulness"] for point in curve) / len(curve)
            return found | {"over": series, "average": average, "curve": curve}
    counts = sorted(count for count in by_count if count >= 0)
    return areas([(count / n_nodes, by_count[count]["faithfulness"]) for count in counts]) | {"over": "sizes"}
