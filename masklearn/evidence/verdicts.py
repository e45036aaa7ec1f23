"""Verdicts on a bank: one row for each claim and size."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from masklearn.evidence import circuit_tests as tests
from masklearn.evidence.control_tables import BEATEN
from masklearn.evidence.intervals import NOT_TESTED, too_few_texts
from masklearn.evidence.plan import EvidencePart
from masklearn.evidence.rediscovery import BOOTSTRAP
from masklearn.evidence.stability import STABLE_JACCARD

Table = list[dict[str, Any]]
"""Rows of a table, by column."""
YES, NO, UNKNOWN = "yes", "no", "not tested"
"""What is said of a claim."""
CLAIMS = {
    "sufficient": "Its KL is lower than that of nine in ten random subgraphs with as many heads and MLPs.",
    "necessary": "Closing it raises the KL more than closing nine in ten such subgraphs.",
    "equivalent": "No difference found: texts prefer it to the model about as often as not.",
    "complement independent": "No dependence found between the scores of all other nodes and the model's.",
    "minimal": "No node found that matters less than one in ten other nodes would.",
    "beats controls": "Its KL is lower than that of every control, by a 95 % interval over texts. So is that of masks "
    "learned again with the budget of learned controls, if there are any.",
    "stable": f"Masks learned on resampled texts have a mean Jaccard index of at least {STABLE_JACCARD}.",
    "unique": "No other mask that was found has a KL within 2 % of the lowest.",
    "complete": "Closing a fifth of its nodes in both, which an adversary chooses, moves the two no further apart.",
}
"""When each claim holds. What is not found is not shown to be absent."""
MIN_SHOWN_P = 0.001
"""Smaller p-values are not told apart in words."""
CLAIM_OF = {
    tests.SUFFICIENCY: ("sufficient", YES, NO),
    tests.NECESSITY: ("necessary", YES, NO),
    tests.EQUIVALENCE: ("equivalent", NO, YES),
    tests.INDEPENDENCE: ("complement independent", NO, YES),
    tests.MINIMALITY: ("minimal", NO, YES),
}
"""The claim of each test, and its verdict if the null hypothesis is rejected, and if it is not."""


PART_OF: dict[str, EvidencePart] = {
    **{claim: "tests" for claim, _, _ in CLAIM_OF.values()},
    "beats controls": "controls",
    "stable": "stability",
    "unique": "stability",
    "complete": "completeness",
}
"""The part of the evidence that each claim needs."""
LEFT_OUT = "left out by --plan.parts"
"""What was measured of a claim whose part is not gathered."""


def verdict_table(
    tables: Mapping[str, Table], cells: Sequence[tuple[str, int]], parts: Collection[EvidencePart]
) -> Table:
    """All verdicts, ordered by group and size.

    Args:
        tables: The tables of the evidence.
        cells: Every group with every size.
        parts: Parts of the evidence that were gathered.
    """
    rows = [_of_test(row) for row in tables["tests"]]
    for group, s in cells:
        of_cell = {
            name: [row for row in table if row.get("group") == group and row.get("s") == s]
            for name, table in tables.items()
        }
        cell = {"group": group, "s": s}
        rows += [cell | row for row in _other_claims(of_cell) if PART_OF[row["claim"]] in parts]
        left_out = [claim for claim in CLAIMS if PART_OF[claim] not in parts]
        rows += [cell | {"claim": claim, "verdict": UNKNOWN, "measured": LEFT_OUT} for claim in left_out]
    order = {claim: i for i, claim in enumerate(CLAIMS)}
    return sorted(rows, key=lambda row: (cells.index((row["group"], row["s"])), order[row["claim"]]))


def _of_test(row: Mapping[str, Any]) -> dict[str, Any]:
    claim, if_rejected, if_kept = CLAIM_OF[row["test"]]
    cell = {"group": row["group"], "s": row["s"], "claim": claim}
    if row["p_corrected"] is None:
        return cell | {"verdict": UNKNOWN, "measured": row["note"]}
    share = ""
    if row["share"] is not None:
        of = "texts" if row["test"] == tests.EQUIVALENCE else "draws"
        share = f"wins {row['share']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of {row['n']} {of}, "
    p = row["p_corrected"]
    measured = f"{share}p {f'= {p:.2g}' if p >= MIN_SHOWN_P else f'< {MIN_SHOWN_P:g}'}" + (
        f"; {row['note']}" if row["note"] else ""
    )
    return cell | {"verdict": if_rejected if p <= tests.ALPHA else if_kept, "measured": measured}


def _other_claims(of_cell: Mapping[str, Table]) -> Table:
    """The verdicts of one group and size besides those of the tests."""
    rows = Table()
    controls, overlaps = of_cell.get("controls", []), of_cell.get("stability", [])
    if controls:
        rows.append(_of_controls(controls))
    of_texts = [row for row in overlaps if row["source"] == BOOTSTRAP]
    if of_texts:
        (row,) = of_texts
        others = "".join(f", {r['source']} {r['jaccard']:.2f}" for r in overlaps if r is not row)
        measured = (
            f"Jaccard {row['jaccard']:.2f} over {row['n']} bootstraps (chance {row['chance']:.2f}; heads "
            f"{row['heads']:.2f}, chance {row['heads_chance']:.2f}; MLPs {row['mlps']:.2f}, chance "
            f"{row['mlps_chance']:.2f}){others}"
        )
        verdict = YES if row["jaccard"] >= STABLE_JACCARD else NO
    else:
        verdict, measured = UNKNOWN, "fewer than two bootstraps"
    rows.append({"claim": "stable", "verdict": verdict, "measured": measured})
    for row in of_cell.get("near_optimal", []):
        measured = f"{row['n']} of {row['searched']} masks within 2 % of KL {row['kl']:.3g}"
        measured += f", Jaccard down to {row['jaccard']:.2f}" if row["n"] > 1 else ""
        rows.append({"claim": "unique", "verdict": YES if row["n"] == 1 else NO, "measured": measured})
    rows += [_of_completeness(row) for row in of_cell.get("completeness", [])]
    return rows


def _of_controls(controls: Table) -> dict[str, Any]:
    """Whether the mask of one group and size beats all controls."""
    claim = "beats controls"
    if any(row["verdict"] == NOT_TESTED for row in controls):
        return {"claim": claim, "verdict": UNKNOWN, "measured": too_few_texts(controls[0]["texts"])}
    lost = [row["control"] for row in controls if row["verdict"] != BEATEN]
    nearest = min(controls, key=lambda row: row["difference"])
    measured = f"{len(controls) - len(lost)} of {len(controls)} beaten; nearest {nearest['control']}, "
    measured += _kl_difference(nearest, "") + (f"; not beaten: {', '.join(lost)}" if lost else "")
    shares = [row["search"] for row in controls if row["search"] is not None]
    if shares:
        share = max(shares)
        measured += f"; {f'{share:.0%}' if share else 'less than all'} of the run's search for learned controls"
        of_equal = [row for row in controls if row["again"]]
        if of_equal:
            rival = min(of_equal, key=lambda row: row["again_difference"])
            measured += f", over {rival['again']} masks learned again with as much: nearest {rival['control']}, "
            measured += _kl_difference(rival, "again_")
        else:
            measured += ", and no mask was learned again with as much"
    return {"claim": claim, "verdict": NO if lost else YES, "measured": measured}


def _kl_difference(row: Mapping[str, Any], prefix: str) -> str:
    return f"KL {row[f'{prefix}difference']:+.3g} [{row[f'{prefix}low']:.3g}, {row[f'{prefix}high']:.3g}]"


def _of_completeness(row: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a mask stays as close to the model after the adversary."""
    if row["verdict"] == NOT_TESTED:
        return {"claim": "complete", "verdict": UNKNOWN, "measured": too_few_texts(row["texts"])}
    measured = f"gap {row['gap']:.3g}, KL {row['run_kl']:.3g}, excess {row['excess']:+.3g} "
    measured += f"[{row['low']:.3g}, {row['high']:.3g}]; closed {row['closed']}"
    return {"claim": "complete", "verdict": NO if row["verdict"] == "incomplete" else YES, "measured": measured}
