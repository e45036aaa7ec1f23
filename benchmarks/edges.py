"""s-Trace on the edge graph: TV of its subgraphs and of controls, what they keep, its seconds and its memory."""

import resource
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import auto_cli
from setting import Setting, quiet_trainer
from timing import machine, now, write_results
from torch import Tensor

from masklearn.edges import (
    EdgeGraph,
    EdgeLM,
    Importance,
    edge_counts,
    grow,
    importance,
    inverse,
    nucleus,
    random_connected,
    refilled,
    shares_by_kind,
    verified_edge_lm,
)
from masklearn.evaluation import scored_text
from masklearn.evaluation.edge_report import subgraphs_hidden
from masklearn.evaluation.metrics import tv_distance
from masklearn.models import DTypeName, Layout, load_lm
from masklearn.objective import log_probabilities

TAUS = (0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
"""Shares of importance that the nucleus traversal keeps at every vertex."""


def subgraphs(found: Importance, order: Tensor, counts: Sequence[int], seed: int) -> dict[str, list[Tensor]]:
    """Return the edges of s-Trace and of the controls, size by size."""
    graph = found.graph
    kept = [order[:n] for n in counts]
    return {
        "s-trace": kept,
        "s-trace, live edges": refilled(graph, order[:0], order, counts),
        "attention not gated": [_with_attention(graph, ids) for ids in kept],
        "random": [random_connected(graph, n, seed) for n in counts],
        "random, residuals kept": [random_connected(graph, n, seed, keep_residual=True) for n in counts],
        "inverse": [inverse(graph, ids) for ids in kept],
        "inverse, residuals kept": [inverse(graph, ids, keep_residual=True) for ids in kept],
    }


def _with_attention(graph: EdgeGraph, kept: Tensor) -> Tensor:
    """Return a subgraph with every attention edge: what the paper's released code runs."""
    mask = graph.masks([kept])
    graph.gates(mask).attention[:] = 1
    return (mask[0] > 0).logical_and(graph.exists).nonzero()[:, 0]


def shares_by_layer(graph: EdgeGraph, kept: Tensor) -> Tensor:
    """Return the share of a subgraph's edges in every layer, shape (layers,)."""
    return torch.bincount(kept // graph.places_per_layer, minlength=graph.n_layers) / len(kept)


def measure(edge_lm: EdgeLM, texts: Sequence[Tensor], shares: Sequence[float]) -> dict[str, dict[str, list[Tensor]]]:
    """Measure every text: by quantity and kind of subgraph, a tensor for each text."""
    results: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    unembed = edge_lm.layout.unembed
    for seed, ids in enumerate(texts):
        start = now()
        found = importance(edge_lm, ids)
        counted = now()
        order = grow(found.graph, found.weights, found.graph.n_edges)
        seconds = torch.tensor([counted - start, now() - counted])
        results["seconds"]["importance, growth to all sizes"].append(seconds)
        full = log_probabilities(edge_lm.full(ids)[None], unembed)
        for kind, kept in subgraphs(found, order, edge_counts(shares, found.graph.n_edges), seed).items():
            masked = log_probabilities(
                subgraphs_hidden(partial(edge_lm.hidden, ids), found.graph, kept, edge_lm.device), unembed
            )
            results["tv"][kind].append(tv_distance(full, masked))
            if kind in ("s-trace", "random"):
                of_kinds = torch.stack(list(shares_by_kind(found.graph, kept).values()), dim=1)
                by_layer = torch.stack([shares_by_layer(found.graph, ids) for ids in kept])
                results["attention, MLP, residual"][kind].append(of_kinds)
                results["layers"][kind].append(by_layer)
        sizes = [len(nucleus(found.graph, found.weights, tau)) / found.graph.n_edges for tau in TAUS]
        results["nucleus"]["share of the edges"].append(torch.tensor(sizes))
    return results


def main(
    setting: Setting = Setting(),
    inputs: int = 16,
    tokens: int = 48,
    shares: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0),
    dtype: DTypeName = "float32",
    out: Path | None = None,
) -> None:
    """Run s-Trace and its controls on single texts, and print means over them.

    Args:
        setting: Model and texts.
        inputs: Texts; those of fewer tokens are used too.
        tokens: First tokens of a text, at most; the prediction at the last of them counts.
        shares: Sizes as shares of the edges.
        dtype: Precision of the weights.
        out: JSON file to write.
    """
    quiet_trainer()
    print(machine())
    edge_lm = verified_edge_lm(Layout.of(load_lm(setting.lm, dtype=dtype)))
    data = setting.data(scope="input", positions="last", limit=inputs)
    data.prepare_data()
    data.setup()
    texts = [scored_text(data, "test", index).input_ids[:tokens] for index in range(len(data.parts["test"]))]
    lengths = [len(ids) for ids in texts]
    longest = EdgeGraph.count(edge_lm.n_layers, edge_lm.layout.graph.n_heads, max(lengths), edge_lm.sites.parallel)
    print(f"{setting}: {len(texts)} texts of {min(lengths)} to {max(lengths)} tokens, {longest:,} edges at most")
    found: dict[str, dict[str, list[float]]] = {}
    print(f"shares of the edges: {', '.join(f'{share:g}' for share in shares)}; nucleus of {TAUS}")
    for quantity, by_kind in measure(edge_lm, texts, shares).items():
        found[quantity] = {}
        for kind, values in by_kind.items():
            mean = torch.stack(values).mean(0)
            found[quantity][kind] = mean.tolist()
            rows = mean if mean.dim() == 2 else mean[None]
            print(f"{quantity} {kind}: {'; '.join(' '.join(f'{v:.3f}' for v in row) for row in rows.tolist())}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process, model included: {peak:.2f} GiB")
    write_results({"setting": str(setting), "shares": shares, "peak_gib": peak} | found, out)


if __name__ == "__main__":
    auto_cli(main)
