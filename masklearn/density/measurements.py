"""One bank of masks as the study sees it: what was measured of every input, as tidy tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from masklearn.evaluation.metrics import NUCLEI
from masklearn.evaluation.per_text import PerTextResults
from masklearn.mask_file import Mask
from masklearn.tiny import language

LEARNED, INVERSE, NORM = "learned", "inverse", "norm"
CHANCE = "random-matched"
"""What is held against learned subgraphs where one kind of random ones does: as many heads and MLPs, drawn anew."""
SHOWN = (LEARNED, NORM, CHANCE)
"""Kinds that stand side by side where not all are shown."""
RECOVERED = (1, 5, 10, 20, 40, 60, 80, 90)
"""The nuclei whose recovery is reported, in percent."""
DEPTHS = 4
"""Parts of equal depth that a model's layers are counted in."""


@dataclass(frozen=True)
class TopTokens:
    """The most probable next tokens of one input, under kinds of subgraphs of growing size and under the full model."""

    name: str
    text: str
    """What was read."""
    sizes: Sequence[int]
    """Nodes kept; the last is all of them."""
    tokens: Mapping[str, Sequence[Sequence[tuple[str, float]]]]
    """By kind of subgraph, for each size, tokens and probabilities, the most probable first."""


@dataclass(frozen=True)
class MaskMeasurements:
    """The masks of one run, and what was measured of them, input by input."""

    name: str
    mask: Mask
    seen: Mapping[str, PerTextResults]
    """By kind of subgraph: learned, inverse, random, ..."""
    names: Sequence[str]
    """Of every input."""
    contexts: Sequence[str]
    """What was read of every input, as text: by it an input is known across models."""
    lengths: Sequence[float]
    """Tokens read before a scored position, mean over those of every input."""
    groups: Sequence[int]
    """Place of the group whose masks every input is run under."""
    source: str
    """Where the texts are from."""
    tokens: Sequence[str] = ()
    """The last token of every input, as text."""
    true_entropy: Sequence[float | None] = ()
    """In nats, where the language is known."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What took how long."""

    @property
    def n_nodes(self) -> int:
        return self.mask.graph.n_nodes

    @property
    def sizes(self) -> list[int]:
        return self.mask.sizes.tolist()

    @property
    def fractions(self) -> np.ndarray:
        return np.array(self.sizes) / self.n_nodes

    @property
    def kinds(self) -> list[str]:
        return list(self.seen)

    def values(self, kind: str, name: str) -> np.ndarray:
        """A measured quantity, mean over draws where there are any: shape (sizes, inputs)."""
        return self.seen[kind].texts[name].mean(0).numpy()

    def full(self, name: str) -> np.ndarray:
        """A quantity of the full model: shape (inputs,)."""
        return self.seen[LEARNED].texts[name].numpy()

    def recovered(self, kind: str) -> np.ndarray:
        """Whether each of `RECOVERED` is recovered at half of an input's positions or more: (sizes, inputs, nuclei)."""
        share = self.seen[kind].texts["recovered"].mean(0).numpy()
        return share[..., [NUCLEI.index(p) for p in RECOVERED]] >= 0.5

    def used(self, kind: str, draws: slice = slice(None)) -> np.ndarray:
        """How often a kind's masks keep every node, mean over draws: shape (sizes, groups, nodes)."""
        return self.seen[kind].masks[draws].float().mean(0).numpy()

    def row(self) -> dict[str, Any]:
        """What this bank is."""
        model, graph = self.mask.model, self.mask.graph
        return {
            "bank": self.name,
            "model": model.lm,
            "revision": model.revision or "",
            "fingerprint": model.fingerprint,
            "nodes": graph.n_nodes,
            "layers": graph.n_layers,
            "heads a layer": graph.n_heads,
            "ablation": self.mask.ablation.name,
            "scope": self.mask.config.get("model", {}).get("scope", "dataset"),
            "scored": self.mask.positions,
            "texts": self.source,
            "inputs": len(self.names),
            "sizes": ", ".join(map(str, self.sizes)),
            **{f"{what} (s)": round(seconds, 1) for what, seconds in self.seconds.items()},
        }

    def by_size(self) -> pd.DataFrame:
        """Every input under every subgraph: TV, KL (nats), KL from the unigram (nats), nuclei recovered."""
        n_sizes, n_inputs = len(self.sizes), len(self.names)
        frames = []
        for kind in self.kinds:
            columns = {
                "bank": self.name,
                "kind": kind,
                "s": np.repeat(self.sizes, n_inputs),
                "fraction": np.repeat(self.fractions, n_inputs),
                "input": np.tile(np.array(self.names), n_sizes),
                **{name: self.values(kind, name).reshape(-1) for name in ("tv", "kl", "unigram_kl")},
            }
            for place, percent in enumerate(RECOVERED):
                columns[f"nucleus_{percent}"] = self.recovered(kind)[..., place].reshape(-1)
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def parts(self) -> dict[str, np.ndarray]:
        """Which nodes count for each part of the model that shares are reported of; parts without nodes are left out.

        A layer's depth is where it lies among all, in quarters; five layers have two in the first.
        """
        nodes, n_layers = self.mask.graph.nodes, self.mask.graph.n_layers
        depth = np.array([DEPTHS * node.layer // n_layers for node in nodes])
        heads = np.array([node.head is not None for node in nodes])
        parts = {"heads": heads, "MLPs": ~heads} | {f"quarter {i + 1}": depth == i for i in range(DEPTHS)}
        return {name: which for name, which in parts.items() if which.any()}


def true_entropies(tokens: Sequence[str], scored: Sequence[int]) -> float | None:
    """The true entropy of the embedded language in nats, mean over some positions of a text.

    Args:
        tokens: The text, its beginning token first.
        scored: Places among them, after which the next token is asked for.

    Returns:
        None where the text is not of the language.
    """
    try:
        found = [language.entropy(choice) for choice in language.truth(tokens[1:])]
        return sum(found[place] for place in scored) / len(scored)
    except (ValueError, IndexError):
        return None
