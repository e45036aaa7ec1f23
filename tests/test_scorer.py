"""The mask scorer: KL per group, its gradient, and the subsample of the texts."""

import pytest
import torch
from conftest import GROUPS, by_hand, texts
from torch import Tensor
from torch.testing import assert_close

from masklearn.data import Batch
from masklearn.masking import MaskedLM
from masklearn.selection.scorer import MaskScorer


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


def test_a_group_cannot_be_given_twice(masked_lm: MaskedLM) -> None:
    with pytest.raises(ValueError, match=r"groups \[3, 7\] are given more than once"):
        MaskScorer(masked_lm, texts(), [7, 3, 9, 3, 7])
