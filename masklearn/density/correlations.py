"""Every input's density and properties, their correlations, and the density of every token of a text."""

import numpy as np
import pandas as pd

from masklearn.density.curves import MIN_CURVE_SIZES, densities
from masklearn.density.measurements import COMPARED_KINDS, MaskMeasurements
from masklearn.density.statistics import correlation

FULL_MODEL_PROPERTIES = ("entropy", "loss", "next_rarity", "last_rarity")
"""Metrics of the full model at every input (see `TextMetrics`)."""
PROPERTY_LABELS = {
    "entropy": "the full model's entropy",
    "loss": "the full model's loss",
    "next_rarity": "rarity of the next token",
    "last_rarity": "rarity of the last context token",
    "context": "context length",
    "true_entropy": "true entropy of the language",
}
"""Properties with which density is correlated, as figures and notes name them."""
_NO_NEXT_TOKEN = "no token follows a scored position; use --data.positions random"
UNDEFINED_REASONS = {
    "loss": _NO_NEXT_TOKEN,
    "next_rarity": _NO_NEXT_TOKEN,
    "true_entropy": "the language of these texts is unknown",
}
"""Why a property has no value for any input of a bank."""


def input_properties(measured: MaskMeasurements) -> pd.DataFrame:
    """Return a row per input: its density under every kind of subgraph, and its properties."""
    columns = {"bank": measured.name, "input": measured.names, "context_text": measured.contexts}
    columns |= {f"density_{kind}": densities(measured, kind) for kind in measured.sized_kinds}
    columns |= {name: measured.full_model(name) for name in FULL_MODEL_PROPERTIES} | {"context": measured.lengths}
    true_entropy = measured.true_entropy or [None] * len(measured.names)
    return pd.DataFrame(columns | {"true_entropy": np.array(true_entropy, dtype=float)})


def density_correlations(measured: MaskMeasurements, inputs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Correlate (Spearman) density with each property, for every kind of subgraph.

    Args:
        measured: The bank.
        inputs: Its `input_properties`.
        seed: Seed of bootstrap and permutations.
    """
    rows = []
    for kind in measured.sized_kinds:
        for name, label in PROPERTY_LABELS.items():
            x, y = inputs[f"density_{kind}"].to_numpy(float), inputs[name].to_numpy(float)
            if name in UNDEFINED_REASONS and np.isnan(y).all():
                found = {"n": 0, "note": f"not defined: {UNDEFINED_REASONS[name]}"}
            elif len(measured.sizes) < MIN_CURVE_SIZES:
                found = {"n": len(x), "note": f"not defined: density needs {MIN_CURVE_SIZES} sizes or more"}
            else:
                found = correlation(x, y, seed, ("density", label)).row()
            rows.append({"bank": measured.name, "kind": kind, "with": name, **found})
    return pd.DataFrame(rows, columns=["bank", "kind", "with", "rho", "low", "high", "p", "n", "note"])


def token_densities(measured: MaskMeasurements) -> pd.DataFrame:
    """Return the density of every token of every text, in order; empty unless every position is an input of its own.

    Such inputs are named `<text>:<position>`, and their density is that of the last token.
    """
    other_kinds = [kind for kind in COMPARED_KINDS[1:] if kind in measured.kinds]
    table = pd.DataFrame({"input": measured.names, "token": measured.tokens, "density": densities(measured)})
    table = table.assign(**{f"density_{kind}": densities(measured, kind) for kind in other_kinds})
    split = [[int(field) for field in name.split(":")] if ":" in name else [None, None] for name in measured.names]
    text, position = (pd.array([pair[i] for pair in split], dtype="Int64") for i in (0, 1))
    table = table.assign(bank=measured.name, text=text, at=position)
    table = table.dropna(subset=["text"]).sort_values(["text", "at"])
    columns = ["bank", "text", "at", "token", "density", *(f"density_{kind}" for kind in other_kinds)]
    return table.reset_index(drop=True).reindex(columns=columns)
