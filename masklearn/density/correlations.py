"""Every input's density and properties, their correlations, and the density of every token of a text."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from masklearn.density.curves import MIN_CURVE_SIZES, densities, normalized_densities
from masklearn.density.measurements import MaskMeasurements
from masklearn.density.statistics import correlation
from masklearn.tiny import language

FULL_MODEL_PROPERTIES = ("entropy", "loss", "next_rarity", "last_rarity")
"""Metrics of the full model at every input (see `TextMetrics`)."""
PROPERTY_LABELS = {
    "entropy": "the full model's entropy",
    "loss": "the full model's loss",
    "next_rarity": "rarity of the next token",
    "last_rarity": "rarity of the last context token",
    "context": "context length",
    "answer": "being a token of the answer",
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
GIVEN = ("entropy", "next_rarity", "last_rarity", "context")
"""Properties that are partialled out of the correlation with any other one: entropy, token frequencies and length."""


def input_properties(measured: MaskMeasurements) -> pd.DataFrame:
    """Return a row per input: its density under every kind of subgraph, and its properties."""
    columns = {"bank": measured.name, "input": measured.names, "context_text": measured.contexts}
    columns |= {f"density_{kind}": densities(measured, kind) for kind in measured.sized_kinds}
    columns |= {f"normalized_density_{kind}": normalized_densities(measured, kind) for kind in measured.sized_kinds}
    columns |= {name: measured.full_model(name) for name in FULL_MODEL_PROPERTIES} | {"context": measured.lengths}
    true_entropy = measured.true_entropy or [None] * len(measured.names)
    is_answer = measured.is_answer or [None] * len(measured.names)
    of_text = {"true_entropy": np.array(true_entropy, dtype=float), "answer": np.array(is_answer, dtype=float)}
    return pd.DataFrame(columns | of_text)


def density_correlations(measured: MaskMeasurements, inputs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Correlate (Spearman) density with each property, plain and given the others of `GIVEN`, for every kind.

    Args:
        measured: The bank.
        inputs: Its `input_properties`.
        seed: Seed of bootstrap and permutations.
    """
    rows = []
    for kind in measured.sized_kinds:
        density = inputs[f"normalized_density_{kind}"].to_numpy(float)
        for name, label in PROPERTY_LABELS.items():
            if name == "answer" and not measured.is_answer:
                continue
            y = inputs[name].to_numpy(float)
            if name in UNDEFINED_REASONS and np.isnan(y).all():
                found = {"n": 0, "note": f"not defined: {UNDEFINED_REASONS[name]}"}
            elif np.isnan(density).all():
                found = {"n": len(y), "note": f"not defined: density needs {MIN_CURVE_SIZES} sizes or more"}
            else:
                given = {other: inputs[other].to_numpy(float) for other in GIVEN if other != name}
                found = _plain_and_partial(density, y, measured.texts, given, seed, label)
            rows.append({"bank": measured.name, "kind": kind, "with": name, **found})
    columns = ["rho", "low", "high", "p", "n", "note"]
    partial = ["partial", "partial_low", "partial_high", "partial_p", "given", "partial_note"]
    return pd.DataFrame(rows, columns=["bank", "kind", "with", *columns, *partial])


def _plain_and_partial(
    density: np.ndarray, y: np.ndarray, texts: np.ndarray, given: dict[str, np.ndarray], seed: int, label: str
) -> dict[str, object]:
    given = varying(given)
    plain = correlation(density, y, texts, seed, ("density", label))
    partial = correlation(density, y, texts, seed, ("density", label), list(given.values()))
    columns = {"partial": partial.rho, "partial_low": partial.low, "partial_high": partial.high}
    names = {"partial_p": partial.p, "given": ", ".join(given), "partial_note": partial.note}
    return plain.row() | columns | names


def varying(properties: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the properties that have a value for every input and are not the same for all of them."""
    return {name: values for name, values in properties.items() if not np.isnan(values).any() and np.ptp(values) > 0}


def token_densities(measured: MaskMeasurements) -> pd.DataFrame:
    """Return the density of every token of every text, in order; empty unless every position is an input of its own.

    Such inputs are named `<text>:<position>`, and their density is that of the last token.
    """
    kinds = {kind: f"density_{kind}" for kind in measured.compared_kinds if kind != measured.own_kind}
    table = pd.DataFrame({"input": measured.names, "token": measured.tokens, "density": densities(measured)})
    table = table.assign(normalized_density=normalized_densities(measured))
    table = table.assign(**{f"normalized_{name}": normalized_densities(measured, kind) for kind, name in kinds.items()})
    table = table.assign(**{name: densities(measured, kind) for kind, name in kinds.items()})
    if measured.is_answer:
        table = table.assign(part=np.where(measured.is_answer, "answer", "prompt"))
    split = [[int(field) for field in name.split(":")] if ":" in name else [None, None] for name in measured.names]
    text, position = (pd.array([pair[i] for pair in split], dtype="Int64") for i in (0, 1))
    table = table.assign(bank=measured.name, text=text, at=position)
    table = table.dropna(subset=["text"]).sort_values(["text", "at"])
    columns = ["bank", "text", "at", "token", *(["part"] if measured.is_answer else []), "density"]
    columns += ["normalized_density", *kinds.values(), *(f"normalized_{name}" for name in kinds.values())]
    return table.reset_index(drop=True).reindex(columns=columns)


def mean_true_entropy(tokens: Sequence[str], scored: Sequence[int]) -> float | None:
    """Compute the mean entropy of the embedded language at the scored positions of a text, in nats.

    Args:
        tokens: The text, beginning token first.
        scored: Scored positions: indices of tokens after which the next token is predicted.

    Returns:
        None if the text does not belong to the language.
    """
    try:
        entropies = [language.entropy(choice) for choice in language.truth(tokens[1:])]
        return sum(entropies[position] for position in scored) / len(scored)
    except (ValueError, IndexError):
        return None
