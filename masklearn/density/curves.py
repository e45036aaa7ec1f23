"""How subgraphs approach the full model as they grow: density curve, its area, nuclei, and the unigram."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from masklearn.density.measurements import REPORTED_NUCLEI, MaskMeasurements
from masklearn.density.statistics import bootstrap_ci, bootstrap_p_values

MIN_CURVE_SIZES = 3
"""Fewest sizes for which an area under a curve is reported."""


def area(tv: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Compute computation density: the area under TV over log10(s / n_nodes), by trapezoids.

    The full model, with a TV of 0, is the last point of the curve. The unit is TV times decades of size: an input
    whose subgraphs have a TV of 1 up to a tenth of the nodes and 0 from there on gets 1 for each decade below.

    Args:
        tv: TV distance from the full model, shape (sizes, inputs).
        fractions: s / n_nodes, ascending, shape (sizes,).

    Returns:
        Shape (inputs,).
    """
    full_model = np.zeros((1 if fractions[-1] < 1 else 0, tv.shape[1]))
    x = np.log10(np.append(fractions, np.ones(len(full_model))))
    return np.asarray(np.trapezoid(np.concatenate([tv, full_model]), x, axis=0))


def densities(measured: MaskMeasurements, kind: str | None = None) -> np.ndarray:
    """Compute every input's computation density under one kind of subgraph, its own by default.

    Returns:
        Shape (inputs,); NaN for too few sizes.
    """
    if len(measured.sizes) < MIN_CURVE_SIZES:
        return np.full(len(measured.names), np.nan)
    return area(measured.values(kind or measured.own_kind, "tv"), measured.fractions)


def normalized_densities(measured: MaskMeasurements, kind: str | None = None) -> np.ndarray:
    """Compute every input's density divided by the decades that the sizes span: its mean TV over log size, 0 to 1.

    It compares models of different numbers of nodes. Of edges, sizes that cannot hold a path from a token to the output
    in half of the texts are left out, since such subgraphs do not depend on the text.

    Returns:
        Shape (inputs,); NaN for too few sizes.
    """
    first = measured.n_short_sizes
    fractions, tv = measured.fractions[first:], measured.values(kind or measured.own_kind, "tv")[first:]
    if len(fractions) < MIN_CURVE_SIZES:
        return np.full(len(measured.names), np.nan)
    return area(tv, fractions) / -np.log10(fractions[0])


def curve(measured: MaskMeasurements, seed: int) -> pd.DataFrame:
    """Return mean TV and KL (nats) against size for every kind of subgraph, with bootstrap intervals over inputs."""
    frames = []
    for kind in measured.kinds:
        metrics = {metric: measured.values(kind, metric) for metric in ("tv", "kl")}
        frames.append(_means_by_size(measured, kind, metrics, seed))
    return pd.concat(frames, ignore_index=True)


def rises(measured: MaskMeasurements, seed: int) -> list[int | float]:
    """Return the sizes whose mean TV is above that of the next smaller size, with all of the difference's interval.

    The difference is paired, input by input, and sizes that cannot hold a path are left out. None without intervals.
    """
    first = measured.n_short_sizes
    differences = np.diff(measured.values(measured.own_kind, "tv")[first:], axis=0)
    _, low, _ = bootstrap_ci(differences, measured.texts, seed)
    return [s for s, least in zip(measured.sizes[first + 1 :], low, strict=True) if least > 0]


def _means_by_size(measured: MaskMeasurements, kind: str, metrics: dict[str, np.ndarray], seed: int) -> pd.DataFrame:
    """Return a row per size with mean and interval of every metric, given as (sizes, inputs)."""
    columns = {"bank": measured.name, "kind": kind, "s": measured.sizes, "fraction": measured.fractions}
    for metric, values in metrics.items():
        mean, low, high = bootstrap_ci(values, measured.texts, seed)
        columns |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
    return pd.DataFrame(columns)


def first_fraction(reached: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Find the smallest relative size at which a condition holds: (sizes, inputs) to (inputs,).

    It is 1 where only the full model fulfils the condition.
    """
    x = np.append(fractions, 1.0)
    return x[np.concatenate([reached, np.ones((1, reached.shape[1]), dtype=bool)]).argmax(0)]


def _quartiles(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def nuclei(measured: MaskMeasurements) -> pd.DataFrame:
    """Return quartiles over inputs, and draws, of the relative size at which each ordered nucleus is recovered."""
    rows = []
    for kind in measured.sized_kinds:
        draws = measured.recovered(kind)
        recovered = draws.swapaxes(0, 1).reshape(len(measured.sizes), -1, draws.shape[-1])
        for i, percent in enumerate(REPORTED_NUCLEI):
            columns = {"bank": measured.name, "kind": kind, "p": percent}
            columns |= _quartiles(first_fraction(recovered[..., i], measured.fractions))
            rows.append(columns | {"only_by_the_whole": float((~recovered[..., i].any(0)).mean())})
    return pd.DataFrame(rows)


def unigrams(measured: MaskMeasurements, seed: int) -> pd.DataFrame:
    """Return how far subgraphs are from the unigram and the full model, and the share of inputs nearer to the unigram.

    KL is in nats; `top_rarity` is the unigram surprisal of the subgraphs' top token. `excess` is the share minus that
    of the random control's subgraphs, input by input. P-values are against one half and 0.
    """
    frames, control, texts = [], measured.control_kind, measured.texts
    for kind in measured.sized_kinds:
        metrics = {name: measured.values(kind, name) for name in ("unigram_kl", "unigram_tv", "top_rarity")}
        nearer = measured.nearer_to_unigram(kind)
        metrics |= {"full_kl": measured.values(kind, "kl"), "nearer_to_unigram": nearer}
        p_values = {"nearer_to_unigram_p": bootstrap_p_values(nearer, texts, seed, null=0.5)}
        if control and kind != control:
            metrics["excess"] = nearer - measured.nearer_to_unigram(control)
            p_values["excess_p"] = bootstrap_p_values(metrics["excess"], texts, seed)
        frames.append(_means_by_size(measured, kind, metrics, seed).assign(**p_values))
    return pd.concat(frames, ignore_index=True)


def unigram_crossover(measurements: Sequence[MaskMeasurements]) -> pd.DataFrame:
    """Return quartiles over inputs of the smallest relative size nearer to the full model than to the unigram."""
    rows = []
    for measured in measurements:
        for kind in measured.sized_kinds:
            reached = measured.values(kind, "kl") <= measured.values(kind, "unigram_kl")
            quartiles = _quartiles(first_fraction(reached, measured.fractions))
            rows.append({"bank": measured.name, "kind": kind, **quartiles})
    return pd.DataFrame(rows)
