from itertools import combinations

import pytest
import torch
from conftest import GROUPS, by_hand, texts
from torch import Tensor
from torch.testing import assert_close

from masklearn.data import Batch
from masklearn.errors import UserError
from masklearn.gates import GateBank, top
from masklearn.masking import MaskedLM
from masklearn.selection import polish as polish_module
from masklearn.selection.attribution import single_ablation
from masklearn.selection.discretization import cut
from masklearn.selection.polish import polish
from masklearn.selection.scorer import MaskScorer
from masklearn.selection.search import exhaustive, greedy, swap
from masklearn.training.budget import Projected


def test_the_judge_means_what_it_says(masked_lm: MaskedLM) -> None:
    masks = torch.rand(2, 3, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(1)) > 0.4
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    found = scorer(masks)
    for k in range(2):
        for place, group in enumerate(GROUPS):
            assert found[k, place].item() == pytest.approx(by_hand(masked_lm, masks[k, place], group), abs=1e-5)
    some = torch.tensor([2, 0])
    assert_close(scorer(masks[:, some], some), found[:, some])
    assert_close(scorer.gradient(masks[0, some], some), scorer.gradient(masks[0])[some], atol=1e-5, rtol=1e-4)


def test_a_glimpse_takes_one_of_four_texts_of_every_group(masked_lm: MaskedLM) -> None:
    groups = torch.tensor([7, 3, 3] * 64)
    ids = torch.randint(3, 50, (192, 5), generator=torch.Generator().manual_seed(3))
    scored = torch.arange(5) >= torch.randint(4, (192, 1), generator=torch.Generator().manual_seed(4))

    def scorer(some: Tensor) -> MaskScorer:
        batches = [Batch(ids[i], torch.ones_like(scored[i]), scored[i], i, groups[i]) for i in some.split(50)]
        return MaskScorer(masked_lm, batches, (3, 7))

    masks = torch.rand(2, 2, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(1)) > 0.4
    subsample = scorer(torch.arange(192)).subsample
    kept = torch.cat([(groups == group).nonzero()[::4, 0] for group in (3, 7)])
    assert subsample is not None
    assert sum(len(piece.slot) for piece in subsample.pieces) == 128 // 4 + 64 // 4
    assert_close(subsample(masks), scorer(kept)(masks), atol=1e-5, rtol=1e-4)
    assert scorer(torch.arange(189)).subsample is None  # 63 texts of one group


def test_the_gradient_is_that_of_the_kl(masked_lm: MaskedLM) -> None:
    gates = torch.full((3, masked_lm.graph.n_nodes), 0.6)
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    gradient = scorer.gradient(gates)
    for node in (0, 4, 9):
        nudge = torch.zeros_like(gates).index_fill_(1, torch.tensor([node]), 1e-2)
        slope = (scorer((gates + nudge)[None]) - scorer((gates - nudge)[None]))[0] / 2e-2
        assert_close(gradient[:, node], slope, atol=2e-3, rtol=2e-2)


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


def test_greedy_is_greedy(masked_lm: MaskedLM) -> None:
    n_nodes = masked_lm.graph.n_nodes
    masks = greedy(MaskScorer(masked_lm, texts(), GROUPS), [9, n_nodes - 2, n_nodes], n_nodes)
    assert masks.sum(-1).tolist() == [[9] * 3, [n_nodes - 2] * 3, [n_nodes] * 3]
    for place, group in enumerate(GROUPS):
        assert masks[0, place].nonzero()[:, 0].tolist() == reference_greedy(masked_lm, group, 9)


def reference_growth(masked_lm: MaskedLM, group: int, size: int) -> list[int]:
    kept: list[int] = []
    while len(kept) < size:
        trials = []
        for node in set(range(masked_lm.graph.n_nodes)) - set(kept):
            mask = torch.zeros(masked_lm.graph.n_nodes)
            mask[[*kept, node]] = 1
            trials.append((by_hand(masked_lm, mask, group), node))
        kept.append(min(trials)[1])
    return sorted(kept)


def test_greedy_forward_opens_what_helps_most(masked_lm: MaskedLM) -> None:
    masks = greedy(MaskScorer(masked_lm, texts(), GROUPS), [1, 4], masked_lm.graph.n_nodes, forward=True)
    for place, group in enumerate(GROUPS):
        assert masks[1, place].nonzero()[:, 0].tolist() == reference_growth(masked_lm, group, 4)
    assert masks.sum(-1).tolist() == [[1] * 3, [4] * 3]


def every_subgraph(n_nodes: int, size: int) -> Tensor:
    return torch.stack(
        [
            torch.zeros(n_nodes, dtype=torch.bool).index_fill_(0, torch.tensor(nodes), True)
            for nodes in combinations(range(n_nodes), size)
        ]
    )


def test_exhaustive_search_leaves_nothing_better(masked_lm: MaskedLM) -> None:
    n_nodes = masked_lm.graph.n_nodes
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    masks = exhaustive(scorer, [2, 3, n_nodes], n_nodes)
    assert masks.sum(-1).tolist() == [[2] * 3, [3] * 3, [n_nodes] * 3]
    for i, size in enumerate((2, 3)):
        every = scorer(every_subgraph(n_nodes, size)[:, None].expand(-1, 3, -1))
        assert_close(scorer(masks)[i], every.min(0).values)


def test_exhaustive_search_ends_where_it_would_not(masked_lm: MaskedLM) -> None:
    with pytest.raises(UserError, match="all subgraphs of up to 20 nodes, and the model has 21"):
        exhaustive(MaskScorer(masked_lm, texts(), GROUPS), [2], 21)


def test_no_swap_makes_what_swap_found_better(masked_lm: MaskedLM) -> None:
    n_nodes = masked_lm.graph.n_nodes
    sizes, scorer = torch.tensor([3, 8, n_nodes]), MaskScorer(masked_lm, texts(), GROUPS)
    start = top(torch.rand(3, 3, n_nodes, generator=torch.Generator().manual_seed(5)), sizes[:, None])
    masks = swap(scorer, start)
    assert torch.equal(masks.sum(-1), start.sum(-1))
    kl, was = scorer(masks), scorer(start)
    assert (kl[:2] < was[:2]).any() and (kl <= was).all()
    for i in range(2):
        for group in range(3):
            mask = masks[i, group]
            for opened in (~mask).nonzero()[:, 0]:
                for closed in mask.nonzero()[:, 0]:
                    other = mask.clone()
                    other[opened], other[closed] = True, False
                    assert scorer(other[None, None], torch.tensor([group])) >= kl[i, group] - 1e-6


def test_single_ablation_closes_one_node_at_a_time(masked_lm: MaskedLM) -> None:
    missed = single_ablation(MaskScorer(masked_lm, texts(), GROUPS), masked_lm.graph.n_nodes)
    mask = torch.ones(masked_lm.graph.n_nodes)
    mask[4] = 0
    assert missed[1, 4].item() == pytest.approx(by_hand(masked_lm, mask, GROUPS[1]), abs=1e-5)


@pytest.mark.parametrize(
    ("thorough", "many"),
    [(False, polish_module.LARGE_GRAPH_NODES), (True, polish_module.LARGE_GRAPH_NODES), (False, 1)],
)
def test_polish_never_makes_worse_keeps_sizes_and_comes_close_to_the_best(
    masked_lm: MaskedLM, thorough: bool, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every subgraph of 3 of 15 nodes is tried; from arbitrary scores most of the way is made."""
    monkeypatch.setattr(polish_module, "LARGE_GRAPH_NODES", many)
    n_nodes = masked_lm.graph.n_nodes
    sizes = torch.tensor([3, 8, n_nodes])
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    scores = torch.rand(3, 3, n_nodes, generator=torch.Generator().manual_seed(2))
    masks = top(scores, sizes[:, None])
    polished, kl = polish(scorer, masks, scores, rounds=8, thorough=thorough)
    assert torch.equal(polished.sum(-1), masks.sum(-1))
    assert (kl <= scorer(masks) + 1e-6).all()
    assert_close(kl, scorer(polished), atol=1e-5, rtol=1e-4)
    every = every_subgraph(n_nodes, 3)
    best = scorer(every[:, None].expand(-1, 3, -1)).min(0).values
    assert (kl[0] >= best - 1e-6).all()
    assert (kl[0].mean() - best.mean()) < 0.5 * (scorer(masks)[0].mean() - best.mean())


@pytest.mark.parametrize(
    ("thorough", "many", "reach"), [(False, 1, "BROAD"), (True, polish_module.LARGE_GRAPH_NODES, "THOROUGH")]
)
def test_more_is_tried_in_large_graphs_and_in_shared_masks(
    masked_lm: MaskedLM, thorough: bool, many: int, reach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all nodes to choose from no exchange of the one that helps most for the one missed least is left."""
    n_nodes, scorer = masked_lm.graph.n_nodes, MaskScorer(masked_lm, texts(), GROUPS)
    monkeypatch.setattr(polish_module, "LARGE_GRAPH_NODES", many)
    monkeypatch.setattr(polish_module, reach, polish_module.SearchWidth(n_nodes, (n_nodes, n_nodes), 0.0, 0.0))
    scores = torch.rand(1, 3, n_nodes, generator=torch.Generator().manual_seed(3))
    polished, kl = polish(scorer, top(scores, torch.tensor([[6]])), scores, 50, thorough)
    for group in range(3):
        closed, opened = (~polished[0, group]).nonzero()[:, 0], polished[0, group].nonzero()[:, 0]
        grown = polished[0].repeat(len(closed), 1, 1)
        grown[range(len(closed)), group, closed] = True
        grown = grown[scorer(grown)[:, group].argmin()]
        shrunk = grown.repeat(len(opened), 1, 1)
        shrunk[range(len(opened)), group, opened] = False
        assert scorer(shrunk)[:, group].min() >= kl[0, group] - 1e-5


class Table(MaskScorer):
    """Says of some masks what is written down; of what is not, that it is bad."""

    n_groups = 1

    def __init__(self, written: dict[tuple[int, ...], float]) -> None:
        self.written, self.subsample = written, None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __call__(self, masks: Tensor, groups: Tensor | None = None) -> Tensor:
        return torch.tensor([[self.written.get(tuple(mask[0].nonzero()[:, 0].tolist()), 5.0)] for mask in masks])

    def gradient(self, masks: Tensor, groups: Tensor | None = None, inverse_temperature: float = 1.0) -> Tensor:
        return torch.arange(1.0 * masks.shape[-1]).expand(masks.shape)


@pytest.mark.parametrize("n_nodes", [4, 40])  # all pairs are tried, or a few
def test_where_shared_masks_are_stuck_nodes_to_open_and_to_close_are_tried_with_each_other(n_nodes: int) -> None:
    """Node 2 helps most but makes none of the others idle, and elimination and growth both end at nodes 0 and 1."""
    scorer = Table({(1,): 1.5, (0, 1, 2): 0.5, (0, 1, 3): 0.6, (0, 1): 1.0, (0, 3): 0.1})
    masks = (torch.arange(n_nodes) < 2)[None, None]
    for thorough, best in ((False, [0, 1]), (True, [0, 3])):
        polished, _ = polish(scorer, masks, torch.zeros(1, 1, n_nodes), 4, thorough)
        assert polished[0, 0].nonzero()[:, 0].tolist() == best


def test_where_no_pair_of_a_few_nodes_helps_two_are_tried() -> None:
    """Only both at once bring nodes 0 and 1, where elimination and growth end, to nodes 2 and 3."""
    scorer = Table({(0, 1, 2, 3): 0.5, (0, 1, 2): 0.4, (1,): 1.5, (0, 1): 1.0, (0, 3): 2.0, (2, 3): 0.1})
    polished, kl = polish(scorer, (torch.arange(5) < 2)[None, None], torch.zeros(1, 1, 5), 4, thorough=True)
    assert polished[0, 0].nonzero()[:, 0].tolist() == [2, 3] and kl.item() == pytest.approx(0.1)


class Weights(MaskScorer):
    """Every closed node costs what it weighs; a glimpse weighs otherwise."""

    n_groups = 1

    def __init__(self, weights: list[float], at_a_glimpse: list[float] | None = None) -> None:
        self.weights, self.judged = torch.tensor(weights), 0
        self.subsample = Weights(at_a_glimpse) if at_a_glimpse else None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __call__(self, masks: Tensor, groups: Tensor | None = None) -> Tensor:
        self.judged += len(masks)
        return (~masks * self.weights).sum(-1)

    def gradient(self, masks: Tensor, groups: Tensor | None = None, inverse_temperature: float = 1.0) -> Tensor:
        return torch.arange(1.0 * masks.shape[-1]).expand(masks.shape)  # poor ones first


def test_polish_of_shared_masks_judges_by_all_texts_what_looks_best_at_a_glimpse() -> None:
    weights, masks = [1.0, 2, 3, 4, 5, 6, 7, 9], torch.eye(8, dtype=torch.bool)[None, :1]
    whole, raced = Weights(weights), Weights(weights, at_a_glimpse=[1.0, 2, 3, 4, 5, 6, 9, 7])
    for scorer in (whole, raced):
        polished, _ = polish(scorer, masks, torch.zeros(1, 1, 8), 4, thorough=True)
        assert polished[0, 0].nonzero()[:, 0].tolist() == [7]
    assert raced.judged < whole.judged


def test_polish_of_shared_masks_is_no_worse_than_elimination_and_growth(
    masked_lm: MaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a single swap: the way down begins with all nodes and the way back with none, whatever was learned."""
    n_nodes, scorer = masked_lm.graph.n_nodes, MaskScorer(masked_lm, texts(), GROUPS)
    monkeypatch.setattr(polish_module, "THOROUGH", polish_module.SearchWidth(n_nodes, (n_nodes, n_nodes), 0.0, 0.0))
    scores = torch.rand(1, 3, n_nodes, generator=torch.Generator().manual_seed(2))
    for size in (5, 8, 11):
        _, kl = polish(scorer, top(scores, torch.tensor([[size]])), scores, rounds=0, thorough=True)
        for forward in (False, True):
            assert (kl <= scorer(greedy(scorer, [size], n_nodes, forward)) + 1e-6).all()


def test_the_best_node_to_close_first_is_found_whatever_the_scores(masked_lm: MaskedLM) -> None:
    n_nodes, scorer = masked_lm.graph.n_nodes, MaskScorer(masked_lm, texts(), GROUPS)
    _, best = single_ablation(scorer, n_nodes).min(-1)
    scores = torch.zeros(1, 3, n_nodes).scatter(-1, best[None, :, None], 1.0)
    masks = top(scores + torch.arange(n_nodes) / n_nodes**2, torch.tensor([[n_nodes - 1]]))
    polished, _ = polish(scorer, masks, scores, rounds=1)
    assert (~polished[0]).nonzero()[:, 1].tolist() == best.tolist()


def test_polish_learns_from_the_next_larger_and_the_next_smaller_size(masked_lm: MaskedLM) -> None:
    """Without a single swap, good masks at one end of the sizes bring about better ones at all others."""
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


def test_the_best_restart_stays(masked_lm: MaskedLM) -> None:
    n_nodes, sizes = masked_lm.graph.n_nodes, torch.tensor([4, 10])
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    for family_sizes in (1, 2):
        bank = GateBank(8, family_sizes, n_nodes)  # room for four groups of two restarts; three are there
        torch.nn.init.normal_(bank.log_odds, generator=torch.Generator().manual_seed(3))
        settled = Projected().adjust_log_odds(bank.log_odds.detach().expand(-1, 2, -1), sizes)
        found = cut(bank, settled, sizes, scorer, restarts=2, temperature=0.5, rounds=0)
        masks, scores = found.mask, found.scores
        assert masks.shape == (3, 2, n_nodes) and scores.shape == (3, family_sizes, n_nodes)
        each = bank.discretize(sizes).unflatten(0, (4, 2))[:3].permute(1, 2, 0, 3)  # (restarts, sizes, groups, nodes)
        kl = torch.stack([scorer(some) for some in each]).log()
        if family_sizes == 2:
            assert_close(scorer(masks.transpose(0, 1)).log(), kl.min(0).values)
        else:
            assert_close(scorer(masks.transpose(0, 1)).log().sum(0), kl.sum(1).min(0).values)
            assert not (masks[:, 0] & ~masks[:, 1]).any()  # one restart for all sizes: still nested


def test_what_cutting_costs_is_said(masked_lm: MaskedLM) -> None:
    """Where gates have made up their minds, soft, sampled and discrete ones are the same; else they are not."""
    n_nodes, sizes = masked_lm.graph.n_nodes, torch.tensor([4, 10])
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    bank = GateBank(3, 1, n_nodes)
    torch.nn.init.normal_(bank.log_odds, generator=torch.Generator().manual_seed(3))
    masks = bank.discretize(sizes)
    certain = torch.where(masks, 20.0, -20.0)
    found = cut(bank, certain, sizes, scorer, restarts=1, temperature=0.5, rounds=4)
    soft, sampled, discrete, polished = found.kl.unbind(-1)
    assert_close(soft, discrete, atol=1e-5, rtol=1e-4)
    assert_close(sampled, discrete, atol=1e-5, rtol=1e-4)
    assert_close(discrete, scorer(masks.transpose(0, 1)).T, atol=1e-5, rtol=1e-4)
    assert_close(polished, scorer(found.mask.transpose(0, 1)).T, atol=1e-5, rtol=1e-4)
    assert polished.mean() < discrete.mean()
    unsure = Projected().adjust_log_odds(bank.log_odds.detach().expand(-1, 2, -1), sizes)
    soft, sampled, *_ = cut(bank, unsure, sizes, scorer, 1, 0.5, rounds=0).kl.unbind(-1)
    assert_close(soft, scorer(unsure.sigmoid().transpose(0, 1)).T, atol=1e-5, rtol=1e-4)
    assert not torch.isclose(soft, discrete, rtol=0.01).any() and not torch.isclose(sampled, soft, rtol=0.01).any()
