"""All evidence on a bank of shared masks, as tables."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from masklearn.data.digests import digest
from masklearn.evidence.bench import Bench
from masklearn.evidence.circuit_tests import Circuit, Outcome, corrected, run_tests
from masklearn.evidence.completeness import completeness_parts, pair_parts
from masklearn.evidence.control_tables import control_table, unlearned_parts
from masklearn.evidence.controls import control_searches
from masklearn.evidence.kept_parts import KeptPart
from masklearn.evidence.plan import PARTS, EvidencePart
from masklearn.evidence.rediscovery import BOOTSTRAP, HALF, PARAPHRASE, SEED, Rediscoverer
from masklearn.evidence.resampled_texts import MIN_HALVED_TEXTS
from masklearn.evidence.sources import Sources
from masklearn.evidence.stability_tables import Table, rediscover, stability_tables
from masklearn.evidence.summary import paragraph
from masklearn.evidence.transfer import transfer_parts, transfer_table
from masklearn.evidence.verdicts import LEFT_OUT, UNKNOWN, verdict_table

TABLES = (
    "verdicts", "tests", "controls", "stability", "nodes", "near_optimal", "completeness", "pairs", "transfer",
)  # fmt: skip
"""All tables, in their order."""
NOT_LEARNED = {
    SEED: "other seeds: --plan.seeds is 0",
    BOOTSTRAP: "bootstraps of the texts: --plan.bootstraps is 0",
    HALF: f"halves of the texts: --plan.halves is 0, or a group has too few ({MIN_HALVED_TEXTS} are enough)",
    PARAPHRASE: "paraphrases: --plan.paraphrase_column names no column",
}
"""Why stability is not tested under a source of variation, if there are no rediscoveries of it."""


@dataclass(frozen=True)
class Evidence:
    """What was found out about a bank."""

    tables: dict[str, Table]
    """By name."""
    facts: dict[str, Any]
    """Model, texts and numbers of everything."""
    summary: str
    """A paragraph to quote."""
    not_tested: list[str]
    """What was not tested, and why: a sentence each."""


def circuit_test_table(bench: Bench) -> Table:
    """The five hypothesis tests of every group and size."""
    rows = [row for part in circuit_test_parts(bench) for row in part()]
    return [asdict(outcome) for outcome in corrected([Outcome(**row) for row in rows])]


def circuit_test_parts(bench: Bench) -> list[KeptPart]:
    """The five hypothesis tests of every group and size, their p-values not yet corrected: a part for each mask."""
    return [partial(bench.kept.part, f"tests-{g}-{s}", partial(_test_rows, bench, g, s)) for g, s in bench.cells]


def _test_rows(bench: Bench, group: int, s: int) -> Table:
    """The five hypothesis tests of one mask, their p-values not yet corrected."""
    circuit = Circuit(bench.mask_of(group, s), bench.mask.graph, bench.plan.draws, bench.plan.seed)
    scores = bench.scores(group, circuit.subgraphs(), f"Tests of {s} nodes")
    return [asdict(outcome) for outcome in run_tests(circuit, bench.mask.groups[group], scores, len(bench.cells))]


def independent_parts(bench: Bench, again: Rediscoverer, sources: Sources) -> list[KeptPart]:
    """The parts of a plan that no other part is needed for, the longest first; each is kept once it is computed."""
    of_parts: dict[EvidencePart, list[KeptPart]] = {
        "stability": [partial(again.find, variant) for variant in sources.variants],
        "controls": [
            *control_searches(bench, again, sources.other_tasks).values(),
            *unlearned_parts(bench, again),
        ],
        "tests": circuit_test_parts(bench),
        "completeness": [*completeness_parts(bench), *pair_parts(bench)],
        "transfer": transfer_parts(bench, sources.other_texts, sources.checkpoints),
    }
    return [part for name, parts in of_parts.items() if name in bench.plan.parts for part in parts]


def gather(bench: Bench, again: Rediscoverer, sources: Sources) -> Evidence:
    """Gather the parts of a plan on a bank; others are those gathered before, if they are still valid.

    Args:
        bench: The bank, its model and its texts.
        again: Learns its masks again.
        sources: What else is needed.
    """
    found = dict[EvidencePart, dict[str, Any]]()
    for part in PARTS:
        if part in bench.plan.parts:
            found[part] = bench.kept.keep(part, _gather_part(part, bench, again, sources))
        elif (kept := bench.kept.load(part)) is not None:
            found[part] = kept
    tables: dict[str, Table] = {name: [] for name in TABLES}
    for of_part in found.values():
        tables |= of_part["tables"]
    cells = [(bench.mask.groups[group], s) for group, s in bench.cells]
    tables["verdicts"] = verdict_table(tables, cells, found)
    n_again = found["stability"]["rediscoveries"] if "stability" in found else 0
    facts = _facts(bench, again) | {"parts": ", ".join(found), "rediscoveries": n_again}
    of_parts = [gap for of_part in found.values() for gap in of_part["gaps"]]
    gaps = [f"{part.capitalize()}: {LEFT_OUT}" for part in PARTS if part not in found]
    not_tested = [*of_parts, *gaps, *_untested(tables["verdicts"]), *_never_tested(bench)]
    return Evidence(tables, facts, paragraph(tables, facts), not_tested)


def _gather_part(part: EvidencePart, bench: Bench, again: Rediscoverer, sources: Sources) -> dict[str, Any]:
    """A part of the evidence in values of JSON: its `tables`, and its `gaps`, a sentence each."""
    missing = dict[str, str]()
    if part == "tests":
        tables = {"tests": circuit_test_table(bench)}
    elif part == "stability":
        found = rediscover(again, sources.variants)
        of_found = digest(*(mask.to_bytes() for mask in found.masks))
        tables = bench.kept.part(f"stability-{of_found}", partial(stability_tables, bench, found))
    elif part == "controls":
        rows, missing = control_table(bench, again, sources)
        tables = {"controls": rows}
    elif part == "completeness":
        tables = _completeness(bench)
    else:
        tables = {"transfer": transfer_table(bench, sources.other_texts, sources.checkpoints)}
    gaps = [f"Control {name}: {why}" for name, why in missing.items()] + _gaps(part, bench, sources, tables)
    return {"tables": tables, "gaps": gaps, "rediscoveries": len(sources.variants)}


def _completeness(bench: Bench) -> dict[str, Table]:
    """What an adversary finds, and the interactions of pairs."""
    rows = [part() for part in bench.bar(completeness_parts(bench), "Completeness")]
    return {"completeness": rows, "pairs": [row for part in pair_parts(bench) for row in part()]}


def _facts(bench: Bench, again: Rediscoverer) -> dict[str, Any]:
    mask, plan = bench.mask, bench.plan
    return {
        "model": mask.model.lm,
        "texts": str(bench.data.source),
        "n_texts": sum(len(batch.input_ids) for group in range(len(mask.groups)) for batch in bench.texts(group)),
        "ablation": mask.ablation.name,
        "positions": mask.positions,
        "draws": plan.draws,
        "steps": again.settings(0)["steps"],
        "polish_budget": plan.polish_budget,
        "seed": plan.seed,
    }


def _gaps(part: EvidencePart, bench: Bench, sources: Sources, tables: Mapping[str, Table]) -> list[str]:
    """What a part has not tested, a sentence each."""
    gaps = list(sources.gaps) if part == "transfer" else []
    if part == "controls" and not sources.other_tasks and not sources.other_runs and len(bench.mask.groups) == 1:
        gaps.append(
            "Control of another task: none is known. Learn masks by task with --model.scope column:NAME, or give "
            "a run on other texts as a second --mask"
        )
    if part == "stability":
        learned = {variant.source for variant in sources.variants}
        gaps += [f"Stability under {why}" for source, why in NOT_LEARNED.items() if source not in learned]
    if part == "transfer" and not sources.other_texts:
        gaps.append("Transfer to other texts: --plan.transfer names none")
    if part == "transfer" and not sources.checkpoints:
        gaps.append("Transfer to other checkpoints: --plan.checkpoints names none")
    return gaps


def _untested(verdicts: Table) -> list[str]:
    """The claims that could not be tested, a sentence each."""
    unknown = [row for row in verdicts if row["verdict"] == UNKNOWN and row["measured"] != LEFT_OUT]
    return [f"{row['claim']} at s = {row['s']} of group {row['group']}: {row['measured']}" for row in unknown]


def _never_tested(bench: Bench) -> list[str]:
    return [
        f"Ablations other than {bench.mask.ablation.name}: compare them with --ablation, without --evidence",
        "Edges, neurons and directions: the masks are over attention heads and MLPs",
    ]
