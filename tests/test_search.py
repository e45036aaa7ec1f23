"""Searches for subgraphs, compared with plain loops over every node or every subgraph."""

from itertools import combinations

import pytest
import torch
from conftest import GROUPS, by_hand, texts
from torch import Tensor
from torch.testing import assert_close

from masklearn.errors import UserError
from masklearn.gates import top
from masklearn.masking import MaskedLM
from masklearn.selection.attribution import single_ablation
from masklearn.selection.scorer import MaskScorer
from masklearn.selection.search import exhaustive, greedy, swap


def reference_greedy(masked_lm: MaskedLM, group: int, size: int) -> list[int]:
    kept = list(range(masked_lm.graph.n_nodes))
    while len(kept) > size:
        trials = []
        for node in kept:
            mask = torch.zeros(masked_lm.graph.n_nodes)
            mask[[other for other in kept if other != node]] = 1
            trials.append((by_hand(masked_lm, mask, group), node))
        kept.remove(min(trials)[1])
    return kept


def test_greedy_closes_the_node_that_leaves_the_lowest_kl(masked_lm: MaskedLM) -> None:
    n_nodes = masked_lm.graph.n_nodes
    masks = greedy(MaskScorer(masked_lm, texts(), GROUPS), [9, n_nodes - 2, n_nodes], n_nodes)
    assert masks.sum(-1).tolist() == [[9] * 3, [n_nodes - 2] * 3, [n_nodes] * 3]
    for i, group in enumerate(GROUPS):
        assert masks[0, i].nonzero()[:, 0].tolist() == reference_greedy(masked_lm, group, 9)


def reference_forward_greedy(masked_lm: MaskedLM, group: int, size: int) -> list[int]:
    kept: list[int] = []
    while len(kept) < size:
        trials = []
        for node in set(range(masked_lm.graph.n_nodes)) - set(kept):
            mask = torch.zeros(masked_lm.graph.n_nodes)
            mask[[*kept, node]] = 1
            trials.append((by_hand(masked_lm, mask, group), node))
        kept.append(min(trials)[1])
    return sorted(kept)


def test_forward_greedy_opens_the_node_that_lowers_the_kl_most(masked_lm: MaskedLM) -> None:
    masks = greedy(MaskScorer(masked_lm, texts(), GROUPS), [1, 4], masked_lm.graph.n_nodes, forward=True)
    for i, group in enumerate(GROUPS):
        assert masks[1, i].nonzero()[:, 0].tolist() == reference_forward_greedy(masked_lm, group, 4)
    assert masks.sum(-1).tolist() == [[1] * 3, [4] * 3]


def all_subgraphs(n_nodes: int, size: int) -> Tensor:
    return torch.stack(
        [
            torch.zeros(n_nodes, dtype=torch.bool).index_fill_(0, torch.tensor(nodes), True)
            for nodes in combinations(range(n_nodes), size)
        ]
    )


def test_exhaustive_search_finds_the_best_of_all_subgraphs(masked_lm: MaskedLM) -> None:
    n_nodes = masked_lm.graph.n_nodes
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    masks = exhaustive(scorer, [2, 3, n_nodes], n_nodes)
    assert masks.sum(-1).tolist() == [[2] * 3, [3] * 3, [n_nodes] * 3]
    for i, size in enumerate((2, 3)):
        kls = scorer(all_subgraphs(n_nodes, size)[:, None].expand(-1, 3, -1))
        assert_close(scorer(masks)[i], kls.min(0).values)


def test_exhaustive_search_refuses_large_graphs(masked_lm: MaskedLM) -> None:
    with pytest.raises(UserError, match="all subgraphs of up to 20 nodes, and the model has 21"):
        exhaustive(MaskScorer(masked_lm, texts(), GROUPS), [2], 21)


def test_no_single_swap_improves_the_result_of_swap(masked_lm: MaskedLM) -> None:
    n_nodes = masked_lm.graph.n_nodes
    sizes, scorer = torch.tensor([3, 8, n_nodes]), MaskScorer(masked_lm, texts(), GROUPS)
    start = top(torch.rand(3, 3, n_nodes, generator=torch.Generator().manual_seed(5)), sizes[:, None])
    masks = swap(scorer, start)
    assert torch.equal(masks.sum(-1), start.sum(-1))
    kl, start_kl = scorer(masks), scorer(start)
    assert (kl[:2] < start_kl[:2]).any() and (kl <= start_kl).all()
    for i in range(2):
        for group in range(3):
            mask = masks[i, group]
            for opened in (~mask).nonzero()[:, 0]:
                for closed in mask.nonzero()[:, 0]:
                    other = mask.clone()
                    other[opened], other[closed] = True, False
                    assert scorer(other[None, None], torch.tensor([group])) >= kl[i, group] - 1e-6


def test_single_ablation_closes_one_node_at_a_time(masked_lm: MaskedLM) -> None:
    kl = single_ablation(MaskScorer(masked_lm, texts(), GROUPS), masked_lm.graph.n_nodes)
    mask = torch.ones(masked_lm.graph.n_nodes)
    mask[4] = 0
    assert kl[1, 4].item() == pytest.approx(by_hand(masked_lm, mask, GROUPS[1]), abs=1e-5)
