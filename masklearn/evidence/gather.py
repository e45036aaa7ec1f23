"""All evidence on a bank of shared masks, as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from masklearn.evidence.bench import Bench
from masklearn.evidence.circuit_tests import Circuit, Outcome, corrected, run_tests
from masklearn.evidence.completeness import completeness_row, pair_rows
from masklearn.evidence.controls import control_masks, control_table, learned_controls
from masklearn.evidence.kept_parts import digest
from masklearn.evidence.plan import PARTS
from masklearn.evidence.rediscovery import BOOTSTRAP, HALF, PARAPHRASE, SEED, Rediscoverer, Variant
from masklearn.evidence.resampled_texts import MIN_HALVED_TEXTS
from masklearn.evidence.stability_tables import Table, rediscover, stability_tables
from masklearn.evidence.transfer import Checkpoint, OtherTexts, transfer_table
from masklearn.evidence.verdicts import LEFT_OUT, UNKNOWN, paragraph, verdict_table
from masklearn.mask_file import Mask

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
class Sources:
    """What evidence is gathered on, besides the bank."""

    variants: list[Variant]
    """Rediscoveries for stability."""
    other_tasks: Mapping[str, Variant] = field(default_factory=dict)
    """Rediscoveries on other tasks, as controls."""
    other_texts: Sequence[OtherTexts] = ()
    """Texts to transfer to."""
    checkpoints: Sequence[Checkpoint] = ()
    """Checkpoints to transfer to."""
    gaps: Sequence[str] = ()
    """What cannot be used, a sentence each."""

    def controls_part(self, group: int) -> str:
        """Name of the part with the controls of a group: which tasks are among them depends on the plan."""
        return "-".join(["controls", str(group), *self.other_tasks])


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
    rows = [row for g, s in bench.cells for row in bench.kept.part(f"tests-{g}-{s}", partial(_test_rows, bench, g, s))]
    return [asdict(outcome) for outcome in corrected([Outcome(**row) for row in rows])]


def _test_rows(bench: Bench, group: int, s: int) -> Table:
    """The five hypothesis tests of one mask, their p-values not yet corrected."""
    circuit = Circuit(bench.mask_of(group, s), bench.mask.graph, bench.plan.draws, bench.plan.seed)
    scores = bench.scores(group, circuit.subgraphs(), f"Tests of {s} nodes")
    return [asdict(outcome) for outcome in run_tests(circuit, bench.mask.groups[group], scores, len(bench.cells))]


def _control_rows(bench: Bench, group: int, learned: Mapping[str, Mask], budget: float) -> Table:
    return control_table(bench, group, control_masks(bench, group, learned, budget))


def gather(bench: Bench, again: Rediscoverer, sources: Sources) -> Evidence:
    """Gather all evidence on a bank; finished parts are kept.

    Args:
        bench: The bank, its model and its texts.
        again: Learns its masks again.
        sources: What else is needed.
    """
    parts, missing = bench.plan.parts, dict[str, str]()
    tables: dict[str, Table] = {name: [] for name in TABLES}
    if "tests" in parts:
        tables["tests"] = circuit_test_table(bench)
    if "controls" in parts:
        tables["controls"], missing = _all_controls(bench, again, sources)
    if "stability" in parts:
        found = rediscover(again, sources.variants)
        of_found = digest(*(mask.to_bytes() for mask in found.masks))
        tables |= bench.kept.part(f"stability-{of_found}", partial(stability_tables, bench, found))
    if "completeness" in parts:
        tables |= _completeness(bench)
    if "transfer" in parts:
        tables["transfer"] = transfer_table(bench, sources.other_texts, sources.checkpoints)
    cells = [(bench.mask.groups[group], s) for group, s in bench.cells]
    tables["verdicts"] = verdict_table(tables, cells, parts)
    facts = _facts(bench, again, sources)
    not_tested = [f"Control {name}: {why}" for name, why in missing.items()]
    return Evidence(tables, facts, paragraph(tables["verdicts"], facts), not_tested + _gaps(bench, sources, tables))


def _all_controls(bench: Bench, again: Rediscoverer, sources: Sources) -> tuple[Table, dict[str, str]]:
    """The controls of all groups, and why others could not be learned."""
    learned, missing = learned_controls(bench, again, sources.other_tasks)
    groups, rows = range(len(bench.mask.groups)), Table()
    budget = bench.plan.polish_budget * again.learning_tokens / len(groups)
    for g in groups:
        compute = partial(_control_rows, bench, g, learned, budget)
        rows += bench.kept.part(sources.controls_part(g), compute)
    return rows, missing


def _completeness(bench: Bench) -> dict[str, Table]:
    """What an adversary finds, and the interactions of pairs."""
    part, cells = bench.kept.part, bench.cells
    rows = [
        part(f"completeness-{g}-{s}", partial(completeness_row, bench, g, s))
        for g, s in bench.bar(cells, "Completeness")
    ]
    pairs = [row for g, s in cells for row in part(f"pairs-{g}-{s}", partial(pair_rows, bench, g, s))]
    return {"completeness": rows, "pairs": pairs}


def _facts(bench: Bench, again: Rediscoverer, sources: Sources) -> dict[str, Any]:
    mask, plan = bench.mask, bench.plan
    return {
        "model": mask.model.lm,
        "texts": str(bench.data.source),
        "n_texts": sum(len(batch.input_ids) for group in range(len(mask.groups)) for batch in bench.texts(group)),
        "ablation": mask.ablation.name,
        "positions": mask.positions,
        "parts": ", ".join(plan.parts),
        "draws": plan.draws,
        "rediscoveries": len(sources.variants),
        "steps": again.settings(0)["steps"],
        "polish_budget": plan.polish_budget,
        "seed": plan.seed,
    }


def _gaps(bench: Bench, sources: Sources, tables: Mapping[str, Table]) -> list[str]:
    """What was not tested, a sentence each."""
    parts = bench.plan.parts
    gaps = [f"{part.capitalize()}: {LEFT_OUT}" for part in PARTS if part not in parts] + list(sources.gaps)
    for row in tables["verdicts"]:
        if row["verdict"] == UNKNOWN and row["measured"] != LEFT_OUT:
            gaps.append(f"{row['claim']} at s = {row['s']} of group {row['group']}: {row['measured']}")
    if "controls" in parts and not sources.other_tasks and len(bench.mask.groups) == 1:
        gaps.append("Control of another task: none is known. Learn masks by task with --model.scope column:NAME")
    if "stability" in parts:
        learned = {variant.source for variant in sources.variants}
        gaps += [f"Stability under {why}" for source, why in NOT_LEARNED.items() if source not in learned]
    if "transfer" in parts and not sources.other_texts:
        gaps.append("Transfer to other texts: --plan.transfer names none")
    if "transfer" in parts and not sources.checkpoints:
        gaps.append("Transfer to other checkpoints: --plan.checkpoints names none")
    gaps.append(f"Ablations other than {bench.mask.ablation.name}: compare them with --ablation, without --evidence")
    gaps.append("Edges, neurons and directions: the masks are over attention heads and MLPs")
    return gaps
