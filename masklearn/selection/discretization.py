"""From learned gates to discrete masks: the exact top s, the best of the restarts, the polish, and what each costs."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from masklearn.gates import GateBank, open_probability, sample
from masklearn.selection.polish import StepTracker, all_steps, polish
from masklearn.selection.scorer import MaskScorer

STAGES = ("soft", "sampled", "cut", "polished")
"""Gates at their probability of being open; gates drawn; the top s nodes; those after polish."""
DRAWS = 16
"""Gate vectors drawn over all groups, and at least one of each."""


@dataclass(frozen=True)
class DiscretizedMasks:
    """Masks and the way to them."""

    mask: Tensor
    """Boolean, shape (groups, sizes, nodes)."""
    scores: Tensor
    """What was learned of the nodes, shape (groups, sizes or 1, nodes)."""
    kl: Tensor
    """KL at each of the `STAGES` in nats, shape (groups, sizes, stages)."""


def cut(
    bank: GateBank,
    log_odds: Tensor,
    sizes: Tensor,
    scorer: MaskScorer,
    restarts: int,
    temperature: float,
    rounds: int,
    thorough: bool = False,
    tracker: StepTracker = all_steps,
) -> DiscretizedMasks:
    """The masks of some groups, from the gates that were learned for them.

    Args:
        bank: Gates of at least as many groups as are judged, `restarts` in a row for each.
        log_odds: The bank's log-odds as the budget has them at each size, shape (groups x restarts, sizes, nodes).
        sizes: Nodes to keep, ascending, shape (sizes,).
        judge: Judges the groups, on text that is not reported on.
        restarts: How often every mask was learned.
        temperature: Softness of the gates when learning ended (dimensionless).
        rounds: Rounds of polish at most.
        thorough: See `polish`.
        watch: See `polish`.
    """
    n_groups, n_sizes = scorer.n_groups, len(sizes)
    nested = bank.log_odds.shape[1] == 1
    scores = bank.log_odds.detach().expand(-1, n_sizes, -1)
    masks, scores, log_odds = (
        t.unflatten(0, (-1, restarts))[:n_groups].permute(1, 2, 0, 3)
        for t in (bank.discretize(sizes), scores, log_odds)
    )  # (restarts, sizes, groups, nodes); a last block may leave places empty
    best = torch.zeros(n_sizes, n_groups, dtype=torch.long, device=masks.device)
    if restarts > 1:
        price = torch.stack([scorer(some) for some in masks]).clamp_min(1e-9).log()  # every size counts alike
        best = (price.sum(1, keepdim=True).expand_as(price) if nested else price).argmin(0)
    chosen = best[None, ..., None].expand(1, *masks.shape[1:])
    masks, scores, log_odds = (t.gather(0, chosen)[0] for t in (masks, scores, log_odds))
    kl = [scorer(open_probability(log_odds)), _sampled(scorer, log_odds, temperature), scorer(masks)]
    if rounds:
        masks, polished = polish(scorer, masks, scores, rounds, thorough, tracker)
        kl.append(polished)
    else:
        kl.append(kl[-1])
    scores = scores[:1] if nested else scores
    return DiscretizedMasks(masks.transpose(0, 1), scores.transpose(0, 1), torch.stack(kl, -1).transpose(0, 1))


def repolish(
    found: DiscretizedMasks, scorer: MaskScorer, rounds: int, thorough: bool = False, tracker: StepTracker = all_steps
) -> DiscretizedMasks:
    """The masks of all of a judge's groups, polished once more: what closed nodes emit may be another by now.

    Args:
        found: What was cut; its scores and the KLs before polish stay.
        judge: Judges the groups, on the texts that select.
        rounds: See `polish`.
        thorough: See `polish`.
        watch: See `polish`.
    """
    n_sizes = found.mask.shape[1]
    masks, scores = (t.transpose(0, 1).to(scorer.device) for t in (found.mask, found.scores.expand(-1, n_sizes, -1)))
    masks, kl = polish(scorer, masks, scores, rounds, thorough, tracker)
    stages = torch.cat([found.kl[..., :-1], kl.T[..., None].to(found.kl.device)], -1)
    return replace(found, mask=masks.transpose(0, 1).to(found.mask.device), kl=stages)


def _sampled(scorer: MaskScorer, log_odds: Tensor, temperature: float) -> Tensor:
    """Mean KL over draws of the gates, shape (sizes, groups); the same draws every time."""
    generator = torch.Generator().manual_seed(0)
    draws = -(-DRAWS // scorer.n_groups)
    noise = [torch.rand(log_odds.shape, generator=generator).to(log_odds.device) for _ in range(draws)]
    return torch.stack([scorer(sample(log_odds, temperature, some)) for some in noise]).mean(0)
