"""Masks x text x metrics to one tidy table: the one path by which every reported number is made."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from masklearn.artifact import Mask
from masklearn.baselines import CONTROLS, Baseline, subgraphs
from masklearn.data import Batch
from masklearn.judge import Judge
from masklearn.masked_lm import MaskedLM
from masklearn.metrics import SubgraphMetrics
from masklearn.objective import chunks, log_probabilities

AT_ONCE = 8
"""Masks that share a forward."""

Row = dict[str, Any]


@torch.no_grad()
def measure(masked_lm: MaskedLM, masks: Tensor, batches: Iterable[Batch]) -> tuple[list[Row], Tensor]:
    """Metrics of discrete subgraphs on some text.

    Args:
        masked_lm: The model, with the ablation to evaluate under.
        masks: Boolean, shape (K, groups, nodes): K subgraphs for the texts of every group; of one group, for all texts.
        batches: The text.

    Returns:
        One row of metrics for each k, over all texts alike; their meaning is `SubgraphMetrics`'s. None stands for what
        is not defined: a cross-entropy where no text goes on after a scored position. And the KL and the TV distance
        of every group on its own, shape (2, K, groups).
    """
    meters: list[SubgraphMetrics] = []
    masks = masks.to(masked_lm.device)
    for batch in (batch.to(masked_lm.device) for batch in batches):
        full = masked_lm.full(batch.input_ids, batch.scored)
        labels = torch.where(batch.real, batch.input_ids, -1).roll(-1, 1)
        labels[:, -1] = -1
        slot = batch.group if masks.shape[1] > 1 else torch.zeros_like(batch.group)
        whose = slot.repeat_interleave(batch.scored.sum(1))
        for i, begin in enumerate(range(0, len(masks), AT_ONCE)):
            part = slice(begin, begin + AT_ONCE)
            masked = masked_lm(batch.input_ids, batch.scored, masks[part, slot].float())
            if i == len(meters):
                meters.append(SubgraphMetrics(len(masked), masks.shape[1]).to(masks.device))
            for piece in chunks(full, len(masked), masked_lm.head):
                meters[i].update(
                    log_probabilities(full[piece], masked_lm.head),
                    log_probabilities(masked[:, piece], masked_lm.head),
                    labels[batch.scored][piece],
                    whose[piece],
                )
    columns: dict[str, list[float | None]] = {}
    by_group: dict[str, list[Tensor]] = {"kl_by_group": [], "tv_by_group": []}
    for meter in meters:
        found = meter.compute()
        for name, parts in by_group.items():
            parts.append(found.pop(name))
        for name, values in found.items():
            known = (None if math.isnan(value) else value for value in values.reshape(-1).tolist())
            columns.setdefault(name, []).extend(known)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return rows, torch.stack([torch.cat(parts) for parts in by_group.values()])


def evaluate(
    masked_lm: MaskedLM,
    mask: Mask,
    batches: Iterable[Batch],
    baselines: Sequence[Baseline] = CONTROLS,
    judge: Judge | None = None,
) -> tuple[list[Row], Tensor]:
    """The table of a bank: for every size its metrics, its nodes, and subgraphs of that size chosen in other ways.

    Args:
        masked_lm: The model, with the ablation to evaluate under.
        mask: The bank.
        batches: The text to report on.
        baselines: Names of the other ways, see `baselines`.
        judge: By which they choose, on the text that masks are learned on; controls need none.

    Returns:
        One row for each size, over the texts of all groups, each under its own masks; and the KL and TV of every
        group, shape (2, sizes, groups).
    """
    mask.check()
    chosen = {name: subgraphs(name, mask, judge) for name in baselines}
    measured, own = measure(masked_lm, mask.mask.transpose(0, 1), batches)
    others = {name: measure(masked_lm, masks.flatten(0, 1), batches)[0] for name, masks in chosen.items()}
    heads, mlps = (count.float().mean(0) for count in mask.graph.count(mask.mask))
    rows = [
        {
            "s": s,
            "fraction": s / mask.graph.n_nodes,
            **measured[i],
            "heads": _number(heads[i]),
            "mlps": _number(mlps[i]),
            "controls": {name: _spread(found[i :: len(mask.sizes)]) for name, found in others.items()},
        }
        for i, s in enumerate(mask.sizes.tolist())
    ]
    return rows, own


def _number(mean: Tensor) -> int | float:
    """A mean over groups; of a single group, a count."""
    value = float(mean)
    return int(value) if value.is_integer() else value


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _control(name: str, row: Row) -> str:
    found = row["controls"][name]
    return "{kl_mean:.2f} ± {kl_std:.2f}".format(**found) if "n" in found else f"{found['kl']:.3f}"


def _spread(rows: list[Row]) -> dict[str, float]:
    """Mean and standard deviation over some subgraphs of the same size; of a single one, its figures."""
    if len(rows) == 1:
        return {name: rows[0][name] for name in ("kl", "tv", "top1")}
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in ("kl", "tv", "top1")}
    spread = {
        f"{name}_{of}": float(getattr(values, of)()) for name, values in columns.items() for of in ("mean", "std")
    }
    return {"n": len(rows), **spread}


def describe(mask: Mask, rows: list[Row], own: Tensor) -> dict[str, Any]:
    """What `metrics.json` says of a bank: `evaluate`'s rows, and where there are groups, the KL and TV of each."""
    graph = mask.graph
    described = {
        "model": vars(mask.model) | {"n_nodes": graph.n_nodes, "n_layers": graph.n_layers, "n_heads": graph.n_heads},
        "data": mask.config.get("data", {}),
        "sizes": rows,
    }
    if len(mask.groups) > 1:
        by_group = own.permute(2, 0, 1).tolist()
        described["groups"] = {name: {"kl": kl, "tv": tv} for name, (kl, tv) in zip(mask.groups, by_group, strict=True)}
    return described


def table(rows: list[Row]) -> str:
    """The rows as a person would read them."""
    columns: dict[str, Callable[[Row], str]] = {
        "s": lambda r: f"{r['s']}",
        "of all": lambda r: f"{r['fraction']:.0%}",
        "heads": lambda r: f"{r['heads']:.3g}",
        "mlps": lambda r: f"{r['mlps']:.3g}",
        "KL": lambda r: f"{r['kl']:.3f}",
        **{f"{name} KL": partial(_control, name) for name in rows[0]["controls"]},
        "TV": lambda r: f"{r['tv']:.3f}",
        "JS": lambda r: f"{r['js']:.3f}",
        "top-1": lambda r: f"{r['top1']:.1%}",
        "nucleus": lambda r: f"{r['nucleus_median']:.0f}%",
        "CE": lambda r: _shown(r["cross_entropy"]),
        "full CE": lambda r: _shown(r["full_cross_entropy"]),
    }
    return _aligned([list(columns), *([show(row) for show in columns.values()] for row in rows)])


def stages_table(rows: list[Row]) -> str:
    """What cutting cost and what polish brought back, as a person would read it; rows are a learner's `stages`."""
    header, *_ = [["s", *(f"{name} KL" for name in row if name != "s")] for row in rows]
    return _aligned([header, *([f"{v:.3f}" if name != "s" else f"{v}" for name, v in row.items()] for row in rows)])


def _aligned(cells: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)
