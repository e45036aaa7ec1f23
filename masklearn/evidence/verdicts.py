"""Verdicts on a bank: one row for each claim and size."""

import math
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
    "minimal": "No node found that matters less than one in ten other nodes of its kind would. Nodes of a kind that it "
    "has in full are not tested.",
    "beats controls": "Its KL is lower than that of every control, by a 95 % interval over texts. So is that of masks "
    "learned again with the budget of learned controls, if there are any.",
    "stable": f"Masks learned on resampled texts have a mean Jaccard index of at least {STABLE_JACCARD}, with each "
    "other and with this one.",
    "unique": "Learned again, it was found again, and no mask with other nodes has a KL as low as its own plus 2 %.",
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
KIND_NAMES = {"heads": "heads", "mlps": "MLPs"}
"""The kinds of nodes, by their column in a table of overlaps."""
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
    rows += [_stable(overlaps), _unique(of_cell.get("near_optimal", []), len(of_cell.get("nodes", [])))]
    rows += [_of_completeness(row) for row in of_cell.get("completeness", [])]
    return rows


def _stable(overlaps: Table) -> dict[str, Any]:
    """The verdict on masks learned on bootstraps; those of other sources are told beside."""
    of_texts = next((row for row in overlaps if row["source"] == BOOTSTRAP and row["n"] > 1), None)
    measured = "; ".join(_agreement(row) for row in sorted(overlaps, key=lambda row: row is not of_texts))
    if of_texts is None:
        verdict, why = UNKNOWN, "fewer than two bootstraps"
    elif (chance := max(of_texts["chance"], of_texts["run_chance"])) >= STABLE_JACCARD:
        verdict, why = UNKNOWN, f"random masks of this size have a Jaccard index of {chance:.2f}"
    else:
        lowest = min(of_texts["jaccard"], of_texts["run_jaccard"])
        verdict, why = YES if lowest >= STABLE_JACCARD else NO, ""
    return {"claim": "stable", "verdict": verdict, "measured": ": ".join(filter(None, [why, measured]))}


def _agreement(row: Mapping[str, Any]) -> str:
    """How far the masks of a source agree with the run's, and if there are several with each other."""
    source = f"{row['source']} ({row['n']}): Jaccard"
    with_run = f"with the run's mask {row['run_jaccard']:.2f} (lowest {row['run_low']:.2f}, "
    with_run += f"chance {row['run_chance']:.2f})"
    if row["n"] == 1:
        return f"{source} {with_run}"
    kinds = [kind for kind in KIND_NAMES if row["source"] == BOOTSTRAP and not math.isnan(row[kind])]
    of_kinds = "".join(f"; {KIND_NAMES[kind]} {row[kind]:.2f}, chance {row[f'{kind}_chance']:.2f}" for kind in kinds)
    pairs = f"{row['low']:.2f} to {row['high']:.2f}, chance {row['chance']:.2f}{of_kinds}"
    return f"{source} {row['jaccard']:.2f} ({pairs}), {with_run}"


def _unique(near_optimal: Table, n_nodes: int) -> dict[str, Any]:
    """Whether searches that do as well as the run's find the same nodes; those that do worse show nothing."""
    if not near_optimal:
        return {"claim": "unique", "verdict": UNKNOWN, "measured": "the masks were not learned again"}
    (row,) = near_optimal
    n_again, kl = row["searched"] - 1, f"its KL {row['run_kl']:.3g}"
    if row["s"] == n_nodes:
        verdict, measured = UNKNOWN, "every mask of this size has all nodes"
    elif not row["reached"]:
        measured = f"none of {n_again} rediscoveries comes within 2 % of {kl}; the nearest has {row['nearest_kl']:.3g}"
        verdict, measured = UNKNOWN, f"{measured}. Longer ones: --plan.steps, --plan.polish_budget"
    else:
        verdict, measured = YES, f"{row['reached']} of {n_again} rediscoveries have at most {kl} plus 2 %"
        if row["others"]:
            verdict, measured = NO, f"{measured}; different masks with other nodes: {row['others']}, "
            measured += f"Jaccard down to {row['run_jaccard']:.2f}, KL down to {row['nearest_kl']:.3g}"
    return {"claim": "unique", "verdict": verdict, "measured": measured}


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
