"""The whole study: banks in, every table out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pandas as pd

from masklearn.density import composition, correlations, curves
from masklearn.density.findings import findings
from masklearn.density.measurements import LEARNED, MaskMeasurements, TopTokens
from masklearn.density.tables import select_rows

MOST_PAIRS = 3
"""Pairs of banks over different inputs that notes name."""


@dataclass(frozen=True)
class Study:
    """The tables of a study, by name, and what else its figures show."""

    banks: Sequence[MaskMeasurements]
    tables: dict[str, pd.DataFrame]
    thoughts: dict[str, TopTokens] = field(default_factory=dict)
    """By the bank's name."""
    notes: list[str] = field(default_factory=list)
    """What could not be had, and why."""


def study(banks: Sequence[MaskMeasurements], thoughts: dict[str, TopTokens] | None = None, seed: int = 0) -> Study:
    """Every table of the study.

    Args:
        banks: The banks, with names of their own.
        thoughts: What one input of every bank makes the model think.
        seed: Of everything random.
    """
    tables: dict[str, pd.DataFrame] = {"banks": pd.DataFrame([bank.row() for bank in banks])}
    tables["inputs_by_size"] = _concat([bank.by_size() for bank in banks])
    tables["curve"] = _concat([curves.curve(bank, seed) for bank in banks])
    columns = ["bank", "what", "s", "fraction", "low", "high", "share", "slopes"]
    tables["phases"] = pd.DataFrame([row for bank in banks for row in curves.phases(bank, seed)], columns=columns)
    tables["nuclei"] = _concat([curves.nuclei(bank) for bank in banks])
    tables["composition"] = _concat([composition.composition(bank, seed) for bank in banks])
    tables["node_use"] = _concat([composition.node_use(bank) for bank in banks])
    tables["gini"] = _concat([composition.inequality(bank) for bank in banks])
    own = {bank.name: correlations.inputs(bank) for bank in banks}
    tables["inputs"] = _concat(list(own.values()))
    tables["relations"] = _concat([correlations.density_correlations(bank, own[bank.name], seed) for bank in banks])
    tables["unigram"] = _concat([curves.unigrams(bank, seed) for bank in banks])
    tables["leaving"] = curves.unigram_crossover(banks)
    tables["across"] = correlations.across(banks, seed)
    tables["overlap"] = composition.overlaps(banks, seed)
    tables["by_token"] = _concat([correlations.by_token(bank) for bank in banks])
    tables["thoughts"] = _thoughts(thoughts or {})
    tables = {"findings": findings(banks, tables)} | tables
    return Study(banks, tables, thoughts or {}, _notes(banks, tables))


def _concat(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    full = [frame for frame in frames if len(frame)]
    return pd.concat(full, ignore_index=True) if full else frames[0]


def _thoughts(thoughts: dict[str, TopTokens]) -> pd.DataFrame:
    rows = [
        {"bank": bank, "input": thought.name, "kind": kind, "s": s, "rank": rank, "token": token, "probability": p}
        for bank, thought in thoughts.items()
        for kind, by_size in thought.tokens.items()
        for s, tokens in zip(thought.sizes, by_size, strict=True)
        for rank, (token, p) in enumerate(tokens, start=1)
    ]
    return pd.DataFrame(rows, columns=["bank", "input", "kind", "s", "rank", "token", "probability"])


def _notes(banks: Sequence[MaskMeasurements], tables: dict[str, pd.DataFrame]) -> list[str]:
    notes = []
    for bank in banks:
        if len(bank.sizes) < curves.LEAST_SIZES:
            notes.append(
                f"{bank.name} has {len(bank.sizes)} of the {curves.LEAST_SIZES} sizes that an area or a phase takes "
                f"({', '.join(map(str, bank.sizes))}): no density. Learn it with --model.sizes log:12"
            )
        if len(bank.names) == 1:
            notes.append(f"{bank.name} holds a single input: no intervals and no correlations")
    correlations, pairs = (
        select_rows(tables[name], kind=LEARNED).fillna({"note": ""}) for name in ("relations", "across")
    )
    for row in correlations.to_dict("records"):
        if row["note"]:
            notes.append(f"{row['bank']}: correlation with {row['with']} {row['note']}")
    differs = list(dict.fromkeys(pair["note"] for pair in pairs.to_dict("records") if pair["note"]))
    notes += differs[:MOST_PAIRS]
    if len(differs) > MOST_PAIRS:
        notes.append(
            f"and {len(differs) - MOST_PAIRS} more pairs of banks that cannot be compared: see the table across"
        )
    for one, other in combinations(banks, 2):
        if one.mask.model.fingerprint == other.mask.model.fingerprint and not set(one.sizes) & set(other.sizes):
            notes.append(f"{one.name} and {other.name} have no size in common: no overlap")
    return notes
