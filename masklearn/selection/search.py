"""Search for discrete subgraphs from no learned mask: exhaustive, greedy, and local search by swaps.

Every group is searched on its own. The masks found are boolean, of shape (sizes, groups, nodes).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from masklearn.errors import UserError
from masklearn.progress import ProgressBar, no_bar
from masklearn.selection.candidates import best_candidate, best_swap, greedy_swap, replace_if_better, single_flips
from masklearn.selection.scorer import MaskScorer

EXHAUSTIVE_MAX_NODES = 20
"""Nodes up to which exhaustive search is offered: a million subgraphs."""
CANDIDATE_BATCH_SIZE = 4096
"""Candidates that exhaustive search hands to the scorer in one call."""


def exhaustive(scorer: MaskScorer, sizes: Sequence[int], n_nodes: int, bar: ProgressBar = no_bar) -> Tensor:
    """The best of all subgraphs of every size.

    Raises:
        UserError: If there are more than 20 nodes.
    """
    if n_nodes > EXHAUSTIVE_MAX_NODES:
        raise UserError(
            f"exhaustive search tries all subgraphs of up to {EXHAUSTIVE_MAX_NODES} nodes, and the model has {n_nodes}"
        )
    device = scorer.device
    subgraphs = (torch.arange(2**n_nodes, device=device)[:, None] >> torch.arange(n_nodes, device=device)) % 2 == 1
    groups, found = torch.arange(scorer.n_groups, device=device), []
    for size in bar(sizes, "Exhaustive search"):
        mask = torch.zeros(scorer.n_groups, n_nodes, dtype=torch.bool, device=device)
        kl = torch.full((scorer.n_groups,), torch.inf, device=device)
        for chunk in subgraphs[subgraphs.sum(-1) == size].split(CANDIDATE_BATCH_SIZE):
            candidates = chunk[:, None].expand(-1, scorer.n_groups, -1)
            replace_if_better(mask, kl, groups, *best_candidate(scorer, candidates, groups))
        found.append(mask)
    return torch.stack(found)


def greedy(
    scorer: MaskScorer, sizes: Sequence[int], n_nodes: int, forward: bool = False, bar: ProgressBar = no_bar
) -> Tensor:
    """Greedy backward elimination: from all nodes, close the node whose closing leaves the lowest KL, one at a time.

    With `forward`, greedy growth: from no node, open the node that lowers the KL most, one at a time. Elimination down
    to few nodes scores about `n_nodes ** 2 / 2` masks of every group.
    """
    device = scorer.device
    groups = torch.arange(scorer.n_groups, device=device)
    mask = torch.full((scorer.n_groups, n_nodes), not forward, device=device)
    found = {0 if forward else n_nodes: mask}
    visited = range(1, max(sizes) + 1) if forward else range(n_nodes - 1, min(sizes) - 1, -1)
    for size in bar(visited, "Greedy search"):
        mask, _ = best_candidate(scorer, single_flips(mask, not forward), groups)
        found[size] = mask
    return torch.stack([found[size] for size in sizes])


def swap(scorer: MaskScorer, masks: Tensor, bar: ProgressBar = no_bar) -> Tensor:
    """Local search from masks (sizes, groups, nodes) until no swap of two nodes lowers any KL.

    Every round tries a greedy swap. If that does not lower the KL of a group, the best of all swaps is tried.
    """
    masks, kls = masks.clone(), scorer(masks)
    for mask, kl in bar([*zip(masks, kls, strict=True)], "Swap search"):  # views, changed in place
        active = torch.arange(scorer.n_groups if 0 < mask[0].sum() < mask.shape[-1] else 0, device=mask.device)
        while len(active):
            before = kl[active]
            for neighbour in (greedy_swap, best_swap):
                stalled = active[kl[active] >= before]
                if len(stalled):
                    replace_if_better(mask, kl, stalled, *neighbour(scorer, mask[stalled], stalled))
            active = active[kl[active] < before]
    return masks
