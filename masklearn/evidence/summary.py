"""The evidence in a paragraph that can be quoted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from masklearn.evidence.control_tables import BEATEN
from masklearn.evidence.rediscovery import BOOTSTRAP
from masklearn.evidence.transfer import OWN
from masklearn.evidence.verdicts import CLAIMS, LEFT_OUT, NO, PART_OF, UNKNOWN, YES, Table

NUMBERS = {
    "beats controls": "nearest control, KL minus the mask's",
    "stable": "Jaccard index over bootstraps",
    "complete": "KL that closing adds",
}
"""What the numbers behind a claim are."""


def paragraph(tables: Mapping[str, Table], facts: Mapping[str, Any]) -> str:
    """What was found, in sentences that can be quoted, with the KL, the overlap, and 95 % intervals over texts.

    Args:
        tables: All tables.
        facts: Of the run and the plan: `model`, `texts`, `n_texts`, `draws`, `rediscoveries`, `steps`, `ablation`.
    """
    tested = [row for row in tables["verdicts"] if row["measured"] != LEFT_OUT]
    has_tests = any(PART_OF[row["claim"]] == "tests" for row in tested)
    against = f" against {facts['draws']} random subgraphs with as many heads and MLPs" if has_tests else ""
    n = facts["rediscoveries"]
    again = f", and learned again {n} times with {facts['steps']} steps" if n else ""
    lines = [
        f"Masks of {_quoted(facts['model'])} under {facts['ablation']} ablation, tested on {facts['n_texts']} held-out "
        f"texts of {_quoted(facts['texts'])}{against}{again}.",
        *(["P-values are corrected for the number of masks (Holm), level 5 %."] if has_tests else []),
    ]
    kl = [(row, _kl(tables, row)) for row in {_name(row): row for row in tables["verdicts"]}.values()]
    if known := [f"{value:.3g} at {_name(row)}" for row, value in kl if value is not None]:
        lines.append(f"KL from the full model, in nats: {_joined(known)}.")
    for claim in CLAIMS:
        rows = [row for row in tested if row["claim"] == claim]
        by_verdict = {v: [row for row in rows if row["verdict"] == v] for v in (YES, NO, UNKNOWN)}
        parts = [
            f"{verdict} at {_joined([_name(row) + _number(tables, row) for row in of_verdict])}"
            for verdict, of_verdict in by_verdict.items()
            if of_verdict
        ]
        if parts:
            has_numbers = any(_number(tables, row) for row in rows)
            of_what = f" ({NUMBERS[claim]})" if has_numbers else ""
            lines.append(f"{claim[0].upper()}{claim[1:]}{of_what}: {'; '.join(parts)}.")
    return " ".join(lines)


def _kl(tables: Mapping[str, Table], cell: Mapping[str, Any]) -> float | None:
    """The KL of a mask on the held-out texts of its group, from a table that has it."""
    for name in ("controls", "stability", "completeness"):
        if rows := _rows(tables[name], cell):
            return rows[0]["run_kl"]
    own = [row for row in _rows(tables["transfer"], cell) if row["what"] == OWN]
    return own[0]["kl"] if own else None


def _number(tables: Mapping[str, Table], verdict: Mapping[str, Any]) -> str:
    """The number behind a verdict, in brackets; nothing where there is none, or where nothing was tested."""
    if verdict["verdict"] == UNKNOWN:
        return ""
    if verdict["claim"] == "beats controls":
        return _of_controls(_rows(tables["controls"], verdict))
    if verdict["claim"] == "complete":
        (row,) = _rows(tables["completeness"], verdict)
        return f" ({row['excess']:+.3g}, 95 % interval {row['low']:.3g} to {row['high']:.3g})"
    if verdict["claim"] == "stable":
        rows = [row for row in _rows(tables["stability"], verdict) if row["source"] == BOOTSTRAP]
        return "".join(
            f" ({row['jaccard']:.2f}, with the run's mask {row['run_jaccard']:.2f}, by chance {row['chance']:.2f})"
            for row in rows[:1]
        )
    return ""


def _of_controls(controls: Table) -> str:
    """The nearest control, of those that are not beaten if there are any; at equal search if only there it is not."""
    lost = [row for row in controls if row["verdict"] != BEATEN]
    row = min(lost or controls, key=lambda row: row["difference"])
    prefix, where = ("again_", " at equal search") if lost and row["low"] > 0 else ("", "")
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return f" ({row[f'{prefix}difference']:+.3g}{where}, 95 % interval {low:.3g} to {high:.3g})"


def _rows(table: Table, cell: Mapping[str, Any]) -> Table:
    return [row for row in table if (row["group"], row["s"]) == (cell["group"], cell["s"])]


def _quoted(what: str) -> str:
    """A model or texts without the folders of a machine, which nobody quotes."""
    return Path(what).name if Path(what).is_absolute() else what


def _name(row: Mapping[str, Any]) -> str:
    return f"s = {row['s']}" + ("" if row["group"] == "dataset" else f" ({row['group']})")


def _joined(names: Sequence[str]) -> str:
    first, *rest = names
    return ", ".join([first, *(name.removeprefix("s = ").replace(" at s = ", " at ") for name in rest)])
