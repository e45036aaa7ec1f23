"""The whole study: measurements of banks in, every table out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pandas as pd

from masklearn.density import comparison, composition, correlations, curves
from masklearn.density.answers import answer_densities
from masklearn.density.findings import findings
from masklearn.density.measurements import LEARNED_KIND, MaskMeasurements, TopTokens, size_text
from masklearn.density.phases import phases
from masklearn.density.statistics import count_units
from masklearn.density.tables import Tables, concat_tables, select_rows
from masklearn.evaluation.bootstrap import too_few

MAX_PAIR_NOTES = 3
"""Pairs of banks over different inputs that get a note each; the others are counted."""
_PHASE_COLUMNS = ["bank", "what", "s", "fraction", "low", "high", "share", "in_order", "p", "control_s", "slopes"]


@dataclass(frozen=True)
class Study:
    """The tables of a study by name, and what else its figures show."""

    measurements: Sequence[MaskMeasurements]
    tables: Tables
    top_tokens: dict[str, TopTokens] = field(default_factory=dict)
    """One input of a bank, by the bank's name."""
    pickable: dict[str, list[TopTokens]] = field(default_factory=dict)
    """Inputs that the page's picker shows, by the bank's name, with the tokens of the bank's own subgraphs."""
    notes: list[str] = field(default_factory=list)
    """Results that are undefined, and why."""


def study(
    measurements: Sequence[MaskMeasurements],
    top_tokens: dict[str, TopTokens] | None = None,
    seed: int = 0,
    pickable: dict[str, list[TopTokens]] | None = None,
) -> Study:
    """Compute every table of the study.

    Args:
        measurements: One for each bank; their names differ.
        top_tokens: By the name of a bank, the predictions after one of its inputs.
        seed: Seed of bootstrap, permutations and shuffles.
        pickable: By the name of a bank, the inputs that the page's picker shows.
    """
    inputs = {measured.name: correlations.input_properties(measured) for measured in measurements}
    phase_rows = [row for measured in measurements for row in phases(measured, seed)]
    tables = {
        "banks": pd.DataFrame([measured.row() for measured in measurements]),
        "inputs_by_size": concat_tables([measured.inputs_by_size() for measured in measurements]),
        "curve": concat_tables([curves.curve(measured, seed) for measured in measurements]),
        "phases": pd.DataFrame(phase_rows, columns=_PHASE_COLUMNS),
        "nuclei": concat_tables([curves.nuclei(measured) for measured in measurements]),
        "composition": concat_tables([composition.composition(measured, seed) for measured in measurements]),
        "node_use": concat_tables([composition.node_use(measured) for measured in measurements]),
        "gini": concat_tables([composition.inequality(measured) for measured in measurements]),
        "inputs": concat_tables(list(inputs.values())),
        "relations": concat_tables(
            [correlations.density_correlations(measured, inputs[measured.name], seed) for measured in measurements]
        ),
        "unigram": concat_tables([curves.unigrams(measured, seed) for measured in measurements]),
        "leaving": curves.unigram_crossover(measurements),
        "across": comparison.density_agreement(measurements, seed),
        "overlap": comparison.mask_overlaps(measurements),
        "by_token": concat_tables([correlations.token_densities(measured) for measured in measurements]),
        "prompt_answer": concat_tables([answer_densities(measured, seed) for measured in measurements]),
        "thoughts": _top_tokens_table(top_tokens or {}),
    }
    tables = {"findings": findings(measurements, tables)} | tables
    return Study(measurements, tables, top_tokens or {}, pickable or {}, _notes(measurements, tables, seed))


def _top_tokens_table(top_tokens: dict[str, TopTokens]) -> pd.DataFrame:
    rows = [
        {"bank": bank, "input": shown.name, "kind": kind, "s": s, "rank": rank, "token": token, "probability": p}
        for bank, shown in top_tokens.items()
        for kind, by_size in shown.tokens.items()
        for s, tokens in zip(shown.sizes, by_size, strict=True)
        for rank, (token, p) in enumerate(tokens, start=1)
    ]
    return pd.DataFrame(rows, columns=["bank", "input", "kind", "s", "rank", "token", "probability"])


def _notes(measurements: Sequence[MaskMeasurements], tables: Tables, seed: int) -> list[str]:
    return [
        *_graph_notes(measurements),
        *(note for measured in measurements for note in _bank_notes(measured, seed)),
        *_correlation_notes(measurements, tables["relations"]),
        *_pair_notes(tables["across"]),
        *_overlap_notes(measurements),
    ]


def _graph_notes(measurements: Sequence[MaskMeasurements]) -> list[str]:
    """Say that banks of nodes, of edges and of positions share a relative axis, if there are several kinds."""
    units = sorted({bank.unit for bank in measurements}, key=("nodes", "edges", "positions").index)
    by_unit = {unit: [bank.name for bank in measurements if bank.unit == unit] for unit in units}
    if len(units) < 2:
        return []
    shares = ", ".join(f"{', '.join(names)} as shares of all {unit}" for unit, names in by_unit.items())
    return [
        f"sizes are drawn on one relative axis, though they count different things: {shares}. Equal shares are not "
        "equal amounts of the model"
    ]


def _bank_notes(measured: MaskMeasurements, seed: int) -> list[str]:
    notes = []
    if len(measured.sizes) < curves.MIN_CURVE_SIZES:
        count = f"{len(measured.sizes)} size{'' if len(measured.sizes) == 1 else 's'}"
        notes.append(
            f"{measured.name} has {count} ({', '.join(map(str, measured.sizes))}), and densities and phases need "
            f"{curves.MIN_CURVE_SIZES}: no density. Learn the masks with --model.sizes log:12"
        )
    if n_short := measured.n_short_sizes:
        can = [f"{size_text(s, measured.unit)} can" for s in measured.sizes[n_short:]] or ["none can"]
        notes.append(
            f"{n_short} of the {len(measured.sizes)} sizes of {measured.name} cannot hold a path from a token to the "
            f"output in half of the texts ({can[0]}): normalised densities and phases leave them out"
        )
    if rises := curves.rises(measured, seed):
        where = ", ".join(size_text(s, measured.unit) for s in rises)
        is_learned = measured.own_kind == LEARNED_KIND
        why = (
            "a sign of too weak a search (--model.steps)" if is_learned else "their choice does not look at the output"
        )
        notes.append(
            f"mean TV of the {measured.own_kind} subgraphs of {measured.name} rises with size, up to {where}, by more "
            f"than the interval of the difference allows: {why}"
        )
    if len(measured.names) == 1:
        notes.append(f"{measured.name} has a single input: no intervals and no correlations")
    elif few := too_few(count_units(measured.texts), measured.resampled):
        notes.append(f"{measured.name} has no intervals: {few}")
    return notes


def _correlation_notes(measurements: Sequence[MaskMeasurements], relations: pd.DataFrame) -> list[str]:
    """Say which correlations are not defined and why, with the banks of each reason."""
    banks = dict[str, list[str]]()
    for measured in measurements:
        rows = select_rows(relations, bank=measured.name, kind=measured.own_kind).fillna({"note": ""})
        for row in rows.to_dict("records"):
            if row["note"]:
                banks.setdefault(f"correlation with {row['with']} {row['note']}", []).append(measured.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in banks.items()]


def _pair_notes(across: pd.DataFrame) -> list[str]:
    rows = across.fillna({"note": ""}).drop_duplicates(["one", "other"]).to_dict("records")
    reasons = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
    notes = reasons[:MAX_PAIR_NOTES]
    if len(reasons) > MAX_PAIR_NOTES:
        notes.append(f"{len(reasons) - MAX_PAIR_NOTES} more pairs of banks cannot be compared: see the table across")
    return notes


def _overlap_notes(measurements: Sequence[MaskMeasurements]) -> list[str]:
    return [
        f"{one.name} and {other.name} share no size: no overlap"
        for one, other in combinations([bank for bank in measurements if bank.unit == "nodes"], 2)
        if one.mask.model.fingerprint == other.mask.model.fingerprint and not set(one.sizes) & set(other.sizes)
    ]
