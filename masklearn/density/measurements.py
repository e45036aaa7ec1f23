"""The masks of one run and what was measured of every input, with tidy tables of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from masklearn.evaluation.metrics import BY_SUBGRAPH, NUCLEI
from masklearn.evaluation.per_text import PerTextResults
from masklearn.evaluation.text_report import PART_COUNTS, STRACE_KIND, WHOLE_PART_COUNTS
from masklearn.mask_file import Mask
from masklearn.text_bank import EdgeBank, TextBank

LEARNED_KIND = "learned"
"""Subgraphs of the learned masks."""
INVERSE_KIND = "inverse"
"""All nodes except those of the learned mask; of a text's edges or positions, all that its subgraph leaves out."""
NORM_KIND = "norm"
"""The nodes that contribute most to the residual stream by L1 norm."""
MATCHED_KIND = "random-matched"
"""Random subgraphs with as many heads and MLPs as the learned one."""
RANDOM_KIND = "random"
"""Random subgraphs: nodes or positions drawn uniformly, or edges grown backward from the output at random."""
REPORTED_NUCLEI = (1, 5, 10, 20, 40, 60, 80, 90)
"""Nuclei whose recovery is reported, in percent of the probability; the first is the top token."""
N_DEPTH_QUARTERS = 4
"""Depth ranges of (nearly) equal size into which layers are grouped."""


class Corpus(NamedTuple):
    """The texts that the unigram distribution of a bank was counted on."""

    tokens: int
    """Tokens, those at the beginning of a text left out."""
    distinct: int
    """Different ones among them."""

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens, {self.distinct:,} distinct"


@dataclass(frozen=True)
class TopTokens:
    """The most probable next tokens after one input, under subgraphs of growing size and under the full model."""

    name: str
    """Name of the input."""
    text: str
    """The input, as text."""
    sizes: Sequence[int | float]
    """Sizes, ascending, the last that of the full model: nodes kept, or shares of the edges or positions."""
    tokens: Mapping[str, Sequence[Sequence[tuple[str, float]]]]
    """By kind of subgraph and size: tokens with their probabilities, most probable first."""
    text_tokens: Sequence[str] = ()
    """The tokens of the input, as text; only those of banks of single texts are shown."""


@dataclass(frozen=True)
class MaskMeasurements:
    """The masks of one run (a bank) and what was measured of them for every input."""

    name: str
    """Name of the bank."""
    mask: Mask | TextBank
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
    ablation: str
    """The ablation that the subgraphs were measured under, which need not be that of learning."""
    tokens: Sequence[str] = ()
    """Last token of every input, as text."""
    true_entropy: Sequence[float | None] = ()
    """Entropy of the language at the scored positions, in nats; empty if the language is unknown."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Duration of each step of the run, in seconds."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """How a bank of edges was evaluated: `edges`, recomputed or frozen, and `keep_residual`; empty for others."""
    corpus: Corpus | None = None
    """Size of the corpus of the unigram distribution."""
    is_answer: Sequence[bool] = ()
    """Whether every input's scored token is one of an answer, where the texts have prompts and answers."""
    text_names: Sequence[str] = ()
    """For every input the name of its text, the first of equal ones; by default each name of an input has its own."""

    @cached_property
    def texts(self) -> np.ndarray:
        """For every input the name of its text, shape (inputs,): inputs of one text are named `<text>:<position>`."""
        return np.array(self.text_names or [name.split(":")[0] for name in self.names])

    @cached_property
    def texts_of_groups(self) -> np.ndarray:
        """For every group the name of its text, shape (groups,); its own name where groups are not single inputs."""
        inputs = np.argsort(self.group_index)
        are_inputs = len(set(self.group_index)) == len(self.names) == len(self.mask.groups)
        return self.texts[inputs] if are_inputs else np.array(self.mask.groups)

    @property
    def resampled(self) -> str:
        """What bootstraps resample: inputs, or texts if a text has several."""
        return "text" if len(set(self.texts)) < len(self.names) else "input"

    @property
    def unit(self) -> str:
        """What sizes count: nodes, edges or positions."""
        return self.mask.unit if isinstance(self.mask, TextBank) else "nodes"

    @property
    def full_size(self) -> int | float:
        """The size of the full model: its nodes; or 1.0, since sizes in edges or positions are shares of a text's."""
        return 1.0 if isinstance(self.mask, TextBank) else self.mask.graph.n_nodes

    @property
    def sizes(self) -> list[int] | list[float]:
        """Sizes of the masks, ascending: nodes kept, or edges or positions kept as shares."""
        return list(self.mask.shares) if isinstance(self.mask, TextBank) else self.mask.sizes.tolist()

    @property
    def fractions(self) -> np.ndarray:
        """Sizes over that of the full model, shape (sizes,)."""
        return np.array(self.sizes) / self.full_size

    @property
    def kinds(self) -> list[str]:
        """Kinds of subgraphs that were measured."""
        return list(self.results)

    @property
    def own_kind(self) -> str:
        """Kind of the bank's own subgraphs: learned, or another method that chose them, such as s-trace."""
        return self.mask.method if isinstance(self.mask, TextBank) else LEARNED_KIND

    @property
    def control_kind(self) -> str | None:
        """Kind of random subgraphs that the bank's own are tested against: random-matched if there are any."""
        return next((kind for kind in (MATCHED_KIND, RANDOM_KIND) if kind in self.results), None)

    @property
    def n_short_sizes(self) -> int:
        """Sizes, from the smallest, that cannot hold a path from a token to the output in half of the texts or more.

        Smaller subgraphs do not depend on the text. 0 for other banks.
        """
        if not isinstance(self.mask, EdgeBank):
            return 0
        path = self.mask.path_edges / float(np.median(self.mask.n_edges))
        return sum(share < path for share in self.mask.shares)

    @property
    def n_curve_sizes(self) -> int:
        """Sizes that densities and phases are computed from: all but the short ones."""
        return len(self.sizes) - self.n_short_sizes

    @property
    def sized_kinds(self) -> list[str]:
        """Kinds whose subgraphs have exactly `s` nodes: every kind except the inverse."""
        return [kind for kind in self.kinds if kind != INVERSE_KIND]

    @property
    def compared_kinds(self) -> list[str]:
        """Kinds that are compared everywhere: the bank's own, norm, s-trace, and the random control."""
        kinds = dict.fromkeys((self.own_kind, NORM_KIND, STRACE_KIND, self.control_kind or ""))
        return [kind for kind in kinds if kind in self.results]

    def values(self, kind: str, metric: str) -> np.ndarray:
        """Return a metric of one kind of subgraph, mean over random draws, shape (sizes, inputs)."""
        return self.results[kind].texts[metric].mean(0).numpy()

    def is_finite(self, kind: str) -> bool:
        """Whether the outputs of all subgraphs of a kind are finite; the TV of others is NaN."""
        return bool(np.isfinite(self.values(kind, "tv")).all())

    def full_model(self, metric: str) -> np.ndarray:
        """Return a metric of the full model, shape (inputs,)."""
        return self.results[self.own_kind].texts[metric].numpy()

    def recovered(self, kind: str) -> np.ndarray:
        """Return whether half or more of an input's positions recover a nucleus.

        Returns:
            Boolean, shape (draws, sizes, inputs, nuclei), with the nuclei of `REPORTED_NUCLEI`.
        """
        share = self.results[kind].texts["recovered"].numpy()
        return share[..., [NUCLEI.index(p) for p in REPORTED_NUCLEI]] >= 0.5

    def nearer_to_unigram(self, kind: str) -> np.ndarray:
        """Return the share of random draws whose KL from the unigram is below that from the full model.

        Returns:
            Shape (sizes, inputs).
        """
        texts = self.results[kind].texts
        return (texts["unigram_kl"] < texts["kl"]).double().mean(0).numpy()

    def node_use(self, kind: str, draws: slice = slice(None)) -> np.ndarray:
        """Return the share of random draws in which a kind's mask keeps each node, shape (sizes, groups, nodes).

        Kinds that are not random have one draw, so their shares are 0 or 1.
        """
        return self.results[kind].masks[draws].double().mean(0).numpy()

    def row(self) -> dict[str, Any]:
        """Describe the bank in one row of the table `banks`."""
        model, graph = self.mask.model, self.mask.graph
        return {
            "bank": self.name,
            "model": model.lm,
            "revision": model.revision or "",
            "fingerprint": model.fingerprint,
            "sizes in": self.unit,
            "method": self.own_kind,
            "nodes": graph.n_nodes,
            "layers": graph.n_layers,
            "heads a layer": graph.n_heads,
            "ablation": self.ablation,
            "learned under": self.mask.ablation.name,
            "patterns and norms": self.conditions.get("edges", ""),
            "controls keep residuals": self.conditions.get("keep_residual"),
            "scope": self.mask.config.get("model", {}).get("scope", "dataset"),
            "scored": self.mask.positions,
            "texts": self.source,
            "inputs": len(self.names),
            "unigram counted on": str(self.corpus or "not known"),
            "sizes": ", ".join(map(str, self.sizes)),
            **{f"{step} (s)": round(seconds, 1) for step, seconds in self.seconds.items()},
        }

    def inputs_by_size(self) -> pd.DataFrame:
        """Return `BY_SUBGRAPH` (in nats, except TVs) and recovered nuclei: a row per kind, size and input.

        Of a random kind these are means over draws, and shares of the draws that recover a nucleus.
        """
        n_sizes, n_inputs = len(self.sizes), len(self.names)
        frames = []
        for kind in self.kinds:
            columns = {
                "bank": self.name,
                "kind": kind,
                "s": np.repeat(self.sizes, n_inputs),
                "fraction": np.repeat(self.fractions, n_inputs),
                "input": np.tile(np.array(self.names), n_sizes),
                **{metric: self.values(kind, metric).reshape(-1) for metric in BY_SUBGRAPH},
            }
            for i, percent in enumerate(REPORTED_NUCLEI):
                columns[f"nucleus_{percent}"] = self.recovered(kind)[..., i].mean(0).reshape(-1)
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def part_shares(self, kind: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the share of each part of the model in the subgraphs, and its share in the whole graph.

        Of nodes and positions: heads, MLPs, and quarters of the depth. Of edges: those of the attention, of MLPs and of
        the residual stream, and quarters of the depth. Layer l of n belongs to quarter floor(4 l / n) + 1; empty parts
        are left out.

        Returns:
            By part, both shares: of shape (sizes, groups) and (groups,).
        """
        n_layers = self.mask.graph.n_layers
        quarter = np.array([N_DEPTH_QUARTERS * layer // n_layers for layer in range(n_layers)])
        if isinstance(self.mask, TextBank):
            kept, whole = self.values(kind, PART_COUNTS), self.full_model(WHOLE_PART_COUNTS)
            names = self.mask.parts
        else:
            is_head = np.array([node.head is not None for node in self.mask.graph.nodes])
            layer = np.array([node.layer for node in self.mask.graph.nodes])
            by_cell = np.stack([(layer == i) & (is_head == head) for i in range(n_layers) for head in (True, False)], 1)
            kept = (self.node_use(kind) @ by_cell).reshape(len(self.sizes), -1, n_layers, 2)
            whole = np.tile(by_cell.sum(0).reshape(1, n_layers, 2), (kept.shape[1], 1, 1))
            names = ("heads", "MLPs")
        counts = {name: (kept[..., i].sum(-1), whole[..., i].sum(-1)) for i, name in enumerate(names)}
        for i in range(N_DEPTH_QUARTERS):
            inside = quarter == i
            counts[f"quarter {i + 1}"] = (kept[..., inside, :].sum((-2, -1)), whole[..., inside, :].sum((-2, -1)))
        total = np.maximum(kept.sum((-2, -1)), 1), whole.sum((-2, -1))
        return {part: (k / total[0], w / total[1]) for part, (k, w) in counts.items() if w.all()}


def size_text(s: float, unit: str) -> str:
    """A size in words: "8 nodes", or "0.1 % of the edges"."""
    if unit != "nodes":
        return f"{float(f'{100 * s:.2g}'):g} % of the {unit}"  # 100, not 1e+02
    return f"{s:.0f} node{'' if round(s) == 1 else 's'}"
