"""The budget of a polish: where it stops, what it reaches, and what it scores once."""

from contextlib import nullcontext

import pytest
import torch
from conftest import GROUPS, texts
from torch import Tensor
from torch.testing import assert_close

from masklearn.data import Batch
from masklearn.gates import top
from masklearn.masking import MaskedLM
from masklearn.selection.polish import SHARED, polish
from masklearn.selection.scorer import MaskScorer


def test_a_polish_stops_at_its_budget_with_masks_no_worse_than_before(masked_lm: MaskedLM) -> None:
    n_nodes, scorer = masked_lm.graph.n_nodes, MaskScorer(masked_lm, texts(), GROUPS)
    sizes = torch.tensor([3, 8])
    scores = torch.rand(2, 3, n_nodes, generator=torch.Generator().manual_seed(2))
    masks = top(scores, sizes[:, None])
    start = scorer(masks)
    unlimited, kl_unlimited = polish(scorer, masks, scores, rounds=2)
    whole = scorer.tokens.spent
    assert whole > 0 and scorer.tokens.untried_steps == 0
    unchanged, kl = polish(scorer, masks, scores, rounds=2, budget=0)
    assert torch.equal(unchanged, masks) and scorer.tokens.untried_steps == 6
    previous = start
    for budget in (0.1 * whole, 0.4 * whole, 0.8 * whole):
        found, kl = polish(scorer, masks, scores, rounds=2, budget=budget)
        largest_charge = 3 * 50 * sum(scored.batch.input_ids.numel() for scored in scorer.batches)
        assert scorer.tokens.spent <= budget + largest_charge
        assert torch.equal(found.sum(-1), masks.sum(-1)) and scorer.tokens.untried_steps > 0
        assert_close(kl, scorer(found), atol=1e-5, rtol=1e-4)
        assert (kl <= previous + 1e-6).all()
        previous = kl
    enough, kl = polish(scorer, masks, scores, rounds=2, budget=whole + 1)
    assert torch.equal(enough, unlimited) and torch.equal(kl, kl_unlimited)


def test_a_small_budget_reaches_every_size(masked_lm: MaskedLM) -> None:
    n_nodes, scorer = masked_lm.graph.n_nodes, MaskScorer(masked_lm, texts(), GROUPS)
    sizes = torch.tensor([3, 5, 8])
    scores = torch.rand(3, 3, n_nodes, generator=torch.Generator().manual_seed(2))
    masks = top(scores, sizes[:, None])
    n_tokens = sum(scored.batch.input_ids.numel() for scored in scorer.batches)
    one_swap_each = sum(SHARED.swap.tokens(size) for size in sizes.tolist()) * n_tokens
    found, kl = polish(scorer, masks, scores, rounds=4, budget=one_swap_each)
    assert (found != masks).any(-1).any(-1).all()
    assert (kl.mean(1) < scorer(masks).mean(1)).all()
    assert scorer.tokens.untried_steps >= 6  # neither the way up nor the way down


def one_group() -> list[Batch]:
    """Two texts that share their masks."""
    return [texts()[0]._replace(group=torch.zeros(2, dtype=torch.long))]


def test_a_mask_is_scored_once_while_the_scorer_remembers(masked_lm: MaskedLM) -> None:
    scorer, again = (MaskScorer(masked_lm, one_group()) for _ in range(2))
    masks = torch.rand(6, 1, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(0)) > 0.3
    twice, n_tokens = torch.cat([masks[2:], masks, masks[:1]]), scorer.batches[0].n_tokens
    with scorer.remembering():
        assert_close(scorer(twice), again(twice))
        assert scorer.tokens.spent <= 6 * n_tokens < again.tokens.spent
        before = scorer.tokens.spent
        assert torch.equal(scorer(twice.flip(0)), scorer(twice).flip(0)) and scorer.tokens.spent == before
        for inverse_temperature in (1.0, 2.0, 1.0):
            assert_close(scorer.gradient(masks[0], None, inverse_temperature),
                         again.gradient(masks[0], None, inverse_temperature))  # fmt: skip
        assert scorer.tokens.spent == before + 2 * 3 * n_tokens
        scorer(masks.float())  # as gates that may be half-open
        assert scorer.tokens.spent > before + 2 * 3 * n_tokens
    before = scorer.tokens.spent
    scorer(masks)
    assert scorer.tokens.spent > before


def test_polish_of_shared_masks_scores_fewer_tokens_for_the_same_masks(
    masked_lm: MaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, spent = list[Tensor](), list[float]()
    for remembers in (True, False):
        scorer = MaskScorer(masked_lm, one_group())
        if not remembers:
            monkeypatch.setattr(MaskScorer, "remembering", lambda self: nullcontext())
        masks = torch.stack([torch.arange(masked_lm.graph.n_nodes)[None] < size for size in (3, 6, 9)])
        found.append(polish(scorer, masks, torch.zeros_like(masks, dtype=torch.float), 4)[0])
        spent.append(scorer.tokens.spent)
    assert torch.equal(*found) and spent[0] < 0.9 * spent[1]
