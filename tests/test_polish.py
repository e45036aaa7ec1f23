"""Polish: what a local search over swaps guarantees, on small models and on made-up KLs."""

from typing import Any

import pytest
import torch
from conftest import GROUPS, texts
from torch import Tensor
from torch.testing import assert_close

from masklearn.gates import top
from masklearn.masking import MaskedLM
from masklearn.selection import polish as polish_module
from masklearn.selection.attribution import single_ablation
from masklearn.selection.polish import PER_INPUT, SHARED, SearchWidths, Step, StepKind, polish, visit_order
from masklearn.selection.scorer import MaskScorer, TokenBudget
from masklearn.selection.search import exhaustive, greedy
from masklearn.selection.swaps import SearchWidth, guided_swap, resize

FEW_CANDIDATES = SearchWidths(*2 * (SearchWidth(3, (4, 8), 0.1, 1e-5),))
"""A search that is too narrow to find what the wider one finds."""
EVERY_NODE = SearchWidth(15, (15, 15), 0.0, 0.0)
"""All nodes of the model are candidates."""


@pytest.mark.parametrize("large_graph_nodes", [polish_module.LARGE_GRAPH_NODES, 1])
@pytest.mark.parametrize("widths", [SHARED, PER_INPUT])
def test_polish_never_raises_the_kl_keeps_sizes_and_comes_close_to_the_best_masks(
    masked_lm: MaskedLM, widths: SearchWidths, large_graph_nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of arbitrary scores end less than half as far from the best masks of 3 of 15 nodes."""
    monkeypatch.setattr(polish_module, "LARGE_GRAPH_NODES", large_graph_nodes)
    n_nodes = masked_lm.graph.n_nodes
    sizes = torch.tensor([3, 8, n_nodes])
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    scores = torch.rand(3, 3, n_nodes, generator=torch.Generator().manual_seed(2))
    masks = top(scores, sizes[:, None])
    polished, kl = polish(scorer, masks, scores, rounds=8, widths=widths)
    assert torch.equal(polished.sum(-1), masks.sum(-1))
    assert (kl <= scorer(masks) + 1e-6).all()
    assert_close(kl, scorer(polished), atol=1e-5, rtol=1e-4)
    best = scorer(exhaustive(scorer, [3], n_nodes))[0]
    assert (kl[0] >= best - 1e-6).all()
    assert (kl[0].mean() - best.mean()) < 0.5 * (scorer(masks)[0].mean() - best.mean())


def test_with_all_nodes_as_candidates_no_greedy_swap_improves_the_result(masked_lm: MaskedLM) -> None:
    n_nodes, scorer = masked_lm.graph.n_nodes, MaskScorer(masked_lm, texts(), GROUPS)
    assert n_nodes == EVERY_NODE.n_open_candidates
    scores = torch.rand(1, 3, n_nodes, generator=torch.Generator().manual_seed(3))
    widths = SearchWidths(EVERY_NODE, EVERY_NODE)
    polished, kl = polish(scorer, top(scores, torch.tensor([[6]])), scores, 50, widths)
    for group in range(3):
        closed, opened = (~polished[0, group]).nonzero()[:, 0], polished[0, group].nonzero()[:, 0]
        grown = polished[0].repeat(len(closed), 1, 1)
        grown[range(len(closed)), group, closed] = True
        grown = grown[scorer(grown)[:, group].argmin()]
        shrunk = grown.repeat(len(opened), 1, 1)
        shrunk[range(len(opened)), group, opened] = False
        assert scorer(shrunk)[:, group].min() >= kl[0, group] - 1e-5


class Table(MaskScorer):
    """A scorer with a table of KLs by open nodes; a mask that is not in the table has a KL of 5."""

    tokens = TokenBudget()

    n_groups = 1

    def __init__(self, kls: dict[tuple[int, ...], float]) -> None:
        self.kls, self.subsample = kls, None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __call__(self, masks: Tensor, groups: Tensor | None = None) -> Tensor:
        return torch.tensor([[self.kls.get(tuple(mask[0].nonzero()[:, 0].tolist()), 5.0)] for mask in masks])

    def gradient(self, masks: Tensor, groups: Tensor | None = None, inverse_temperature: float = 1.0) -> Tensor:
        return torch.arange(1.0 * masks.shape[-1]).expand(masks.shape)


@pytest.mark.parametrize("n_nodes", [4, 40])  # pair swaps try all pairs, or pairs from shortlists
def test_shared_masks_are_polished_by_pairs_where_guided_swaps_stall(n_nodes: int) -> None:
    """Opening node 2 lowers the KL most but leads to no better mask; elimination and growth end at nodes 0 and 1."""
    scorer = Table({(1,): 1.5, (0, 1, 2): 0.5, (0, 1, 3): 0.6, (0, 1): 1.0, (0, 3): 0.1})
    masks = (torch.arange(n_nodes) < 2)[None, None]
    for widths, expected in ((FEW_CANDIDATES, [0, 1]), (SHARED, [0, 3])):
        polished, _ = polish(scorer, masks, torch.zeros(1, 1, n_nodes), 4, widths)
        assert polished[0, 0].nonzero()[:, 0].tolist() == expected


def test_shared_masks_are_polished_by_two_swaps_at_once_where_no_single_swap_helps() -> None:
    """Elimination and growth end at nodes 0 and 1; only two swaps at once lead on to nodes 2 and 3."""
    scorer = Table({(0, 1, 2, 3): 0.5, (0, 1, 2): 0.4, (1,): 1.5, (0, 1): 1.0, (0, 3): 2.0, (2, 3): 0.1})
    polished, kl = polish(scorer, (torch.arange(5) < 2)[None, None], torch.zeros(1, 1, 5), 4)
    assert polished[0, 0].nonzero()[:, 0].tolist() == [2, 3] and kl.item() == pytest.approx(0.1)


class Weights(MaskScorer):
    """A scorer whose KL is the sum of the weights of the closed nodes; its subsample has weights of its own."""

    tokens = TokenBudget()

    n_groups = 1

    def __init__(self, weights: list[float], subsample_weights: list[float] | None = None) -> None:
        self.weights, self.n_scored = torch.tensor(weights), 0
        self.subsample = Weights(subsample_weights) if subsample_weights else None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __call__(self, masks: Tensor, groups: Tensor | None = None) -> Tensor:
        self.n_scored += len(masks)
        return (~masks * self.weights).sum(-1)

    def gradient(self, masks: Tensor, groups: Tensor | None = None, inverse_temperature: float = 1.0) -> Tensor:
        return torch.arange(1.0 * masks.shape[-1]).expand(masks.shape)  # nodes of little weight first


def test_polish_scores_on_all_texts_only_the_candidates_that_do_best_on_the_subsample() -> None:
    weights, masks = [1.0, 2, 3, 4, 5, 6, 7, 9], torch.eye(8, dtype=torch.bool)[None, :1]
    unscreened, screened = Weights(weights), Weights(weights, subsample_weights=[1.0, 2, 3, 4, 5, 6, 9, 7])
    for scorer in (unscreened, screened):
        polished, _ = polish(scorer, masks, torch.zeros(1, 1, 8), 4)
        assert polished[0, 0].nonzero()[:, 0].tolist() == [7]
    assert screened.n_scored < unscreened.n_scored


def test_polish_is_no_worse_than_greedy_in_either_direction(masked_lm: MaskedLM) -> None:
    """Without swaps: the way down begins with all nodes and the way up with none, whatever the learned masks."""
    n_nodes, scorer = masked_lm.graph.n_nodes, MaskScorer(masked_lm, texts(), GROUPS)
    scores = torch.rand(1, 3, n_nodes, generator=torch.Generator().manual_seed(2))
    for size in (5, 8, 11):
        _, kl = polish(scorer, top(scores, torch.tensor([[size]])), scores, 0, SearchWidths(EVERY_NODE, EVERY_NODE))
        for forward in (False, True):
            assert (kl <= scorer(greedy(scorer, [size], n_nodes, forward)) + 1e-6).all()


def test_the_best_single_node_to_close_is_found_whatever_the_scores(masked_lm: MaskedLM) -> None:
    n_nodes, scorer = masked_lm.graph.n_nodes, MaskScorer(masked_lm, texts(), GROUPS)
    _, best = single_ablation(scorer, n_nodes).min(-1)
    scores = torch.zeros(1, 3, n_nodes).scatter(-1, best[None, :, None], 1.0)
    masks = top(scores + torch.arange(n_nodes) / n_nodes**2, torch.tensor([[n_nodes - 1]]))
    polished, _ = polish(scorer, masks, scores, rounds=1)
    assert (~polished[0]).nonzero()[:, 1].tolist() == best.tolist()


@pytest.mark.parametrize("width", [SHARED.swap, PER_INPUT.swap])
@pytest.mark.parametrize("size", [1, 3, 8, 14])
def test_a_swap_scores_no_more_tokens_than_its_width_says(masked_lm: MaskedLM, size: int, width: SearchWidth) -> None:
    """With one closed node, too: opening it gives the full model, of which not every node is tried."""
    narrow = width._replace(n_close_candidates=(4, 6))
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    scores = torch.rand(3, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(2))
    guided_swap(scorer, top(scores, torch.tensor(size)), scores, torch.arange(3), narrow)
    assert 0 < scorer.tokens.spent <= narrow.tokens(size) * sum(batch.n_tokens for batch in scorer.batches)


@pytest.mark.parametrize(("divisor", "n_candidates"), [(15, 15 + 6), (4, 6)])
def test_only_a_first_node_that_is_closed_alone_is_chosen_among_all(
    masked_lm: MaskedLM, divisor: int, n_candidates: int
) -> None:
    """From 15 nodes to 13 and 12: one by one, 15 candidates and then a few; three at once, a few."""
    scorer, width = MaskScorer(masked_lm, texts(), GROUPS), SearchWidth(5, (4, 6), 0.0, 0.0)
    scored = list[int]()
    score = MaskScorer.__call__

    def count(self: MaskScorer, gates: Tensor, groups: Tensor | None = None) -> Tensor:
        scored.append(len(gates))
        return score(self, gates, groups)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskScorer, "__call__", count)
        full = torch.ones(3, masked_lm.graph.n_nodes, dtype=torch.bool)
        size = 13 if divisor == 15 else 12
        resize(scorer, full, torch.rand(3, 15), torch.arange(3), size, divisor, width)
    assert sum(scored) == n_candidates


def test_good_masks_of_one_size_improve_all_other_sizes(masked_lm: MaskedLM) -> None:
    """Without swaps: they are resized to the next larger and the next smaller size, and so on."""
    n_nodes = masked_lm.graph.n_nodes
    sizes, scorer = [2, 5, 8, 11], MaskScorer(masked_lm, texts(), GROUPS)
    scores = torch.rand(4, 3, n_nodes, generator=torch.Generator().manual_seed(7))
    start = top(scores, torch.tensor(sizes)[:, None])
    before = scorer(start)
    for good in (0, 3):
        masks = start.clone()
        masks[good] = greedy(scorer, [sizes[good]], n_nodes)[0]
        polished, kl = polish(scorer, masks, scores, rounds=0)
        assert polished.sum(-1).tolist() == [[size] * 3 for size in sizes]
        assert (kl[good] <= scorer(masks)[good] + 1e-6).all()
        others = [i for i in range(4) if i != good]
        assert (kl[others] <= before[others] + 1e-6).all()
        assert (kl[others].mean(1) < before[others].mean(1)).all()


def test_the_steps_of_two_sizes_by_hand() -> None:
    shrink, grow = Step(StepKind.SHRINK_FROM_LARGER, 0), Step(StepKind.GROW_FROM_SMALLER, 1)
    swaps_and_up = [Step(StepKind.SWAP, 0), Step(StepKind.SWAP, 1), Step(StepKind.GROW_FROM_NONE, 0), grow]
    assert visit_order(2, from_all=True) == [*swaps_and_up, Step(StepKind.SHRINK_FROM_ALL, 1), shrink]
    assert visit_order(2, from_all=False) == [*swaps_and_up, shrink]
    assert visit_order(2, from_all=False, n_small=1) == [*swaps_and_up, shrink]
    assert visit_order(2, from_all=False, n_small=2) == [*swaps_and_up[:2], shrink, *swaps_and_up[2:]]


def test_small_masks_of_large_graphs_shrink_before_the_way_up(
    masked_lm: MaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four sizes are those of small masks: the two steps between them come first, and the third step last."""
    monkeypatch.setattr(polish_module, "SMALL_MASK_NODES", 6)
    seen: list[list[Step]] = []

    def track(steps: Any, *state: Any) -> list[Step]:
        seen.append(list(steps))
        return []

    sizes = torch.tensor([2, 4, 6, 9])
    scores = torch.rand(4, 3, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(2))
    for large_graph_nodes in (16, 15):
        monkeypatch.setattr(polish_module, "LARGE_GRAPH_NODES", large_graph_nodes)
        masks = top(scores, sizes[:, None])
        polish(MaskScorer(masked_lm, texts(), GROUPS), masks, scores, rounds=2, tracker=track)
    small, large = seen
    shrinks = [Step(StepKind.SHRINK_FROM_LARGER, i) for i in (2, 1, 0)]
    assert small[-3:] == shrinks and len(small) == len(large) and set(small) == set(large)
    assert large[4:6] == shrinks[1:] and large[-1] == shrinks[0]
