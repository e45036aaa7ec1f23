"""Which findings of Kervadec et al. 2026 (arXiv 2605.27033) hold for each bank, by the rules in `RULES`."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from masklearn.density.measurements import LEARNED_KIND, MaskMeasurements, size_text
from masklearn.density.tables import Tables, select_rows

RULES = {
    "two phases": "In at least 95 % of bootstrap resamples, the piecewise linear fit to mean TV over "
    "log10(s / n_nodes) turns from its steepest descent to a flatter segment. At that size, at least half of the "
    "inputs recover the full model's top token.",
    "early core": "At the smallest size at which half of the inputs recover the full model's top token, the relative "
    "share of the first quarter of the layers is above 1 (lower end of its interval).",
    "heads enter late": "At that same size, the relative share of attention heads is below 1 (upper end of its "
    "interval).",
    "density goes with uncertainty": "The rank correlation of density with the entropy of the full model's "
    "distribution is above 0 (lower end of its interval).",
    "sparse subgraphs are unigram-like": "At the smallest size, more than half of the inputs have a subgraph that is "
    "nearer to the unigram distribution than to the full model (lower end of the interval of their share).",
    "density is alike across models": "For every two different models with the same inputs, the rank correlation of "
    "the inputs' densities is above 0 (lower end of its interval).",
}
"""When each finding holds; intervals are 95 % bootstrap intervals over inputs."""
MIN_BEND_SHARE = 0.95
"""Share of bootstrap resamples that must show a bend for `two phases` to hold."""


def findings(measurements: Sequence[MaskMeasurements], tables: Tables) -> pd.DataFrame:
    """Return a row per bank and finding: the verdict, and the numbers that decide it."""
    rows = [row for measured in measurements for row in _bank_findings(measured, tables)]
    return pd.DataFrame([*rows, _across_models(tables["across"])])


def _bank_findings(measured: MaskMeasurements, tables: Tables) -> list[dict[str, Any]]:
    of_bank = {name: select_rows(table, bank=measured.name) for name, table in tables.items()}
    phases = of_bank["phases"].set_index("what")
    if not len(phases) or len(measured.names) < 2:
        reason = "too few sizes" if not len(phases) else "one input has no interval"
        return [_row(measured.name, finding, None, reason) for finding in list(RULES)[:-1]]
    learned = {name: select_rows(table, kind=LEARNED_KIND) for name, table in of_bank.items()}
    head, refinement = phases.loc["head in place"], phases.loc["refinement begins"]
    return [
        _two_phases(measured.name, head, refinement, measured.unit),
        *_composition_findings(measured.name, head, learned["composition"], measured.unit),
        _uncertainty(measured.name, learned["relations"]),
        _unigram_like(measured.name, learned["unigram"], measured.unit),
    ]


def _two_phases(bank: str, head: Mapping[str, Any], refinement: Mapping[str, Any], unit: str) -> dict[str, Any]:
    if pd.isna(refinement["share"]):
        return _row(bank, "two phases", None, "too few sizes to detect a bend")
    if pd.isna(refinement["s"]):
        measured = f"no flatter segment follows the steepest one ({refinement['slopes']})"
        return _row(bank, "two phases", False, measured)
    measured = (
        f"TV per decade of size {refinement['slopes']}; flatter from {size_text(refinement['s'], unit)} on "
        f"({refinement['fraction']:.0%}) in {refinement['share']:.0%} of resamples; "
        f"top token recovered by half of the inputs at {size_text(head['s'], unit)}"
    )
    holds = refinement["share"] >= MIN_BEND_SHARE and head["s"] <= refinement["s"]
    return _row(bank, "two phases", bool(holds), measured)


def _composition_findings(
    bank: str, head: Mapping[str, Any], composition: pd.DataFrame, unit: str
) -> list[dict[str, Any]]:
    s = min(float(head["s"]), float(composition["s"].to_numpy().max()))
    parts = select_rows(composition, s=s).set_index("part")
    core, heads = parts.loc["quarter 1"], parts.loc["heads"]
    verdicts = {
        "early core": (core, bool(core["low"] > 1)),
        "heads enter late": (heads, bool(heads["high"] < 1)),
    }
    rows = []
    for finding, (part, holds) in verdicts.items():
        measured = f"{part.name} at {size_text(s, unit)}: {part['relative']:.2f} times its share ({_interval(part)})"
        rows.append(_row(bank, finding, None if pd.isna(part["low"]) else holds, measured))
    return rows


def _uncertainty(bank: str, relations: pd.DataFrame) -> dict[str, Any]:
    finding, found = "density goes with uncertainty", relations.set_index("with").loc["entropy"]
    if pd.isna(found["rho"]):
        return _row(bank, finding, None, found["note"])
    measured = f"rho {found['rho']:.2f} ({_interval(found)}), p {found['p']:.2g}, {found['n']} inputs"
    return _row(bank, finding, bool(found["low"] > 0), measured)


def _unigram_like(bank: str, unigram: pd.DataFrame, unit: str) -> dict[str, Any]:
    smallest = unigram.sort_values("s").iloc[0]
    share, low, high = (smallest[f"nearer_to_unigram{end}"] for end in ("", "_low", "_high"))
    measured = (
        f"{share:.0%} of inputs nearer to the unigram at {size_text(smallest['s'], unit)} ({low:.0%} to {high:.0%})"
    )
    return _row(bank, "sparse subgraphs are unigram-like", bool(low > 0.5), measured)


def _across_models(across: pd.DataFrame) -> dict[str, Any]:
    pairs = select_rows(across, kind=LEARNED_KIND).to_dict("records")
    known = [pair for pair in pairs if not pair["same_model"] and not pd.isna(pair["rho"])]
    measured = "; ".join(f"{pair['one']} and {pair['other']}: {pair['rho']:.2f} ({_interval(pair)})" for pair in known)
    holds = all(pair["low"] > 0 for pair in known) if known else None
    return _row("all", "density is alike across models", holds, measured or "no two models share enough inputs")


def _row(bank: str, finding: str, holds: bool | None, measured: str) -> dict[str, Any]:
    verdict = "not known" if holds is None else "holds" if holds else "does not hold"
    return {"bank": bank, "finding": finding, "verdict": verdict, "measured": measured}


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.2f} to {row['high']:.2f}"
