"""Neighbourhoods of polish: swaps and resizes that gradients and scores narrow to a few candidates.

Gradients choose which nodes to try to open, scores which nodes to try to close. As in `candidates`, masks have shape
(groups, nodes), one for each of some groups.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from masklearn.selection.candidates import (
    best_candidates,
    best_swap,
    flip_each,
    replace_if_better,
    screened_best,
    shortlist,
)
from masklearn.selection.scorer import MaskScorer

CLOSE_PER_OPEN_NODES = 3
"""Polish tries to close one more node for every three of a mask's, see `SearchWidth`."""


class SearchWidth(NamedTuple):
    """How many candidates a swap has, and when polish leaves a mask alone."""

    n_open_candidates: int
    """Nodes to try to open."""
    n_close_candidates: tuple[int, int]
    """Nodes to try to close: the first number plus a third of the mask's nodes, at most the second number."""
    min_relative_gain: float
    """Share of its KL that a mask must lose by a swap; otherwise it has stalled at this width."""
    kl_tolerance: float
    """KL in nats up to which a mask is good enough to be left alone."""
    n_pair_candidates: int = 0
    """If a swap stalls, every pair of the best nodes to open and the best nodes to close, this many each, is tried."""

    def n_closings(self, size: int) -> int:
        """Nodes of a mask of `size` to try to close."""
        base, most = self.n_close_candidates
        return min(base + size // CLOSE_PER_OPEN_NODES, most)

    def tokens(self, size: int) -> int:
        """Tokens that a swap of a mask of `size` scores at most for each token of the texts, without pairs."""
        return 3 + self.n_open_candidates + self.n_closings(size + 1)  # a gradient counts three


def swap_until_stalled(
    scorer: MaskScorer, mask: Tensor, kl: Tensor, scores: Tensor, groups: Tensor, rounds: int, width: SearchWidth
) -> None:
    """Swap nodes in the masks of some groups, in place, up to `rounds` times, until they stall.

    Args:
        scorer: Scores the masks.
        mask: Masks of all groups, shape (all groups, nodes); all of one size.
        kl: Their KL, shape (all groups,).
        scores: High for nodes to keep, same shape as the masks.
        groups: Indices of the groups to work on.
        rounds: Swaps of a mask, at most.
        width: How many candidates a swap has.
    """
    for _ in range(0 if mask[0].all() else rounds):
        groups = groups[kl[groups] > width.kl_tolerance]
        groups = _swap_once(scorer, mask, kl, scores, groups, width)


def _swap_once(
    scorer: MaskScorer, mask: Tensor, kl: Tensor, scores: Tensor, groups: Tensor, width: SearchWidth
) -> Tensor:
    """One swap in the masks of some groups, in place. Returns the groups that gained enough."""
    threshold = kl[groups] * (1 - width.min_relative_gain)
    stalled = groups
    for neighbour in (guided_swap, pair_swap) if width.n_pair_candidates else (guided_swap,):
        if len(stalled):
            replace_if_better(mask, kl, stalled, *neighbour(scorer, mask[stalled], scores[stalled], stalled, width))
        stalled = groups[kl[groups] >= threshold]
    return groups[kl[groups] < threshold]


def guided_swap(
    scorer: MaskScorer, mask: Tensor, scores: Tensor, groups: Tensor, width: SearchWidth
) -> tuple[Tensor, Tensor]:
    """The masks after opening the best candidate and then closing the best candidate, and their KL."""
    grown, _ = screened_best(scorer, openings(scorer, mask, groups, 1, width), groups)
    return screened_best(scorer, closings(grown, scores, 1, width), groups)


def pair_swap(
    scorer: MaskScorer, mask: Tensor, scores: Tensor, groups: Tensor, width: SearchWidth
) -> tuple[Tensor, Tensor]:
    """The masks after the best swap among pairs from two shortlists, and their KL.

    The shortlists hold the nodes that are best to open and those that are best to close. If they cover all pairs, only
    two swaps at once can do better: one more is made from the best swap, even if that raised the KL.
    """
    size, n = int(mask[0].sum()), width.n_pair_candidates
    if size * (mask.shape[-1] - size) <= n**2:
        other, kl = best_swap(scorer, mask, groups)
        every = torch.arange(len(kl), device=kl.device)
        replace_if_better(other, kl, every, *best_swap(scorer, other, groups))
        return other, kl
    opened, closed = (
        best_candidates(scorer, shortlist(scorer, candidates, groups, n), groups, n)
        for candidates in (openings(scorer, mask, groups, 1, width), closings(mask, scores, 1, width))
    )
    return screened_best(scorer, (opened[:, None] & (closed | ~mask)).flatten(0, 1), groups)


def resize(
    scorer: MaskScorer, mask: Tensor, scores: Tensor, groups: Tensor, size: int, divisor: int, width: SearchWidth
) -> tuple[Tensor, Tensor]:
    """The masks grown or shrunk to another size, and their KL.

    At every step the mask gains or loses one node for every `divisor` that it has, and at least one.
    """
    kl = torch.empty(0)
    while size != (current := int(mask[0].sum())):
        step = min(abs(size - current), max(1, current // divisor))
        if size > current:
            candidates = openings(scorer, mask, groups, step, width)
        else:
            # Scores say little next to the full model: a first node that is closed alone is chosen among all.
            candidates = closings(mask, scores, step, width, every=step == 1 and bool(mask[0].all()))
        mask, kl = screened_best(scorer, candidates, groups)
    return mask, kl


def openings(scorer: MaskScorer, mask: Tensor, groups: Tensor, step: int, width: SearchWidth) -> Tensor:
    """Candidates with `step` more nodes: those with the lowest gradient; candidates differ in the last node."""
    gradient, n_closed = scorer.gradient(mask, groups), int((~mask[0]).sum())
    order = gradient.masked_fill(mask, torch.inf).argsort(-1)
    mask = mask.scatter(-1, order[:, : step - 1], True)
    return flip_each(mask, order[:, step - 1 : n_closed][:, : width.n_open_candidates], True)


def closings(mask: Tensor, scores: Tensor, step: int, width: SearchWidth, every: bool = False) -> Tensor:
    """Candidates with `step` fewer nodes: those with the lowest scores; candidates differ in the last node.

    With `every`, each node that is left is a candidate for the last one.
    """
    order, size = scores.masked_fill(~mask, torch.inf).argsort(-1), int(mask[0].sum())
    mask = mask.scatter(-1, order[:, : step - 1], False)
    n_candidates = size if every else width.n_closings(size)
    return flip_each(mask, order[:, step - 1 : size][:, :n_candidates], False)
