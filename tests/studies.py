"""Hand-made measurements of banks, whose densities can be worked out on paper."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import masklearn as ml
from masklearn.density import MaskMeasurements
from masklearn.density.measurements import Corpus
from masklearn.evaluation.metrics import BY_SUBGRAPH, NUCLEI
from masklearn.evaluation.per_text import PerTextResults
from masklearn.mask_file import ModelId

GRAPH = ml.NodeGraph(4, 4)
"""20 nodes: four layers of four heads and an MLP; each layer is a quarter of the depth."""
SIZES = (1, 2, 5, 10)


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
        "tokens": [f" word{i}" for i in range(n)],
        "corpus": Corpus(10 * n, n),
    }


def falling(n: int) -> list[list[float]]:
    """TVs, at `SIZES`, of inputs with growing density."""
    return [[0.9, 0.5 + 0.4 * i / n, 0.1 + 0.5 * i / n, 0.02 + 0.3 * i / n] for i in range(n)]
