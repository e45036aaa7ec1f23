"""Discrete search among subgraphs: elimination, growth, swaps, all there are, and the polish of learned masks.

Candidates are of shape (K, groups, nodes): K for each of some groups, each judged on its own group's texts. Masks that
are found are boolean, of shape (sizes, groups, nodes).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from masklearn.errors import UserError
from masklearn.selection.scorer import MaskScorer

EXHAUSTIVE_MAX_NODES = 20
"""Nodes up to which all subgraphs can be tried."""
CANDIDATES_AT_ONCE = 4096


def exhaustive(scorer: MaskScorer, sizes: Sequence[int], n_nodes: int) -> Tensor:
    """The best subgraph of every size: all of them are tried.

    Raises:
        UserError: If there are more than 20 nodes.
    """
    if n_nodes > EXHAUSTIVE_MAX_NODES:
        raise UserError(
            f"exhaustive search tries all subgraphs of up to {EXHAUSTIVE_MAX_NODES} nodes, and the model has {n_nodes}"
        )
    device = scorer.device
    everything = (torch.arange(2**n_nodes, device=device)[:, None] >> torch.arange(n_nodes, device=device)) % 2 == 1
    groups, found = torch.arange(scorer.n_groups, device=device), []
    for size in sizes:
        mask = torch.zeros(scorer.n_groups, n_nodes, dtype=torch.bool, device=device)
        kl = torch.full((scorer.n_groups,), torch.inf, device=device)
        for some in everything[everything.sum(-1) == size].split(CANDIDATES_AT_ONCE):
            _take(mask, kl, groups, *_best(scorer, some[:, None].expand(-1, scorer.n_groups, -1), groups))
        found.append(mask)
    return torch.stack(found)


def greedy(scorer: MaskScorer, sizes: Sequence[int], n_nodes: int, forward: bool = False) -> Tensor:
    """Greedy elimination, every group on its own: close, node by node, the one that is missed least.

    The classic and costly baseline: about `n_nodes ** 2 / 2` forwards of every text. With `forward`, begin with none
    and open, node by node, the one that helps most.
    """
    device = scorer.device
    groups = torch.arange(scorer.n_groups, device=device)
    kept = torch.full((scorer.n_groups, n_nodes), not forward, device=device)
    found = {0 if forward else n_nodes: kept}
    for size in range(1, max(sizes) + 1) if forward else range(n_nodes - 1, min(sizes) - 1, -1):
        kept, _ = _best(scorer, _toggled(kept, not forward), groups)
        found[size] = kept
    return torch.stack([found[size] for size in sizes])


def swap(scorer: MaskScorer, masks: Tensor) -> Tensor:
    """Local search: swap nodes of masks (sizes, groups, nodes) until no swap of two nodes lowers the KL of any.

    Every round opens the node that helps most and then closes the one that is missed least; all pairs are tried where
    that gains nothing.
    """
    masks, kl = masks.clone(), scorer(masks)
    for mask, value in zip(masks, kl, strict=True):  # views, changed in place
        at_work = torch.arange(scorer.n_groups if 0 < mask[0].sum() < mask.shape[-1] else 0, device=mask.device)
        while len(at_work):
            before = value[at_work]
            for neighbour in (_exchanged, _best_pair):
                stuck = at_work[value[at_work] >= before]
                if len(stuck):
                    _take(mask, value, stuck, *neighbour(scorer, mask[stuck], stuck))
            at_work = at_work[value[at_work] < before]
    return masks


def _exchanged(scorer: MaskScorer, mask: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    grown, _ = _best(scorer, _toggled(mask, False), groups)
    return _best(scorer, _toggled(grown, True), groups)


def _best_pair(scorer: MaskScorer, mask: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    opened, closed = _toggled(mask, False), _toggled(mask, True) | ~mask
    return _best(scorer, (opened[:, None] & closed).flatten(0, 1), groups)


def _toggled(mask: Tensor, state: bool) -> Tensor:
    """The masks with each of their nodes of that state in the other one, shape (K, groups, nodes)."""
    return _each(mask, (mask == state).nonzero()[:, 1].view(len(mask), -1), not state)


def _each(mask: Tensor, nodes: Tensor, state: bool) -> Tensor:
    """The masks with each of some nodes (groups, K) in another state, shape (K, groups, nodes)."""
    return mask.repeat(nodes.shape[1], 1, 1).scatter(-1, nodes.T[..., None], state)


def _best(scorer: MaskScorer, candidates: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The best of the candidates (K, groups, nodes) of every group, and its KL."""
    kl, which = scorer(candidates, groups).min(0)
    return candidates[which, torch.arange(len(which), device=which.device)], kl


def _take(mask: Tensor, kl: Tensor, groups: Tensor, other: Tensor, other_kl: Tensor) -> None:
    """Put other masks in the place of some groups' where they are better, in place."""
    better = other_kl < kl[groups]
    mask[groups[better]], kl[groups[better]] = other[better], other_kl[better]
