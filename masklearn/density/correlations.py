"""What an input's density goes with: properties of the input, and its density in other models."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from masklearn.density.curves import LEAST_SIZES, densities
from masklearn.density.measurements import INVERSE, SHOWN, MaskMeasurements
from masklearn.density.statistics import LEAST, correlation

FULL = ("entropy", "loss", "next_rarity", "last_rarity")
"""What is measured of the full model at every input, see `TextMetrics`."""
WORDS = {
    "entropy": "the full model's entropy",
    "loss": "the full model's loss",
    "next_rarity": "rarity of the token that came",
    "last_rarity": "rarity of the last token read",
    "context": "context length",
    "true_entropy": "true entropy of the language",
}


def inputs(bank: MaskMeasurements) -> pd.DataFrame:
    """Every input: its density under every kind of subgraphs, and what that is held against."""
    columns = {"bank": bank.name, "input": bank.names, "context_text": bank.contexts}
    columns |= {f"density_{kind}": densities(bank, kind) for kind in bank.kinds if kind != INVERSE}
    columns |= {name: bank.full(name) for name in FULL} | {"context": bank.lengths}
    known = bank.true_entropy or [None] * len(bank.names)
    return pd.DataFrame(columns | {"true_entropy": np.array(known, dtype=float)})


def density_correlations(bank: MaskMeasurements, table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Spearman's correlation of density with each property, for every kind of subgraphs.

    Args:
        bank: The bank.
        table: Its inputs, from `inputs`.
        seed: Of bootstrap and permutations.
    """
    rows = []
    for kind in (kind for kind in bank.kinds if kind != INVERSE):
        for name, words in WORDS.items():
            x, y = table[f"density_{kind}"].to_numpy(float), table[name].to_numpy(float)
            if name in MISSING and np.isnan(y).all():
                found = {"n": 0, "note": f"not defined: {MISSING[name]}"}
            elif len(bank.sizes) < LEAST_SIZES:
                found = {"n": len(x), "note": f"not defined: density takes {LEAST_SIZES} sizes or more"}
            else:
                found = correlation(x, y, seed, ("density", words)).row()
            rows.append({"bank": bank.name, "kind": kind, "with": name, **found})
    return pd.DataFrame(rows, columns=["bank", "kind", "with", "rho", "low", "high", "p", "n", "note"])


MISSING = {
    "loss": "no token comes after a scored position; score them with --data.positions random",
    "next_rarity": "no token comes after a scored position; score them with --data.positions random",
    "true_entropy": "the language of these texts is not known",
}


def across(banks: Sequence[MaskMeasurements], seed: int) -> pd.DataFrame:
    """Spearman's correlation of the inputs' densities between every two banks, on the inputs that both have.

    Under learned subgraphs, and under those that stand beside them. Inputs are the same when what was read is. Where
    too few are, the note says what each has.
    """
    rows = []
    for kind in SHOWN:
        having = [bank for bank in banks if kind in bank.kinds]
        own = {
            bank.name: dict(zip(reversed(bank.contexts), densities(bank, kind)[::-1], strict=True)) for bank in having
        }
        for one, other in combinations(having, 2):
            common = [text for text in own[one.name] if text in own[other.name]]
            a, b = (np.array([own[bank.name][text] for text in common]) for bank in (one, other))
            same = one.mask.model.fingerprint == other.mask.model.fingerprint
            columns = {"kind": kind, "one": one.name, "other": other.name, "same_model": same}
            rows.append(columns | _pair(one, other, a, b, seed))
    columns = ["kind", "one", "other", "same_model", "rho", "low", "high", "p", "n", "note"]
    return pd.DataFrame(rows, columns=columns)


def _pair(one: MaskMeasurements, other: MaskMeasurements, a: np.ndarray, b: np.ndarray, seed: int) -> dict[str, object]:
    short = [bank for bank in (one, other) if len(bank.sizes) < LEAST_SIZES]
    if short:
        return {"n": len(a), "note": f"not defined: {short[0].name} has fewer than {LEAST_SIZES} sizes"}
    if len(a) < LEAST:
        said = " and ".join(f"{bank.name} has {len(bank.names)} of {bank.source}" for bank in (one, other))
        return {"n": len(a), "note": f"different inputs, {len(a)} in common: {said}"}
    return correlation(a, b, seed, (one.name, other.name)).row()


def by_token(bank: MaskMeasurements) -> pd.DataFrame:
    """The density that every token of a text needs, where every one was an input of its own; empty otherwise."""
    table = pd.DataFrame({"input": bank.names, "token": bank.tokens, "density": densities(bank)})
    beside = [kind for kind in SHOWN[1:] if kind in bank.kinds]
    table = table.assign(**{f"density_{kind}": densities(bank, kind) for kind in beside})
    pairs = [[int(part) for part in name.split(":")] if ":" in name else [None, None] for name in bank.names]
    text, at = (pd.array([pair[i] for pair in pairs], dtype="Int64") for i in (0, 1))
    table = table.assign(bank=bank.name, text=text, at=at).dropna(subset=["text"]).sort_values(["text", "at"])
    columns = ["bank", "text", "at", "token", "density", *(f"density_{kind}" for kind in beside)]
    return table.reset_index(drop=True).reindex(columns=columns)
