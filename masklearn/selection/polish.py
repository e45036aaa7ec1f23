"""Polish: local search by swaps of nodes from learned masks; every mask keeps its size.

A polish is a sequence of steps. Each works on the masks of one size, in three passes:

1. Swaps of one node for another (`swaps`), at the largest size; if thorough, at every size.
2. Way down, from the largest size to the smallest. The masks compete with those of the next larger size, shrunk.
3. Way up, from the smallest size to the largest. The masks compete with those of the next smaller size, grown.

If thorough, the way up comes before the way down: it searches more widely and gains most, so that a budget is best
spent there.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import torch
from torch import Tensor

from masklearn.selection.candidates import replace_if_better
from masklearn.selection.scorer import BudgetSpent, MaskScorer
from masklearn.selection.swaps import SearchWidth, resize, swap_until_stalled

FAST, DEFAULT = SearchWidth(3, (4, 8), 0.1, 1e-5), SearchWidth(3, (4, 12), 0.1, 1e-5)
BROAD, THOROUGH = SearchWidth(10, (20, 20), 0.05, 1e-4), SearchWidth(10, (50, 50), 0.05, 0.0, 8)
"""In large graphs the wider search is spent only on masks with high KL, since they dominate the mean over groups."""
LARGE_GRAPH_NODES = 100
"""Nodes from which on a graph is large: greedy elimination, whose cost grows with their square, takes longer than a
polish with the wider search."""
RESIZE_DIVISOR, LARGE_GRAPH_RESIZE_DIVISOR = 2, 4
"""On the way to another size, a mask gains or loses one node at a time for every two (four) that it has."""
MAX_KL_RATIO = 2.0
"""A resized mask is worth swaps if its KL is below this multiple of its competitor's."""


class StepKind(Enum):
    """What a step does to the masks of its size."""

    SWAP = auto()
    """Swap nodes."""
    SHRINK_FROM_ALL = auto()
    """Compete with masks shrunk from all nodes."""
    SHRINK_FROM_LARGER = auto()
    """Compete with the masks of the next larger size, shrunk."""
    GROW_FROM_NONE = auto()
    """Compete with masks grown from no node."""
    GROW_FROM_SMALLER = auto()
    """Compete with the masks of the next smaller size, grown."""


class Step(NamedTuple):
    """One step of a polish."""

    kind: StepKind
    size_index: int
    """Index of the size whose masks the step may change."""


StepTracker = Callable[[Sequence[Step], Tensor, Tensor, Tensor], Iterable[Step]]
"""Yields the steps of a polish that are still to do.

Its other arguments are the masks (sizes, groups, nodes), their KL (sizes, groups) and the tokens scored so far, of no
dimension; every step changes them in place. A tracker may show progress, save all three after each step, or load them
and skip the steps that led to them."""


def all_steps(steps: Sequence[Step], masks: Tensor, kl: Tensor, n_spent: Tensor) -> Sequence[Step]:
    """The default tracker: every step is to do."""
    return steps


def polish(
    scorer: MaskScorer,
    masks: Tensor,
    scores: Tensor,
    rounds: int,
    thorough: bool = False,
    tracker: StepTracker = all_steps,
    budget: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Lower the KL of every mask by swaps of nodes; every mask keeps its size.

    Masks are polished one by one, so nested masks may end up not nested.

    Args:
        scorer: Scores masks, on text that no result is reported on.
        masks: Boolean, shape (sizes, groups, nodes), sizes ascending.
        scores: High for nodes to keep, same shape.
        rounds: Swaps of a mask in one step, at most; in large graphs as many again with the wider search.
        thorough: Spend more time: begin the way down with all nodes and the way up with none, swap nodes of resized
            masks before they compete, try more candidates, and where swaps stall try pairs from two shortlists. Without
            it, only large graphs begin the way up with no node.
        tracker: Follows the steps, see `StepTracker`.
        budget: Tokens to score at most, see `TokenBudget`. The polish stops when they are spent and keeps the masks it
            has found; `scorer.tokens` says how many steps were left.

    Returns:
        The polished masks and their KL, shapes (sizes, groups, nodes) and (sizes, groups).
    """
    masks, kl = masks.clone(), scorer(masks)
    n_nodes = masks.shape[-1]
    large = n_nodes >= LARGE_GRAPH_NODES
    state = _Polish(
        scorer=scorer,
        masks=masks,
        kl=kl,
        scores=scores,
        rounds=rounds,
        thorough=thorough,
        widths=(FAST, BROAD) if large and not thorough else (DEFAULT,),
        resize_divisor=LARGE_GRAPH_RESIZE_DIVISOR if large else n_nodes if thorough else RESIZE_DIVISOR,
    )
    from_all = thorough and not masks[-1, 0].all()
    state.run_all(visit_order(len(masks), thorough, from_all, large or thorough), tracker, budget)
    return masks, kl


def visit_order(n_sizes: int, swap_all: bool, from_all: bool, from_none: bool) -> list[Step]:
    """The steps of a polish: swaps, then the way down and the way up; if swaps are at all sizes, the way up first.

    Args:
        n_sizes: Sizes, ascending.
        swap_all: Begin with swaps at all sizes, or at the largest alone.
        from_all: Begin the way down with all nodes, or with the masks of the largest size.
        from_none: Begin the way up with no node, or with the masks of the smallest size.
    """
    largest = n_sizes - 1
    swaps = [Step(StepKind.SWAP, i) for i in range(0 if swap_all else largest, n_sizes)]
    down = [Step(StepKind.SHRINK_FROM_ALL, largest)] if from_all else []
    down += [Step(StepKind.SHRINK_FROM_LARGER, i) for i in range(largest - 1, -1, -1)]
    up = [Step(StepKind.GROW_FROM_NONE, 0)] if from_none else []
    up += [Step(StepKind.GROW_FROM_SMALLER, i) for i in range(1, n_sizes)]
    return [*swaps, *up, *down] if swap_all else [*swaps, *down, *up]


@dataclass(frozen=True)
class _Polish:
    """Data and settings of a polish under way; its steps change `masks` and `kl` in place. See `polish`."""

    scorer: MaskScorer
    masks: Tensor
    kl: Tensor
    scores: Tensor
    rounds: int
    thorough: bool
    widths: tuple[SearchWidth, ...]
    """Widths of the swaps of a step, from narrow to wide."""
    resize_divisor: int
    """See `resize`."""

    def run_all(self, steps: Sequence[Step], tracker: StepTracker, budget: float) -> None:
        """Make the steps, as long as there are tokens to score."""
        tokens = self.scorer.tokens
        n_spent = torch.zeros((), dtype=torch.float64)  # a tracker may set it to what an earlier process has spent
        tokens.untried_steps = 0
        for step in tracker(steps, self.masks, self.kl, n_spent):
            tokens.spent, tokens.limit = n_spent.item(), budget
            try:
                self.run(step)
            except BudgetSpent:
                tokens.untried_steps = len(steps) - steps.index(step)
                break
            finally:
                tokens.limit = math.inf
                n_spent.fill_(tokens.spent)

    def run(self, step: Step) -> None:
        """Make one step."""
        i = step.size_index
        match step.kind:
            case StepKind.SWAP:
                self.swap(i, self.all_groups, self.widths)
            case StepKind.SHRINK_FROM_ALL:
                self.shrink(i, torch.ones_like(self.masks[i]))
            case StepKind.SHRINK_FROM_LARGER:
                self.shrink(i, self.masks[i + 1])
            case StepKind.GROW_FROM_NONE:
                self.grow(i, torch.zeros_like(self.masks[i]), THOROUGH if self.thorough else BROAD)
            case StepKind.GROW_FROM_SMALLER:
                self.grow(i, self.masks[i - 1], self.resize_width)

    @property
    def all_groups(self) -> Tensor:
        """Indices of all groups."""
        return torch.arange(self.scorer.n_groups, device=self.masks.device)

    @property
    def resize_width(self) -> SearchWidth:
        """Width of the search on the way to another size."""
        return THOROUGH if self.thorough else self.widths[0]

    def swap(self, i: int, groups: Tensor, widths: Sequence[SearchWidth]) -> None:
        """Swap nodes in the masks of size `i` of some groups."""
        swap_until_stalled(self.scorer, self.masks[i], self.kl[i], self.scores[i], groups, self.rounds, widths)

    def shrink(self, i: int, start: Tensor) -> None:
        """A step of the way down: compete with larger masks, shrunk, then swap unless both were swapped already."""
        self.compete(i, start, self.resize_width)
        if not self.thorough:
            self.swap(i, self.all_groups, self.widths)

    def grow(self, i: int, start: Tensor, width: SearchWidth) -> None:
        """A step of the way up: compete with smaller masks, grown, then swap where those won; all if thorough."""
        replaced = self.compete(i, start, width)
        if self.thorough:
            self.swap(i, self.all_groups, (THOROUGH,))
        else:
            self.swap(i, replaced, self.widths)

    def compete(self, i: int, start: Tensor, width: SearchWidth) -> Tensor:
        """Resize the masks `start` to size `i` and let them replace that size's masks where their KL is lower.

        Returns:
            Indices of the groups whose mask was replaced.
        """
        mask, kl, scores = self.masks[i], self.kl[i], self.scores[i]
        groups = self.all_groups[kl > width.kl_tolerance]
        if not len(groups):
            return groups
        other, other_kl = mask.clone(), kl.clone()
        other[groups], other_kl[groups] = resize(
            self.scorer, start[groups], scores[groups], groups, int(mask[0].sum()), self.resize_divisor, width
        )
        if self.thorough:
            promising = self.all_groups[other_kl < MAX_KL_RATIO * kl]
            swap_until_stalled(self.scorer, other, other_kl, scores, promising, self.rounds, self.widths)
        replaced = self.all_groups[other_kl < kl]
        replace_if_better(mask, kl, self.all_groups, other, other_kl)
        return replaced
