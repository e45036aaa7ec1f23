"""Rediscovered masks as tables: how far they agree, which nodes they keep, and which are as good as the best."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from masklearn.evidence.bench import Bench
from masklearn.evidence.rediscovery import STABILITY_SOURCES, Rediscoverer, Variant
from masklearn.evidence.stability import NodeKinds, near_optimal, overlap
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
    if not found.masks:
        return {"stability": [], "nodes": [], "near_optimal": []}
    overlaps, nodes, optima = Table(), Table(), Table()
    for g, group in enumerate(bench.mask.groups):
        own, again = bench.scores(
            g, [bench.mask.mask[g], torch.cat([mask.mask[g] for mask in found.masks])], "Rediscovered masks"
        )
        kl_again = again.mean_kl.view(len(found.masks), -1)
        for i, s in enumerate(bench.mask.sizes.tolist()):
            cell = {"group": group, "s": s}
            for source in STABILITY_SOURCES:
                masks, scores = found.of((source,), g, i)
                if len(masks) > 1:
                    chosen = [k for k, variant in enumerate(found.variants) if variant.source == source]
                    kl = kl_again[chosen, i]
                    spread = {"kl_mean": float(kl.mean()), "kl_std": float(kl.std()), "run_kl": float(own.mean_kl[i])}
                    overlaps.append(
                        cell | {"source": source} | asdict(overlap(masks, scores, bench.mask.graph)) | spread
                    )
            masks, _ = found.of(STABILITY_SOURCES, g, i)
            kinds = NodeKinds(masks.float().mean(0))
            nodes += [
                cell | {"node": name, "frequency": float(share), "in_run": bool(kept), "kind": _kind(float(share))}
                for name, share, kept in zip(
                    bench.mask.graph.names, kinds.frequency, bench.mask.mask[g, i], strict=True
                )
            ]
            every = torch.cat([masks, bench.mask.mask[g, i][None]])
            best = near_optimal(every, [*kl_again[:, i].tolist(), float(own.mean_kl[i])])
            optima.append(cell | asdict(best) | {"searched": len(every)})
    return {"stability": overlaps, "nodes": nodes, "near_optimal": optima}


def _kind(frequency: float) -> str:
    return {1.0: "core", 0.0: "never"}.get(frequency, "contingent")
