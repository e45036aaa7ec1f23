"""Polish: local search by swaps from learned masks, sizes kept."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from masklearn.selection.scorer import MaskScorer
from masklearn.selection.search import _best, _best_pair, _each, _take


class SearchWidth(NamedTuple):
    """How far polish looks in a round of swaps.

    Args:
        additions: Nodes to try to open.
        removals: Nodes to try to close: so many and one more for every three of a mask's, up to a most; any of all
            nodes.
        gain: Share of its KL that a mask must lose in a round to be worth another.
        enough: Nats below which a mask is not worth it at all.
        crossed: Where that gains too little, so many of the nodes that help most when opened and so many of those
            missed least when closed are tried with each other; if there are no more pairs, all, and a step beyond.
    """

    additions: int
    removals: tuple[int, int]
    gain: float
    enough: float
    crossed: int = 0


FAST, DEFAULT = SearchWidth(3, (4, 8), 0.1, 1e-5), SearchWidth(3, (4, 12), 0.1, 1e-5)
BROAD, THOROUGH = SearchWidth(10, (20, 20), 0.05, 1e-4), SearchWidth(10, (50, 50), 0.05, 0.0, 8)
"""Means over many groups are made of the few masks whose KL is high: in large graphs only those are worth more than
the lean one."""
LARGE_GRAPH_NODES = 100
"""Nodes from which on greedy elimination, which costs half their square, leaves time for a wide polish as well."""
RESIZE_DIVISOR, LARGE_GRAPH_RESIZE_DIVISOR = 2, 4
"""On the way to the next size a mask gains or loses at most one node for so many of its own at once."""
SHORTLIST_DIVISOR, SHORTLIST_MIN = 4, 4
"""Where groups have many texts, one candidate of so many is judged by all of them, and at least so many are: the best
at a glimpse."""
MAX_KL_RATIO = 2.0
"""A mask whose KL is up to so many times another's may become better by swaps."""
Step = tuple[int, int]
"""The place of a size that polish takes up, and of the one it is held against."""
StepTracker = Callable[[Sequence[Step], Tensor, Tensor], Iterable[Step]]
"""Passes on the steps of a polish, as a progress bar does. It sees the masks and their KL, which steps change in place,
and so can keep them after each, and leave steps out that it has kept what comes of."""


def all_steps(steps: Sequence[Step], masks: Tensor, kl: Tensor) -> Sequence[Step]:
    """All steps."""
    return steps


def polish(
    scorer: MaskScorer,
    masks: Tensor,
    scores: Tensor,
    rounds: int,
    thorough: bool = False,
    tracker: StepTracker = all_steps,
) -> tuple[Tensor, Tensor]:
    """Swap nodes of every mask as long as that lowers its KL; sizes stay what they are.

    From the largest size down to the smallest, each mask is held against the polished mask of the next larger size made
    smaller; then the way back, from the smallest size up, against the mask of the next smaller size made larger. The
    better one is polished, or if `thorough`, both are, and the better one stays. Nodes are opened where the gradient
    favours it, and closed where the score is low; of those first in line a few are tried, and the best is taken, where
    groups have many texts after a race on some of them. A round of swaps opens one node and closes another; a mask is
    done when that gains little. In large graphs a mask whose KL is still high then has more nodes to choose from, and
    the way back begins with none. If `thorough`, it does in all graphs, and the way down begins with all nodes; there
    are more nodes to choose from on the way to another size, which is gone node by node but in large graphs, and at the
    end, where a few to open and a few to close are tried with each other as well. Each is polished on its own, so
    nested masks may cease to be nested.

    Args:
        judge: Says what is better.
        masks: Boolean, shape (sizes, groups, nodes), sizes ascending.
        scores: What nodes are worth, as far as is known; same shape.
        rounds: Swaps to make in a mask at a time, at most, and as many with more nodes to choose from.
        thorough: Whether to polish also what does not look better yet.
        watch: Follows its steps.

    Returns:
        The masks and their KL, shapes (sizes, groups, nodes) and (sizes, groups).
    """
    masks, kl = masks.clone(), scorer(masks)
    all_groups, last = torch.arange(scorer.n_groups, device=masks.device), len(masks) - 1
    many = masks.shape[-1] >= LARGE_GRAPH_NODES
    stride = LARGE_GRAPH_RESIZE_DIVISOR if many else masks.shape[-1] if thorough else RESIZE_DIVISOR
    reaches = (FAST, BROAD) if many and not thorough else (DEFAULT,)
    from_all = thorough and not masks[last, 0].all()
    none, every = torch.zeros_like(masks[0]), torch.ones_like(masks[0])
    for i, neighbour in tracker(_order(len(masks), thorough, from_all, many or thorough), masks, kl):
        if neighbour == i:
            _swap_some(scorer, masks[i], kl[i], scores[i], all_groups, rounds, *reaches)
            continue
        on_the_way_back, from_none = neighbour < i, neighbour < 0
        start = none if from_none else every if neighbour > last else masks[neighbour]
        look = THOROUGH if thorough else BROAD if from_none else reaches[0]
        worth = all_groups[kl[i] > look.enough]
        if not len(worth):
            continue
        other, other_kl = masks[i].clone(), kl[i].clone()
        resized = _resized(scorer, start[worth], scores[i][worth], worth, int(masks[i, 0].sum()), stride, look)
        other[worth], other_kl[worth] = resized
        if thorough:
            promising = all_groups[other_kl < MAX_KL_RATIO * kl[i]]
            _swap_some(scorer, other, other_kl, scores[i], promising, rounds, *reaches)
        better = other_kl < kl[i]
        _take(masks[i], kl[i], all_groups, other, other_kl)
        if thorough and on_the_way_back:
            _swap_some(scorer, masks[i], kl[i], scores[i], all_groups, rounds, THOROUGH)
        elif not thorough:
            some = all_groups[better] if on_the_way_back else all_groups
            _swap_some(scorer, masks[i], kl[i], scores[i], some, rounds, *reaches)
    return masks, kl


def _order(n_sizes: int, each: bool, from_all: bool, from_none: bool) -> list[Step]:
    """The sizes to take up, each with the one it is held against: itself, the next larger, then the next smaller."""
    last = n_sizes - 1
    alone = [(i, i) for i in range(0 if each else last, n_sizes)]
    down = [(i, i + 1) for i in range(last if from_all else last - 1, -1, -1)]
    up = [(i, i - 1) for i in range(0 if from_none else 1, n_sizes)]
    return [*alone, *down, *up]


def _swap_some(
    scorer: MaskScorer, mask: Tensor, kl: Tensor, scores: Tensor, groups: Tensor, rounds: int, *reaches: SearchWidth
) -> None:
    """Up to so many swaps by each reach in the masks of some groups, in place; by the next one where stuck."""
    at = [groups, *[groups[:0]] * (len(reaches) - 1)]
    for _ in range(0 if mask[0].all() else rounds * len(reaches)):
        stuck = groups[:0]
        for i, reach in enumerate(reaches):
            some = torch.cat([at[i], stuck])
            at[i], stuck = _swap_once(scorer, mask, kl, scores, some[kl[some] > reach.enough], reach)


def _swap_once(
    scorer: MaskScorer, mask: Tensor, kl: Tensor, scores: Tensor, groups: Tensor, reach: SearchWidth
) -> tuple[Tensor, Tensor]:
    """One swap in the masks of some groups, in place; the groups that it brought enough, and those that are stuck."""
    enough = kl[groups] * (1 - reach.gain)
    stuck = groups
    for neighbour in (_exchange, _cross) if reach.crossed else (_exchange,):
        if len(stuck):
            _take(mask, kl, stuck, *neighbour(scorer, mask[stuck], scores[stuck], stuck, reach))
        stuck = groups[kl[groups] >= enough]
    return groups[kl[groups] < enough], stuck


def _exchange(
    scorer: MaskScorer, mask: Tensor, scores: Tensor, groups: Tensor, reach: SearchWidth
) -> tuple[Tensor, Tensor]:
    """The masks with the node open that helps most, and then the one closed that is missed least; and their KL."""
    grown, _ = _raced(scorer, _opened(scorer, mask, groups, 1, reach.additions), groups)
    return _raced(scorer, _closed(grown, scores, 1, reach.removals), groups)


def _cross(
    scorer: MaskScorer, mask: Tensor, scores: Tensor, groups: Tensor, reach: SearchWidth
) -> tuple[Tensor, Tensor]:
    """The masks with the best pair of a few nodes to open and a few to close, and their KL.

    Where those are all the pairs there are, only two exchanges at once can be better than all of them: one more is made
    from the best pair, be it worse.
    """
    size = int(mask[0].sum())
    if size * (mask.shape[-1] - size) <= reach.crossed**2:
        other, kl = _best_pair(scorer, mask, groups)
        _take(other, kl, torch.arange(len(kl), device=kl.device), *_best_pair(scorer, other, groups))
        return other, kl
    opened, closed = (
        _best_few(scorer, _shortlist(scorer, some, groups, reach.crossed), groups, reach.crossed)
        for some in (_opened(scorer, mask, groups, 1, reach.additions), _closed(mask, scores, 1, reach.removals))
    )
    return _raced(scorer, (opened[:, None] & (closed | ~mask)).flatten(0, 1), groups)


def _resized(
    scorer: MaskScorer, mask: Tensor, scores: Tensor, groups: Tensor, size: int, stride: int, reach: SearchWidth
) -> tuple[Tensor, Tensor]:
    """The masks of some groups with some nodes more or fewer, and their KL."""
    kl = torch.empty(0)
    while size != (now := int(mask[0].sum())):
        step = min(abs(size - now), max(1, now // stride))
        if size > now:
            candidates = _opened(scorer, mask, groups, step, reach.additions)
        else:
            candidates = _closed(mask, scores, step, reach.removals)
        mask, kl = _raced(scorer, candidates, groups)
    return mask, kl


def _opened(scorer: MaskScorer, mask: Tensor, groups: Tensor, step: int, additions: int) -> Tensor:
    """The masks with so many nodes more, those that the gradient favours; a few to choose the last of."""
    order, closed = scorer.gradient(mask, groups).masked_fill(mask, torch.inf).argsort(-1), int((~mask[0]).sum())
    mask = mask.scatter(-1, order[:, : step - 1], True)
    return _each(mask, order[:, step - 1 : closed][:, :additions], True)


def _closed(mask: Tensor, scores: Tensor, step: int, removals: tuple[int, int]) -> Tensor:
    """The masks with so many nodes less, those with the lowest scores; a few to choose the last of."""
    order, size = scores.masked_fill(~mask, torch.inf).argsort(-1), int(mask[0].sum())
    mask = mask.scatter(-1, order[:, : step - 1], False)
    few, most = removals
    tried = size if mask[0].all() else min(few + size // 3, most)  # next to all nodes, the best is a matter of trying
    return _each(mask, order[:, step - 1 : size][:, :tried], False)


def _raced(scorer: MaskScorer, candidates: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """As `_best`, of those candidates that look best at a glimpse."""
    return _best(scorer, _shortlist(scorer, candidates, groups), groups)


def _shortlist(scorer: MaskScorer, candidates: Tensor, groups: Tensor, few: int = 1) -> Tensor:
    """Some of the candidates, and at least twice as many as are wanted: those that do best on some of the texts."""
    kept = max(2 * few, SHORTLIST_MIN, -(-len(candidates) // SHORTLIST_DIVISOR))
    if scorer.subsample is None or len(candidates) <= kept + 1:
        return candidates
    return _best_few(scorer.subsample, candidates, groups, kept)


def _best_few(scorer: MaskScorer, candidates: Tensor, groups: Tensor, few: int) -> Tensor:
    """The best few of the candidates (K, groups, nodes) of every group, best first."""
    order = scorer(candidates, groups).argsort(0)[:few]
    return candidates.gather(0, order[..., None].expand(-1, -1, candidates.shape[-1]))
