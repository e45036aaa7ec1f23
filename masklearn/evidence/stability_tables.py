"""Rediscovered masks as tables: how far they agree, which nodes they keep, and which are as good as the best."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from masklearn.evidence.bench import Bench
from masklearn.evidence.rediscovery import STABILITY_SOURCES, Rediscoverer, Variant
from masklearn.evidence.stability import near_optimal, overlap, rivals
from masklearn.mask_file import Mask

Table = list[dict[str, Any]]
"""Rows of a table, by column."""


@dataclass(frozen=True)
class Rediscovered:
    """Masks that were learned again, with the variant of each."""

    variants: list[Variant]
    masks: list[Mask]

    def of(self, sources: tuple[str, ...], group: int, size: int) -> tuple[Tensor, Tensor]:
        """Masks and scores of some sources, each of shape (masks, nodes)."""
        chosen = [m for v, m in zip(self.variants, self.masks, strict=True) if v.source in sources]
        masks = [mask.mask[group, size] for mask in chosen]
        scores = [mask.scores[group, min(size, mask.scores.shape[1] - 1)] for mask in chosen]
        return (torch.stack(masks), torch.stack(scores)) if chosen else (torch.zeros(0, 0), torch.zeros(0, 0))


def rediscover(rediscoverer: Rediscoverer, variants: list[Variant]) -> Rediscovered:
    """Learn all variants, or find them in the folder."""
    masks = [rediscoverer.find(variant) for variant in rediscoverer.bar(variants, "Rediscovery")]
    return Rediscovered(variants, masks)


def stability_tables(bench: Bench, found: Rediscovered) -> dict[str, Table]:
    """Overlaps by source of variation, how often every node is kept, and the near-optimal masks."""
    tables: dict[str, Table] = {"stability": [], "nodes": [], "near_optimal": []}
    if not found.masks:
        return tables
    for g, group in enumerate(bench.mask.groups):
        own, again = bench.scores(
            g, [bench.mask.mask[g], torch.cat([mask.mask[g] for mask in found.masks])], "Rediscovered masks"
        )
        kl_again = again.mean_kl.view(len(found.masks), -1)
        for i, s in enumerate(bench.mask.sizes.tolist()):
            cell, kl, run_kl = {"group": group, "s": s}, kl_again[:, i], float(own.mean_kl[i])
            rows = {
                "stability": _overlap_rows(bench.mask, found, (g, i), kl, run_kl),
                "nodes": _node_rows(bench.mask, found, (g, i)),
                "near_optimal": [_near_optimal_row(bench.mask, found, (g, i), kl, run_kl)],
            }
            for name, table in rows.items():
                tables[name] += [cell | row for row in table]
    return tables


def _overlap_rows(run: Mask, found: Rediscovered, cell: tuple[int, int], kl: Tensor, run_kl: float) -> Table:
    """For each source, how far its masks agree with each other and, as columns `run_*`, with the run's mask."""
    (group, size), rows = cell, Table()
    run_scores = run.scores[group, min(size, run.scores.shape[1] - 1)]
    for source in STABILITY_SOURCES:
        masks, scores = found.of((source,), group, size)
        if not len(masks):
            continue
        of_source = kl[[k for k, variant in enumerate(found.variants) if variant.source == source]]
        with_run = overlap(
            torch.cat([run.mask[group, size][None], masks]), torch.cat([run_scores[None], scores]), run.graph, True
        )
        rows.append({
            "source": source, **asdict(overlap(masks, scores, run.graph)),
            "kl_mean": float(of_source.mean()),
            "kl_std": float(of_source.std()) if len(masks) > 1 else float("nan"),
            "run_kl": run_kl,
            **{f"run_{name}": value for name, value in asdict(with_run).items() if name != "n"},
        })  # fmt: skip
    return rows


def _node_rows(run: Mask, found: Rediscovered, cell: tuple[int, int]) -> Table:
    """How often every node is kept."""
    masks, _ = found.of(STABILITY_SOURCES, *cell)
    frequency = masks.float().mean(0).tolist()
    return [
        {"node": name, "frequency": share, "in_run": kept, "kind": _kind(share)}
        for name, share, kept in zip(run.graph.names, frequency, run.mask[cell].tolist(), strict=True)
    ]


def _near_optimal_row(
    run: Mask, found: Rediscovered, cell: tuple[int, int], kl: Tensor, run_kl: float
) -> dict[str, Any]:
    """The masks near the lowest KL, and the rediscoveries that do as well as the run's mask."""
    masks, _ = found.of(STABILITY_SOURCES, *cell)
    every = torch.cat([masks, run.mask[cell][None]])
    best = near_optimal(every, [*kl.tolist(), run_kl])
    as_good = rivals(run.mask[cell], run_kl, masks, kl)
    return asdict(best) | {"searched": len(every), "run_kl": run_kl} | asdict(as_good)


def _kind(frequency: float) -> str:
    return {1.0: "core", 0.0: "never"}.get(frequency, "contingent")
