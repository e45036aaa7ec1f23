"""The mask scorer: KL per group, its gradient, and the subsample of the texts."""

import pytest
import torch
from conftest import GROUPS, by_hand, texts, tiny_llama
from torch import Tensor
from torch.testing import assert_close

from masklearn.data import Batch
from masklearn.masking import MaskedLM
from masklearn.selection.candidates import best_candidate
from masklearn.selection.polish import PER_INPUT
from masklearn.selection.scorer import MaskScorer
from masklearn.selection.swaps import openings


def test_the_kl_of_a_group_is_the_mean_over_its_own_scored_positions(masked_lm: MaskedLM) -> None:
    masks = torch.rand(2, 3, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(1)) > 0.4
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    found = scorer(masks)
    for k in range(2):
        for i, group in enumerate(GROUPS):
            assert found[k, i].item() == pytest.approx(by_hand(masked_lm, masks[k, i], group), abs=1e-5)
    subset = torch.tensor([2, 0])
    assert_close(scorer(masks[:, subset], subset), found[:, subset])
    assert_close(scorer.gradient(masks[0, subset], subset), scorer.gradient(masks[0])[subset], atol=1e-5, rtol=1e-4)


def test_the_subsample_has_every_fourth_text_of_every_group(masked_lm: MaskedLM) -> None:
    groups = torch.tensor([7, 3, 3] * 64)
    ids = torch.randint(3, 50, (192, 5), generator=torch.Generator().manual_seed(3))
    scored = torch.arange(5) >= torch.randint(4, (192, 1), generator=torch.Generator().manual_seed(4))

    def scorer(chosen: Tensor) -> MaskScorer:
        batches = [Batch(ids[i], torch.ones_like(scored[i]), scored[i], i, groups[i]) for i in chosen.split(50)]
        return MaskScorer(masked_lm, batches, (3, 7))

    masks = torch.rand(2, 2, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(1)) > 0.4
    subsample = scorer(torch.arange(192)).subsample
    kept = torch.cat([(groups == group).nonzero()[::4, 0] for group in (3, 7)])
    assert subsample is not None
    assert sum(len(scored.group_index) for scored in subsample.batches) == 128 // 4 + 64 // 4
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


def test_a_kl_that_is_not_a_number_never_wins(masked_lm: MaskedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first mask's KL is lost; swaps still open and close one node each, without a gradient to go by."""
    scorer, n_nodes = MaskScorer(masked_lm, texts(), GROUPS), masked_lm.graph.n_nodes
    masks = torch.rand(4, 3, n_nodes, generator=torch.Generator().manual_seed(1)) > 0.4
    kl = torch.tensor([[torch.nan], [1], [2], [3]]).expand(4, 3)
    monkeypatch.setattr(MaskScorer, "_kl_of_all", lambda *_: kl)
    assert scorer(masks).argmin(0).tolist() == [1, 1, 1]
    assert best_candidate(scorer, masks, torch.arange(3))[0].equal(masks[1])
    monkeypatch.setattr(MaskScorer, "_gradient", lambda *args: torch.full_like(args[2], torch.nan))
    opened = openings(scorer, masks[0], torch.arange(3), 1, PER_INPUT.swap)
    assert (opened.sum(-1) == masks[0].sum(-1) + 1).all()


def test_float16_gradients_of_long_texts_are_finite() -> None:
    """A text's gradients, summed over many positions in float16, would overflow."""
    lm, zero = tiny_llama(), torch.zeros(1, dtype=torch.long)
    lm.get_output_embeddings().weight.data.mul_(200)
    ids = torch.randint(3, 50, (1, 400), generator=torch.Generator().manual_seed(3))
    batch = Batch(ids, ids > 0, ids > 0, zero, zero)
    exact, narrow = (
        MaskScorer(MaskedLM(lm.to(dtype)), [batch]).gradient(torch.full((1, 15), 0.3))
        for dtype in (torch.float32, torch.float16)
    )
    largest = float(exact.abs().max())
    assert largest * 400 > torch.finfo(torch.float16).max
    assert_close(narrow, exact, rtol=0, atol=0.05 * largest)


def test_a_group_cannot_be_given_twice(masked_lm: MaskedLM) -> None:
    with pytest.raises(ValueError, match=r"groups \[3, 7\] are given more than once"):
        MaskScorer(masked_lm, texts(), [7, 3, 9, 3, 7])
