"""Hand-made measurements of banks, whose densities can be worked out on paper."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import masklearn as ml
from masklearn.density import MaskMeasurements
from masklearn.evaluation.metrics import NUCLEI
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
    **others: Any,
) -> MaskMeasurements:
    """Measurements with a given TV of every input at every size (inputs x sizes); KL is twice the TV.

    Args:
        tv: TV of the learned subgraphs; random-matched and norm have (1 + TV) / 2, the inverse 1 - TV.
        name: Name of the bank.
        sizes: Nodes kept.
        kept: Learned masks, shape (groups, sizes, nodes); nested random masks by default.
        full: Metrics of the full model for every input; the index of the input by default.
        fingerprint: Fingerprint of the model.
        others: Other fields of `MaskMeasurements`.
    """
    distance = torch.tensor(tv, dtype=torch.float64).T[None]  # (draws, sizes, inputs)
    n = distance.shape[-1]
    kept = masks(n, sizes) if kept is None else kept
    known = {name: torch.arange(n, dtype=torch.float64) for name in ("entropy", "loss", "next_rarity", "last_rarity")}
    known |= {key: torch.tensor(values, dtype=torch.float64) for key, values in (full or {}).items()}

    def results(masks: Tensor, distance: Tensor) -> PerTextResults:
        recovered = (distance[..., None] < 1 - torch.tensor(NUCLEI) / 100).float()
        by_size = {"tv": distance, "kl": 2 * distance, "unigram_kl": torch.ones_like(distance)}
        return PerTextResults(masks, by_size | {"recovered": recovered} | known)

    subgraphs = kept.transpose(0, 1)[None]
    half = (1 + distance) / 2
    kinds = {
        "learned": results(subgraphs, distance),
        "random-matched": results(subgraphs, half),
        "norm": results(subgraphs, half),
        "inverse": results(~subgraphs, 1 - distance),
    }
    config = {"model": {"scope": "input"}}
    mask = ml.Mask(
        kept, torch.zeros(n, 1, GRAPH.n_nodes), torch.tensor(list(sizes)), GRAPH, ModelId("a model", None, fingerprint),
        tuple(map(str, range(n))), config=config, positions="random",
    )  # fmt: skip
    defaults = {
        "names": [str(i) for i in range(n)],
        "contexts": [f"text {i}" for i in range(n)],
        "lengths": [float(i % 5) for i in range(n)],
        "group_index": list(range(n)),
        "source": "a file",
        "tokens": [f" word{i}" for i in range(n)],
    }
    return MaskMeasurements(name=name, mask=mask, results=kinds, **defaults | others)


def falling(n: int) -> list[list[float]]:
    """TVs, at `SIZES`, of inputs with growing density."""
    return [[0.9, 0.5 + 0.4 * i / n, 0.1 + 0.5 * i / n, 0.02 + 0.3 * i / n] for i in range(n)]
