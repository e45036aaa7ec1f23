"""From learned gates to discrete masks: the exact top s, the best of the restarts, and the polish."""

import torch
from torch import Tensor

from masklearn.gates import GateBank
from masklearn.judge import Judge
from masklearn.search import polish


def cut(
    bank: GateBank, sizes: Tensor, judge: Judge, restarts: int, worth: Tensor | None, rounds: int
) -> tuple[Tensor, Tensor]:
    """The masks of some groups, from the gates that were learned for them.

    Args:
        bank: Gates of at least as many groups as are judged, `restarts` in a row for each.
        sizes: Nodes to keep, ascending, shape (sizes,).
        judge: Judges the groups, on text that is not reported on.
        restarts: How often every mask was learned.
        worth: What nodes were thought to be worth before learning, shape (groups, nodes), if anything was.
        rounds: Rounds of polish at most.

    Returns:
        Boolean masks (groups, sizes, nodes), and the learned scores (groups, sizes or 1, nodes).
    """
    n_groups, n_sizes = judge.n_groups, len(sizes)
    nested = bank.log_odds.shape[1] == 1
    scores = bank.log_odds.detach().expand(-1, n_sizes, -1)
    masks, scores = (
        t.unflatten(0, (-1, restarts))[:n_groups].permute(1, 2, 0, 3) for t in (bank.discretize(sizes), scores)
    )  # (restarts, sizes, groups, nodes); a last block may leave places empty
    best = torch.zeros(n_sizes, n_groups, dtype=torch.long, device=masks.device)
    if restarts > 1:
        price = torch.stack([judge(some) for some in masks]).clamp_min(1e-9).log()  # every size counts alike
        best = (price.sum(1, keepdim=True).expand_as(price) if nested else price).argmin(0)
    chosen = best[None, ..., None].expand(1, *masks.shape[1:])
    masks, scores = masks.gather(0, chosen)[0], scores.gather(0, chosen)[0]
    if rounds:
        masks, _ = polish(judge, masks, scores if worth is None else _rank(scores) + _rank(worth), rounds)
    return masks.transpose(0, 1), (scores[:1] if nested else scores).transpose(0, 1)


def _rank(scores: Tensor) -> Tensor:
    return scores.argsort(-1).argsort(-1).float()
