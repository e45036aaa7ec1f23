"""The masks of one run and what was measured of every input, with tidy tables of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from masklearn.edges import EdgeBank
from masklearn.evaluation.metrics import NUCLEI
from masklearn.evaluation.per_text import PerTextResults
from masklearn.mask_file import Mask
from masklearn.tiny import language

LEARNED_KIND = "learned"
"""Subgraphs of the learned masks."""
INVERSE_KIND = "inverse"
"""All nodes except those of the learned mask."""
NORM_KIND = "norm"
"""The nodes that contribute most to the residual stream by L1 norm."""
MATCHED_KIND = "random-matched"
"""Random subgraphs with as many heads and MLPs as the learned one."""
COMPARED_KINDS = (LEARNED_KIND, NORM_KIND, MATCHED_KIND)
"""Kinds of subgraphs in tables and figures that do not cover every kind."""
REPORTED_NUCLEI = (1, 5, 10, 20, 40, 60, 80, 90)
"""Nuclei whose recovery is reported, in percent of the probability; the first is the top token."""
N_DEPTH_QUARTERS = 4
"""Depth ranges of (nearly) equal size into which layers are grouped."""


@dataclass(frozen=True)
class TopTokens:
    """The most probable next tokens after one input, under subgraphs of growing size and under the full model."""

    name: str
    """Name of the input."""
    text: str
    """The input, as text."""
    sizes: Sequence[int | float]
    """Sizes, ascending, the last that of the full model: nodes kept, or shares of the edges."""
    tokens: Mapping[str, Sequence[Sequence[tuple[str, float]]]]
    """By kind of subgraph and size: tokens with their probabilities, most probable first."""


@dataclass(frozen=True)
class MaskMeasurements:
    """The masks of one run (a bank) and what was measured of them for every input."""

    name: str
    """Name of the bank."""
    mask: Mask | EdgeBank
    results: Mapping[str, PerTextResults]
    """By kind of subgraph: learned, inverse, random, ..."""
    names: Sequence[str]
    """Name of every input."""
    contexts: Sequence[str]
    """Every input, decoded up to its last scored position; it identifies the input across models."""
    lengths: Sequence[float]
    """Tokens up to the scored position, mean over the scored positions of every input."""
    group_index: Sequence[int]
    """For every input, the index of the group whose masks apply to it."""
    source: str
    """Where the texts come from."""
    tokens: Sequence[str] = ()
    """Last token of every input, as text."""
    true_entropy: Sequence[float | None] = ()
    """Entropy of the language at the scored positions, in nats; empty if the language is unknown."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Duration of each step of the run, in seconds."""

    @property
    def unit(self) -> str:
        """What sizes count: nodes or edges."""
        return "edges" if isinstance(self.mask, EdgeBank) else "nodes"

    @property
    def full_size(self) -> int | float:
        """The size of the full model: its nodes; or 1.0, since sizes in edges are shares of a text's graph."""
        return 1.0 if isinstance(self.mask, EdgeBank) else self.mask.graph.n_nodes

    @property
    def sizes(self) -> list[int] | list[float]:
        """Sizes of the masks, ascending: nodes kept, or edges kept as shares."""
        return list(self.mask.shares) if isinstance(self.mask, EdgeBank) else self.mask.sizes.tolist()

    @property
    def fractions(self) -> np.ndarray:
        """Sizes over that of the full model, shape (sizes,)."""
        return np.array(self.sizes) / self.full_size

    @property
    def kinds(self) -> list[str]:
        """Kinds of subgraphs that were measured."""
        return list(self.results)

    @property
    def sized_kinds(self) -> list[str]:
        """Kinds whose subgraphs have exactly `s` nodes: every kind except the inverse."""
        return [kind for kind in self.kinds if kind != INVERSE_KIND]

    @property
    def compared_kinds(self) -> list[str]:
        """Those of `COMPARED_KINDS` that were measured, in the order of measurement."""
        return [kind for kind in self.kinds if kind in COMPARED_KINDS]

    def values(self, kind: str, metric: str) -> np.ndarray:
        """Return a metric of one kind of subgraph, mean over random draws, shape (sizes, inputs)."""
        return self.results[kind].texts[metric].mean(0).numpy()

    def full_model(self, metric: str) -> np.ndarray:
        """Return a metric of the full model, shape (inputs,)."""
        return self.results[LEARNED_KIND].texts[metric].numpy()

    def recovered(self, kind: str) -> np.ndarray:
        """Return whether half or more of an input's positions recover a nucleus.

        Returns:
            Boolean, shape (sizes, inputs, nuclei), with the nuclei of `REPORTED_NUCLEI`.
        """
        share = self.results[kind].texts["recovered"].mean(0).numpy()
        return share[..., [NUCLEI.index(p) for p in REPORTED_NUCLEI]] >= 0.5

    def node_use(self, kind: str, draws: slice = slice(None)) -> np.ndarray:
        """Return the share of random draws in which a kind's mask keeps each node, shape (sizes, groups, nodes).

        Kinds that are not random have one draw, so their shares are 0 or 1.
        """
        return self.results[kind].masks[draws].float().mean(0).numpy()

    def row(self) -> dict[str, Any]:
        """Describe the bank in one row of the table `banks`."""
        model, graph = self.mask.model, self.mask.graph
        return {
            "bank": self.name,
            "model": model.lm,
            "revision": model.revision or "",
            "fingerprint": model.fingerprint,
            "sizes in": self.unit,
            "nodes": graph.n_nodes,
            "layers": graph.n_layers,
            "heads a layer": graph.n_heads,
            "ablation": self.mask.ablation.name,
            "scope": self.mask.config.get("model", {}).get("scope", "dataset"),
            "scored": self.mask.positions,
            "texts": self.source,
            "inputs": len(self.names),
            "sizes": ", ".join(map(str, self.sizes)),
            **{f"{step} (s)": round(seconds, 1) for step, seconds in self.seconds.items()},
        }

    def inputs_by_size(self) -> pd.DataFrame:
        """Return TV, KL (nats), KL from the unigram (nats) and recovered nuclei: a row per kind, size and input."""
        n_sizes, n_inputs = len(self.sizes), len(self.names)
        frames = []
        for kind in self.kinds:
            columns = {
                "bank": self.name,
                "kind": kind,
                "s": np.repeat(self.sizes, n_inputs),
                "fraction": np.repeat(self.fractions, n_inputs),
                "input": np.tile(np.array(self.names), n_sizes),
                **{metric: self.values(kind, metric).reshape(-1) for metric in ("tv", "kl", "unigram_kl")},
            }
            for i, percent in enumerate(REPORTED_NUCLEI):
                columns[f"nucleus_{percent}"] = self.recovered(kind)[..., i].reshape(-1)
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def model_parts(self) -> dict[str, np.ndarray]:
        """Return which nodes belong to each part of the model, boolean of shape (nodes,); empty parts are left out.

        Layer l of n belongs to quarter floor(4 l / n) + 1 of the depth.
        """
        nodes, n_layers = self.mask.graph.nodes, self.mask.graph.n_layers
        quarter = np.array([N_DEPTH_QUARTERS * node.layer // n_layers for node in nodes])
        is_head = np.array([node.head is not None for node in nodes])
        parts = {"heads": is_head, "MLPs": ~is_head}
        parts |= {f"quarter {i + 1}": quarter == i for i in range(N_DEPTH_QUARTERS)}
        return {part: members for part, members in parts.items() if members.any()}


def size_text(s: float, unit: str) -> str:
    """A size in words: "8 nodes", or "0.1 % of the edges"."""
    if unit == "edges":
        return f"{100 * s:.2g} % of the edges"
    return f"{s:.0f} node{'' if round(s) == 1 else 's'}"


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
