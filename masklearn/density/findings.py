"""Which of the paper's findings (Kervadec et al. 2026, arXiv 2605.27033) hold, each by a rule that can be read here."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from masklearn.density.measurements import LEARNED, MaskMeasurements
from masklearn.density.tables import select_rows

RULES = {
    "two phases": "Straight pieces fitted to mean TV over log10 size turn from the steepest descent to a flatter one "
    "in at least 95 % of resamples, and where they do, half of the inputs have the full model's top token.",
    "early core": "Where the head of the distribution is in place, the first quarter of the layers has more than its "
    "share of the subgraph: the interval of the relative share lies above 1.",
    "heads enter late": "At that size heads have less than their share of the subgraph: the interval of the relative "
    "share lies below 1.",
    "density goes with uncertainty": "The interval of the rank correlation of density with the full model's entropy "
    "lies above 0.",
    "sparse subgraphs are unigram-like": "At the smallest size most inputs' subgraphs are nearer to the unigram "
    "distribution than to the full model: the interval of their share lies above one half.",
    "density is alike across models": "The interval of the rank correlation of densities lies above 0 for every two "
    "different models on the same inputs.",
}


def _row(bank: str, finding: str, holds: bool | None, words: str) -> dict[str, Any]:
    verdict = "not known" if holds is None else "holds" if holds else "does not hold"
    return {"bank": bank, "finding": finding, "verdict": verdict, "measured": words}


def _nodes(s: float) -> str:
    return f"{s:.0f} node{'' if round(s) == 1 else 's'}"


def _interval(row: Mapping[str, Any], low: str = "low", high: str = "high") -> str:
    return f"{row[low]:.2f} to {row[high]:.2f}"


def findings(banks: Sequence[MaskMeasurements], tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row for each bank and finding; the verdict, and what it is read off."""
    rows = [row for bank in banks for row in _of_bank(bank, tables)]
    pairs = select_rows(tables["across"], kind=LEARNED).to_dict("records")
    known = [pair for pair in pairs if not pair["same_model"] and not pd.isna(pair["rho"])]
    words = "; ".join(f"{pair['one']} and {pair['other']}: {pair['rho']:.2f} ({_interval(pair)})" for pair in known)
    holds = all(pair["low"] > 0 for pair in known) if known else None
    rows.append(_row("all", "density is alike across models", holds, words or "no two models on the same inputs"))
    return pd.DataFrame(rows)


def _of_bank(bank: MaskMeasurements, tables: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    own = {name: select_rows(table, bank=bank.name) for name, table in tables.items()}
    learned = {name: select_rows(table, kind=LEARNED) for name, table in own.items()}
    if not len(own["phases"]) or len(bank.names) < 2:
        why = "too few sizes" if not len(own["phases"]) else "one input has no interval"
        return [_row(bank.name, finding, None, why) for finding in list(RULES)[:-1]]
    head, turn = (own["phases"].set_index("what").loc[what] for what in ("head in place", "refinement begins"))
    rows = []
    if pd.isna(turn["share"]):
        rows.append(_row(bank.name, "two phases", None, "too few sizes to see a curve bend"))
    elif pd.isna(turn["s"]):
        rows.append(_row(bank.name, "two phases", False, f"no flatter stretch follows the steepest ({turn['slopes']})"))
    else:
        words = (
            f"TV per decade of size {turn['slopes']}; flatter from {_nodes(turn['s'])} on ({turn['fraction']:.0%}) "
            f"in {turn['share']:.0%} of resamples; head in place at {_nodes(head['s'])}"
        )
        holds = turn["share"] >= 0.95 and head["s"] <= turn["s"]
        rows.append(_row(bank.name, "two phases", bool(holds), words))
    at = learned["composition"]
    s = min(float(head["s"]), float(at["s"].to_numpy().max()))
    at = select_rows(at, s=s).set_index("part")
    for finding, part, sign in (("early core", "quarter 1", 1), ("heads enter late", "heads", -1)):
        row = at.loc[part]
        holds = None if pd.isna(row["low"]) else bool(row["low"] > 1 if sign > 0 else row["high"] < 1)
        words = f"{part} at {_nodes(s)}: {row['relative']:.2f} times its share ({_interval(row)})"
        rows.append(_row(bank.name, finding, holds, words))
    rho = learned["relations"].set_index("with").loc["entropy"]
    known = not pd.isna(rho["rho"])
    words = f"rho {rho['rho']:.2f} ({_interval(rho)}), p {rho['p']:.2g}, {rho['n']} inputs" if known else rho["note"]
    rows.append(_row(bank.name, "density goes with uncertainty", bool(rho["low"] > 0) if known else None, words))
    first = learned["unigram"].sort_values("s").iloc[0]
    words = (
        f"{first['nearer_to_unigram']:.0%} of inputs nearer to the unigram at {_nodes(first['s'])} "
        f"({first['nearer_to_unigram_low']:.0%} to {first['nearer_to_unigram_high']:.0%})"
    )
    holds = bool(first["nearer_to_unigram_low"] > 0.5)
    return [*rows, _row(bank.name, "sparse subgraphs are unigram-like", holds, words)]
