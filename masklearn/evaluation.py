"""Masks x text x metrics to one tidy table: the one path by which every reported number is made."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from masklearn.artifact import Mask
from masklearn.baselines import random_masks
from masklearn.data import Batch
from masklearn.masked_lm import MaskedLM
from masklearn.metrics import SubgraphMetrics
from masklearn.objective import chunks, log_probabilities

N_RANDOM = 10
"""Random subgraphs of each size that a learned one is held against."""
AT_ONCE = 8
"""Masks that share a forward."""

Row = dict[str, Any]


@torch.no_grad()
def measure(masked_lm: MaskedLM, masks: Tensor, batches: Iterable[Batch]) -> list[Row]:
    """Metrics of discrete subgraphs on some text.

    Args:
        masked_lm: The model, with the ablation to evaluate under.
        masks: One subgraph each, boolean, shape (K, nodes).
        batches: The text.

    Returns:
        One row of metrics per mask; their meaning is `SubgraphMetrics`'s. None stands for what is not defined: a
        cross-entropy where no text goes on after a scored position.
    """
    meters: list[SubgraphMetrics] = []
    for batch in (batch.to(masked_lm.device) for batch in batches):
        full = masked_lm.full(batch.input_ids, batch.scored)
        labels = torch.where(batch.real, batch.input_ids, -1).roll(-1, 1)
        labels[:, -1] = -1
        for i, part in enumerate(masks.split(AT_ONCE)):
            if i == len(meters):
                meters.append(SubgraphMetrics(len(part)).to(masks.device))
            gates = part.float()[:, None].expand(-1, len(batch.input_ids), -1)
            masked = masked_lm(batch.input_ids, batch.scored, gates)
            for piece in chunks(full, len(part), masked_lm.head):
                meters[i].update(
                    log_probabilities(full[piece], masked_lm.head),
                    log_probabilities(masked[:, piece], masked_lm.head),
                    labels[batch.scored][piece],
                )
    columns: dict[str, list[float | None]] = {}
    for meter in meters:
        for name, values in meter.compute().items():
            known = (None if math.isnan(value) else value for value in values.reshape(-1).tolist())
            columns.setdefault(name, []).extend(known)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def evaluate(masked_lm: MaskedLM, mask: Mask, batches: Iterable[Batch]) -> list[Row]:
    """The table of a bank: for every size its metrics, its nodes, and random subgraphs of that size as a control."""
    random = random_masks(N_RANDOM, mask.sizes, mask.graph.n_nodes)
    stacked = torch.cat([mask.mask[:1], random]).flatten(0, 1).to(masked_lm.device)
    measured = measure(masked_lm, stacked, batches)
    n_sizes = len(mask.sizes)
    heads, mlps = mask.graph.count(mask.mask[0])
    return [
        {
            "s": s,
            "fraction": s / mask.graph.n_nodes,
            **measured[i],
            "heads": int(heads[i]),
            "mlps": int(mlps[i]),
            "controls": {"random": _spread(measured[n_sizes + i :: n_sizes])},
        }
        for i, s in enumerate(mask.sizes.tolist())
    ]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _spread(rows: list[Row]) -> dict[str, float]:
    """Mean and standard deviation over some subgraphs of the same size."""
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in ("kl", "tv", "top1")}
    spread = {
        f"{name}_{of}": float(getattr(values, of)()) for name, values in columns.items() for of in ("mean", "std")
    }
    return {"n": len(rows), **spread}


def describe(mask: Mask, rows: list[Row]) -> dict[str, Any]:
    """What `metrics.json` says of a bank."""
    graph = mask.graph
    return {
        "model": vars(mask.model) | {"n_nodes": graph.n_nodes, "n_layers": graph.n_layers, "n_heads": graph.n_heads},
        "data": mask.config.get("data", {}),
        "sizes": rows,
    }


def table(rows: list[Row]) -> str:
    """The rows as a person would read them."""
    columns = {
        "s": lambda r: f"{r['s']}",
        "of all": lambda r: f"{r['fraction']:.0%}",
        "heads": lambda r: f"{r['heads']}",
        "mlps": lambda r: f"{r['mlps']}",
        "KL": lambda r: f"{r['kl']:.3f}",
        "random KL": lambda r: "{kl_mean:.2f} ± {kl_std:.2f}".format(**r["controls"]["random"]),
        "TV": lambda r: f"{r['tv']:.3f}",
        "JS": lambda r: f"{r['js']:.3f}",
        "top-1": lambda r: f"{r['top1']:.1%}",
        "nucleus": lambda r: f"{r['nucleus_median']:.0f}%",
        "CE": lambda r: _shown(r["cross_entropy"]),
        "full CE": lambda r: _shown(r["full_cross_entropy"]),
    }
    cells = [list(columns), *([show(row) for show in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)
