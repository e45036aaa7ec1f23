"""Candidate masks: flip nodes of a mask, score the results, keep the best.

Masks are boolean, of shape (groups, nodes), one for each of some groups. Candidates have shape (K, groups, nodes): K
for every group, each scored on the texts of its own group.
"""

import torch
from torch import Tensor

from masklearn.selection.scorer import MaskScorer

SHORTLIST_DIVISOR, SHORTLIST_MIN = 4, 4
"""Screening on the subsample leaves one candidate in four, and at least four, to be scored on all texts."""


def flip_each(mask: Tensor, nodes: Tensor, state: bool) -> Tensor:
    """The masks with one node set to a state, for each of K nodes (groups, K). Shape (K, groups, nodes)."""
    return mask.repeat(nodes.shape[1], 1, 1).scatter(-1, nodes.T[..., None], state)


def single_flips(mask: Tensor, state: bool) -> Tensor:
    """The masks with one node of a state flipped, for each such node. Shape (K, groups, nodes)."""
    return flip_each(mask, (mask == state).nonzero()[:, 1].view(len(mask), -1), not state)


def best_candidate(scorer: MaskScorer, candidates: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The candidate with the lowest KL for every group (groups, nodes), and that KL (groups,)."""
    kl, best = scorer(candidates, groups).min(0)
    return candidates[best, torch.arange(len(best), device=best.device)], kl


def best_candidates(scorer: MaskScorer, candidates: Tensor, groups: Tensor, n: int) -> Tensor:
    """The `n` candidates with the lowest KL for every group, best first. Shape (n, groups, nodes)."""
    order = scorer(candidates, groups).argsort(0)[:n]
    return candidates.gather(0, order[..., None].expand(-1, -1, candidates.shape[-1]))


def best_swap(scorer: MaskScorer, mask: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The masks after the best of all swaps of a closed node for an open one, and their KL."""
    opened, closed = single_flips(mask, False), single_flips(mask, True) | ~mask
    return best_candidate(scorer, (opened[:, None] & closed).flatten(0, 1), groups)


def greedy_swap(scorer: MaskScorer, mask: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The masks after opening the best node and then closing the best node, and their KL."""
    grown, _ = best_candidate(scorer, single_flips(mask, False), groups)
    return best_candidate(scorer, single_flips(grown, True), groups)


def shortlist(scorer: MaskScorer, candidates: Tensor, groups: Tensor, n: int = 1) -> Tensor:
    """The candidates that do best on the subsample, at least twice the `n` to be chosen; all if it does not exist."""
    n_kept = max(2 * n, SHORTLIST_MIN, -(-len(candidates) // SHORTLIST_DIVISOR))
    if scorer.subsample is None or len(candidates) <= n_kept + 1:
        return candidates
    return best_candidates(scorer.subsample, candidates, groups, n_kept)


def screened_best(scorer: MaskScorer, candidates: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """As `best_candidate`, but only candidates that make the `shortlist` are scored on all texts."""
    return best_candidate(scorer, shortlist(scorer, candidates, groups), groups)


def replace_if_better(mask: Tensor, kl: Tensor, groups: Tensor, other: Tensor, other_kl: Tensor) -> None:
    """Replace the masks and KLs of some groups by others of lower KL, in place.

    Args:
        mask: Masks of all groups, shape (all groups, nodes).
        kl: Their KL, shape (all groups,).
        groups: Indices of the groups that the others belong to.
        other: Shape (groups, nodes).
        other_kl: Shape (groups,).
    """
    better = other_kl < kl[groups]
    mask[groups[better]], kl[groups[better]] = other[better], other_kl[better]
