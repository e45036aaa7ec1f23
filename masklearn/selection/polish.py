"""Polish: local search by swaps of nodes from learned masks; every mask keeps its size.

A polish is a sequence of steps. Each works on the masks of one size, in three passes:

1. Swaps of one node for another (`swaps`), at every size. They gain most for what they cost, and share the budget.
2. Way up, from no node to the largest size. The masks compete with those of the next smaller size, grown.
3. Way down, from all nodes to the smallest size. The masks compete with those of the next larger size, shrunk.

In large graphs the budget rarely lasts until the way down. There its part among small masks, which is cheap, comes
before the way up.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import torch
from torch import Tensor

from masklearn.selection.candidates import replace_if_better
from masklearn.selection.scorer import BudgetSpent, MaskScorer
from masklearn.selection.swaps import SearchWidth, resize, swap_until_stalled


class SearchWidths(NamedTuple):
    """How widely a polish searches."""

    swap: SearchWidth
    """Swaps at every size, and of resized masks that may win."""
    resize: SearchWidth
    """Ways to another size, and the swaps that follow the way up."""


SHARED = SearchWidths(SearchWidth(3, (4, 12), 0.1, 1e-5), SearchWidth(10, (50, 50), 0.05, 0.0, 8))
"""Widths for masks that texts share: few masks, which are searched until nothing helps."""
PER_INPUT = SearchWidths(SearchWidth(5, (6, 16), 0.05, 1e-5), SearchWidth(6, (20, 20), 0.05, 0.0))
"""Widths for masks of single texts: many masks, so that every token scored has to gain more."""
LARGE_GRAPH_NODES = 60
"""Nodes from which on a graph is large: one node at a time, the way through all sizes would cost too much."""
LARGE_GRAPH_RESIZE_DIVISOR = 4
"""In large graphs, on the way to another size, a mask gains or loses one node at a time for every four that it has."""
SMALL_MASK_NODES = 12
"""Nodes up to which a mask of a large graph is small: it shrinks to the next smaller size before the way up."""
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
    widths: SearchWidths = SHARED,
    tracker: StepTracker = all_steps,
    budget: float = math.inf,
    kl: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Lower the KL of every mask by swaps of nodes; every mask keeps its size.

    Masks are polished one by one, so nested masks may end up not nested.

    Args:
        scorer: Scores masks, on text that no result is reported on.
        masks: Boolean, shape (sizes, groups, nodes), sizes ascending.
        scores: High for nodes to keep, same shape.
        rounds: Swaps of a mask in one step, at most.
        widths: How widely it searches.
        tracker: Follows the steps, see `StepTracker`.
        budget: Tokens to score at most, see `TokenBudget`. The polish stops when they are spent and keeps the masks it
            has found; `scorer.tokens` says how many steps were left.
        kl: KL of the masks, shape (sizes, groups), if it is known.

    Returns:
        The polished masks and their KL, shapes (sizes, groups, nodes) and (sizes, groups).
    """
    masks, kl = masks.clone(), scorer(masks) if kl is None else kl.clone()
    n_nodes = masks.shape[-1]
    is_large = n_nodes >= LARGE_GRAPH_NODES
    state = _Polish(scorer, masks, kl, scores, rounds, widths, LARGE_GRAPH_RESIZE_DIVISOR if is_large else n_nodes)
    n_small = int((masks[:, 0].sum(-1) <= SMALL_MASK_NODES).sum()) if is_large else 0
    state.run_all(visit_order(len(masks), not bool(masks[-1, 0].all()), n_small), tracker, budget)
    return masks, kl


def visit_order(n_sizes: int, from_all: bool, n_small: int = 0) -> list[Step]:
    """The steps of a polish: swaps, the way down among small masks, the way up, and the rest of the way down.

    Args:
        n_sizes: Sizes, ascending.
        from_all: Begin the way down with all nodes; if the largest size is all nodes, this would lead nowhere.
        n_small: How many of the sizes are those of small masks.
    """
    largest = n_sizes - 1
    swaps = [Step(StepKind.SWAP, i) for i in range(n_sizes)]
    up = [Step(StepKind.GROW_FROM_NONE, 0), *(Step(StepKind.GROW_FROM_SMALLER, i) for i in range(1, n_sizes))]
    down = [Step(StepKind.SHRINK_FROM_ALL, largest)] if from_all else []
    shrink = [Step(StepKind.SHRINK_FROM_LARGER, i) for i in range(largest - 1, -1, -1)]
    of_small = [step for step in shrink if step.size_index + 1 < n_small]  # the mask that shrinks is small, too
    return [*swaps, *of_small, *up, *down, *(step for step in shrink if step not in of_small)]


@dataclass(frozen=True)
class _Polish:
    """Data and settings of a polish under way; its steps change `masks` and `kl` in place. See `polish`."""

    scorer: MaskScorer
    masks: Tensor
    kl: Tensor
    scores: Tensor
    rounds: int
    widths: SearchWidths
    resize_divisor: int
    """See `resize`."""

    def run_all(self, steps: Sequence[Step], tracker: StepTracker, budget: float) -> None:
        """Make the steps, as long as there are tokens to score."""
        tokens = self.scorer.tokens
        n_spent = torch.zeros((), dtype=torch.float64)  # a tracker may set it to what an earlier process has spent
        tokens.untried_steps = 0
        for step in tracker(steps, self.masks, self.kl, n_spent):
            tokens.spent = n_spent.item()
            tokens.limit = self.limit(steps[steps.index(step) :], tokens.spent, budget)
            try:
                # A stopped polish goes on after its last whole step, without what that step remembered. Masks of single
                # texts do without, so that a block of one text is searched like one of several.
                with self.scorer.remembering() if self.widths == SHARED else nullcontext():
                    self.run(step)
            except BudgetSpent:
                if tokens.spent >= budget:
                    tokens.untried_steps = len(steps) - steps.index(step)
                    break
            finally:
                tokens.limit = math.inf
                n_spent.fill_(tokens.spent)

    def limit(self, left: Sequence[Step], spent: float, budget: float) -> float:
        """Tokens up to which the first of the steps that are left may score.

        The swaps of a size get an equal share of what is left of the budget, so that a small one reaches every size;
        but they get enough for one swap.
        """
        n_swaps = sum(step.kind is StepKind.SWAP for step in left)
        if not n_swaps or budget == math.inf:
            return budget
        size, n_tokens = int(self.masks[left[0].size_index, 0].sum()), sum(b.n_tokens for b in self.scorer.batches)
        share = max((budget - spent) / n_swaps, self.widths.swap.tokens(size) * n_tokens)
        return min(budget, spent + share)

    def run(self, step: Step) -> None:
        """Make one step."""
        i, mask = step.size_index, self.masks[step.size_index]
        match step.kind:
            case StepKind.SWAP:
                self.swap(mask, self.kl[i], i, self.all_groups, self.widths.swap)
            case StepKind.GROW_FROM_NONE:
                self.grow(i, torch.zeros_like(mask))
            case StepKind.GROW_FROM_SMALLER:
                self.grow(i, self.masks[i - 1])
            case StepKind.SHRINK_FROM_ALL:
                self.compete(i, torch.ones_like(mask))
            case StepKind.SHRINK_FROM_LARGER:
                self.compete(i, self.masks[i + 1])

    @property
    def all_groups(self) -> Tensor:
        """Indices of all groups."""
        return torch.arange(self.scorer.n_groups, device=self.masks.device)

    def swap(self, mask: Tensor, kl: Tensor, i: int, groups: Tensor, width: SearchWidth) -> None:
        """Swap nodes in masks of size `i` of some groups, in place."""
        swap_until_stalled(self.scorer, mask, kl, self.scores[i], groups, self.rounds, width)

    def grow(self, i: int, start: Tensor) -> None:
        """A step of the way up: compete with smaller masks, grown, then swap with the wider search."""
        self.compete(i, start)
        self.swap(self.masks[i], self.kl[i], i, self.all_groups, self.widths.resize)

    def compete(self, i: int, start: Tensor) -> None:
        """Resize the masks `start` to size `i`, and let them replace that size's masks where their KL is lower."""
        mask, kl, scores, width = self.masks[i], self.kl[i], self.scores[i], self.widths.resize
        groups = self.all_groups[kl > width.kl_tolerance]
        if not len(groups):
            return
        other, other_kl = mask.clone(), kl.clone()
        other[groups], other_kl[groups] = resize(
            self.scorer, start[groups], scores[groups], groups, int(mask[0].sum()), self.resize_divisor, width
        )
        promising = self.all_groups[other_kl < MAX_KL_RATIO * kl]
        self.swap(other, other_kl, i, promising, self.widths.swap)
        replace_if_better(mask, kl, self.all_groups, other, other_kl)
