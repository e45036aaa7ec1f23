"""Discretisation: from learned gates to masks of exactly `s` nodes, with the KL before and after each stage."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from masklearn.gates import GateBank, open_probability, sample
from masklearn.progress import ProgressBar, no_bar
from masklearn.selection.scorer import MaskScorer

STAGES = ("soft", "sampled", "cut", "polished")
"""Every gate at its probability of being open; gates sampled; only the top `s` nodes open; the masks after polish."""
MIN_KL = 1e-9
"""KL in nats below which restarts count as equally good."""


class Polish(Protocol):
    """`polish.polish` with its settings."""

    def __call__(
        self, scorer: MaskScorer, masks: Tensor, scores: Tensor, *, kl: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """From masks, the scores of their nodes and, if it is known, their KL to better masks and theirs."""
        ...


@dataclass(frozen=True)
class DiscretizedMasks:
    """Discrete masks, and how they came about."""

    mask: Tensor
    """Boolean, shape (groups, sizes, nodes)."""
    scores: Tensor
    """Learned scores of the nodes, shape (groups, sizes or 1, nodes)."""
    kl: Tensor
    """KL at each of the `STAGES` in nats, shape (groups, sizes, stages)."""


def discretize(
    bank: GateBank,
    log_odds: Tensor,
    sizes: Tensor,
    scorer: MaskScorer,
    restarts: int,
    temperature: float,
    polish: Polish | None = None,
    bar: ProgressBar = no_bar,
    n_samples: int = 1,
) -> DiscretizedMasks:
    """Keep the top `s` nodes of every mask, choose the best restart of each, and polish it.

    Args:
        bank: Gates of at least the scorer's groups; the restarts of a group are adjacent.
        log_odds: The bank's log-odds, adjusted to every size by the budget. Shape (groups x restarts, sizes, nodes).
        sizes: Nodes to keep, ascending, shape (sizes,).
        scorer: Scores the groups' masks, on text that no result is reported on.
        restarts: How many times every mask was learned.
        temperature: Temperature of the gates at the end of training (dimensionless).
        polish: Improves the masks; None for no polish.
        bar: Shows the progress before polish.
        n_samples: Gate vectors sampled of every mask for the `sampled` stage; 0 leaves it and `soft` out, as NaN.
    """
    nested = bank.log_odds.shape[1] == 1
    scores = bank.log_odds.detach().expand(-1, len(sizes), -1)
    masks, scores, log_odds = (
        t.unflatten(0, (-1, restarts))[: scorer.n_groups].permute(1, 2, 0, 3)
        for t in (bank.discretize(sizes), scores, log_odds)
    )  # (restarts, sizes, groups, nodes); a last block may have fewer groups than the bank
    best = _best_restart(scorer, masks, nested)[None, ..., None].expand(1, *masks.shape[1:])
    masks, scores, log_odds = (t.gather(0, best)[0] for t in (masks, scores, log_odds))
    cut = scorer(masks)
    kl = [torch.full_like(cut, torch.nan)] * 2
    if n_samples:
        sampled = _sampled_kl(scorer, log_odds, temperature, n_samples, bar)
        kl = [scorer(open_probability(log_odds)), sampled]
    kl.append(cut)
    if polish:
        masks, polished = polish(scorer, masks, scores, kl=cut)
        kl.append(polished)
    else:
        kl.append(kl[-1])
    scores = scores[:1] if nested else scores
    return DiscretizedMasks(masks.transpose(0, 1), scores.transpose(0, 1), torch.stack(kl, -1).transpose(0, 1))


def masks_scored(n_samples: int, restarts: int, n_sizes: int) -> int:
    """How many masks of every group `discretize` scores besides those that polish tries.

    They are those of each stage but the last, and those of every restart if one of several is chosen.
    """
    return n_sizes * (len(STAGES) - 2 + n_samples + (restarts if restarts > 1 else 0))


def repolish(found: DiscretizedMasks, scorer: MaskScorer, polish: Polish | None) -> DiscretizedMasks:
    """Score masks again and polish them, after what closed nodes emit has changed.

    Args:
        found: Masks of all of the scorer's groups. Their scores, and the KL of the stages before polish, stay.
        scorer: Scores the masks under the new ablation, on text that no result is reported on.
        polish: Improves the masks; None for no polish.
    """
    n_sizes = found.mask.shape[1]
    masks, scores = (t.transpose(0, 1).to(scorer.device) for t in (found.mask, found.scores.expand(-1, n_sizes, -1)))
    masks, kl = polish(scorer, masks, scores) if polish else (masks, scorer(masks))
    stages = torch.cat([found.kl[..., :-1], kl.T[..., None].to(found.kl.device)], -1)
    return replace(found, mask=masks.transpose(0, 1).to(found.mask.device), kl=stages)


def _best_restart(scorer: MaskScorer, masks: Tensor, nested: bool) -> Tensor:
    """Index of the restart with the lowest KL, shape (sizes, groups), for masks (restarts, sizes, groups, nodes).

    Nested masks share one restart for all sizes: that with the lowest sum of log KL, in which every size counts alike.
    """
    restarts, n_sizes, n_groups, _ = masks.shape
    if restarts == 1:
        return torch.zeros(n_sizes, n_groups, dtype=torch.long, device=masks.device)
    log_kl = torch.stack([scorer(restart) for restart in masks]).clamp_min(MIN_KL).log()
    return (log_kl.sum(1, keepdim=True).expand_as(log_kl) if nested else log_kl).argmin(0)


def _sampled_kl(scorer: MaskScorer, log_odds: Tensor, temperature: float, n_samples: int, bar: ProgressBar) -> Tensor:
    """Mean KL over sampled gates, shape (sizes, groups); the samples are the same in every call."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.rand(log_odds.shape, generator=generator).to(log_odds.device) for _ in range(n_samples)]
    samples = bar(noise, "Discretisation", brief=True)
    return torch.stack([scorer(sample(log_odds, temperature, uniform)) for uniform in samples]).mean(0)
