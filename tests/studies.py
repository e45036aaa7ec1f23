"""Hand-made measurements of banks, whose densities can be worked out on paper."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import masklearn as ml
from masklearn.density import MaskMeasurements
from masklearn.density.measurements import Corpus
from masklearn.evaluation.metrics import BY_SUBGRAPH, NUCLEI
from masklearn.evaluation.per_text import PerTextResults
from masklearn.evaluation.text_report import PART_COUNTS, STRACE_KIND, WHOLE_PART_COUNTS
from masklearn.mask_file import ModelId
from masklearn.text_bank import EdgeBank

GRAPH = ml.NodeGraph(4, 4)
"""20 nodes: four layers of four heads and an MLP; each layer is a quarter of the depth."""
SIZES = (1, 2, 5, 10)
N_FEW_RESAMPLES = 99


def resample_little(patch: pytest.MonkeyPatch) -> None:
    """Let studies make `N_FEW_RESAMPLES` resamples and permutations, for tests of other things: they take seconds."""
    for name in ("N_RESAMPLES", "N_PERMUTATIONS"):
        patch.setattr(f"masklearn.density.statistics.{name}", N_FEW_RESAMPLES)


def masks(n: int, sizes: Sequence[int] = SIZES, seed: int = 0) -> Tensor:
    """Nested random masks, drawn for every input: boolean, shape (inputs, sizes, nodes)."""
    order = torch.rand(n, GRAPH.n_nodes, generator=torch.Generator().manual_seed(seed)).argsort(-1).argsort(-1)
    return order[:, None] < torch.tensor(list(sizes))[:, None]


def measured(
    tv: Sequence[Sequence[float]],
    name: str = "a run",
    sizes: Sequence[int] = SIZES,
    kept: Tensor | None = None,
    full: Mapping[str, Sequence[float]] | None = None,
    fingerprint: str = "f00d",
    control_tv: Sequence[Sequence[float]] | None = None,
    **others: Any,
) -> MaskMeasurements:
    """Measurements with a given TV of every input at every size (inputs x sizes); KL is twice the TV.

    Args:
        tv: TV of the learned subgraphs; norm has (1 + TV) / 2, the inverse 1 - TV.
        name: Name of the bank.
        sizes: Nodes kept.
        kept: Learned masks, shape (groups, sizes, nodes); nested random masks by default.
        full: Metrics of the full model for every input, see `full_model`.
        fingerprint: Fingerprint of the model.
        control_tv: TV of the random-matched subgraphs; (1 + TV) / 2 by default.
        others: Other fields of `MaskMeasurements`.
    """
    distance = by_size(tv)
    n = distance.shape[-1]
    kept = masks(n, sizes) if kept is None else kept
    subgraphs, of_full, half = kept.transpose(0, 1)[None], full_model(n, full or {}), (1 + distance) / 2
    kinds = {
        "learned": results(subgraphs, distance, of_full),
        "random-matched": results(subgraphs, half if control_tv is None else by_size(control_tv), of_full),
        "norm": results(subgraphs, half, of_full),
        "inverse": results(~subgraphs, 1 - distance, of_full),
    }
    mask = ml.Mask(
        kept, torch.zeros(n, 1, GRAPH.n_nodes), torch.tensor(list(sizes)), GRAPH, ModelId("a model", None, fingerprint),
        tuple(map(str, range(n))), config={"model": {"scope": "input"}}, positions="random",
    )  # fmt: skip
    return MaskMeasurements(name=name, mask=mask, results=kinds, **inputs(n) | others)


def of_edges(
    nodes: MaskMeasurements,
    n_edges: int = 400,
    method: str = STRACE_KIND,
    shares: tuple[float, ...] | None = None,
    **others: Any,
) -> MaskMeasurements:
    """The same measurements as those of a bank of edges, with random connected subgraphs as the control.

    A tenth of all edges are MLPs' and a fifth are residual, as in every subgraph.

    Args:
        nodes: The measurements.
        n_edges: Edges of every text.
        method: How the edges were chosen.
        shares: Sizes as shares of the edges; by default the same as of nodes.
        others: Other fields of `MaskMeasurements`.
    """
    n, mask, n_sizes = len(nodes.names), nodes.mask, len(nodes.sizes)
    shares = shares or tuple(nodes.fractions.tolist())
    kept = tuple(tuple(torch.arange(int(share * n_edges)) for share in shares) for _ in range(n))
    groups = tuple(map(str, range(n)))
    bank = EdgeBank(kept, shares, (4,) * n, (n_edges,) * n, mask.graph, mask.model, groups, method)
    parts = torch.tensor([7.0, 1, 2]).expand(n, mask.graph.n_layers, 3)
    counts = {PART_COUNTS: parts.expand(1, n_sizes, -1, -1, -1), WHOLE_PART_COUNTS: parts}
    kinds = {method: "learned", "random": "random-matched", "inverse": "inverse"}
    found = {kind: nodes.results[of_nodes] for kind, of_nodes in kinds.items()}
    found = {kind: PerTextResults(of_kind.masks, of_kind.texts | counts) for kind, of_kind in found.items()}
    return replace(nodes, **{"mask": bank, "results": found} | others)


def by_size(tv: Sequence[Sequence[float]]) -> Tensor:
    """TVs (inputs x sizes) as results of one draw: float64, shape (1, sizes, inputs)."""
    return torch.tensor(tv, dtype=torch.float64).T[None]


def full_model(n: int, known: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    """Metrics of the full model at n inputs: entropy and loss are the input's index, rarities are unrelated to it."""
    index = torch.arange(n, dtype=torch.float64)
    metrics = {"entropy": index, "loss": index, "next_rarity": index * 7 % 11, "last_rarity": index * 5 % 13}
    return metrics | {key: torch.tensor(values, dtype=torch.float64) for key, values in known.items()}


def results(masks: Tensor, distance: Tensor, of_full: Mapping[str, Tensor]) -> PerTextResults:
    """Results of one kind of subgraphs with a given TV (draws, sizes, inputs); every distance from the unigram is 1."""
    recovered = (distance[..., None] < 1 - torch.tensor(NUCLEI) / 100).float()
    of_masks = dict.fromkeys(BY_SUBGRAPH, torch.ones_like(distance)) | {"tv": distance, "kl": 2 * distance}
    return PerTextResults(masks, of_masks | {"recovered": recovered} | dict(of_full))


def inputs(n: int) -> dict[str, Any]:
    """What is known of n inputs, each with a group of its own."""
    return {
        "names": [str(i) for i in range(n)],
        "contexts": [f"text {i}" for i in range(n)],
        "lengths": [float(i % 5) for i in range(n)],
        "group_index": list(range(n)),
        "source": "a file",
        "ablation": "zero",
        "tokens": [f" word{i}" for i in range(n)],
        "corpus": Corpus(10 * n, n),
    }


def falling(n: int) -> list[list[float]]:
    """TVs, at `SIZES`, of inputs with growing density."""
    return [[0.9, 0.5 + 0.4 * i / n, 0.1 + 0.5 * i / n, 0.02 + 0.3 * i / n] for i in range(n)]
