"""From learned gates to discrete masks: restarts, and the KL at every stage."""

from functools import partial

import torch
from conftest import GROUPS, texts
from torch.testing import assert_close

from masklearn.gates import GateBank
from masklearn.masking import MaskedLM
from masklearn.selection.discretization import discretize
from masklearn.selection.polish import polish
from masklearn.selection.scorer import MaskScorer
from masklearn.training.budget import Projected


def test_the_best_restart_of_every_mask_is_kept(masked_lm: MaskedLM) -> None:
    n_nodes, sizes = masked_lm.graph.n_nodes, torch.tensor([4, 10])
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    for family_sizes in (1, 2):
        bank = GateBank(8, family_sizes, n_nodes)  # four groups of two restarts, of which the scorer has three
        torch.nn.init.normal_(bank.log_odds, generator=torch.Generator().manual_seed(3))
        adjusted = Projected().adjust_log_odds(bank.log_odds.detach().expand(-1, 2, -1), sizes)
        found = discretize(bank, adjusted, sizes, scorer, restarts=2, temperature=0.5)
        masks, scores = found.mask, found.scores
        assert masks.shape == (3, 2, n_nodes) and scores.shape == (3, family_sizes, n_nodes)
        by_restart = (
            bank.discretize(sizes).unflatten(0, (4, 2))[:3].permute(1, 2, 0, 3)
        )  # (restarts, sizes, groups, nodes)
        kl = torch.stack([scorer(restart) for restart in by_restart]).log()
        if family_sizes == 2:
            assert_close(scorer(masks.transpose(0, 1)).log(), kl.min(0).values)
        else:
            assert_close(scorer(masks.transpose(0, 1)).log().sum(0), kl.sum(1).min(0).values)
            assert not (masks[:, 0] & ~masks[:, 1]).any()  # one restart for all sizes: still nested


def test_every_stage_has_the_kl_of_its_gates(masked_lm: MaskedLM) -> None:
    """Soft, sampled and discrete gates have the same KL where every gate is all but certain, and differ elsewhere."""
    n_nodes, sizes = masked_lm.graph.n_nodes, torch.tensor([4, 10])
    scorer = MaskScorer(masked_lm, texts(), GROUPS)
    bank = GateBank(3, 1, n_nodes)
    torch.nn.init.normal_(bank.log_odds, generator=torch.Generator().manual_seed(3))
    masks = bank.discretize(sizes)
    certain = torch.where(masks, 20.0, -20.0)
    found = discretize(bank, certain, sizes, scorer, restarts=1, temperature=0.5, polish=partial(polish, rounds=4))
    soft, sampled, discrete, polished = found.kl.unbind(-1)
    assert_close(soft, discrete, atol=1e-5, rtol=1e-4)
    assert_close(sampled, discrete, atol=1e-5, rtol=1e-4)
    assert_close(discrete, scorer(masks.transpose(0, 1)).T, atol=1e-5, rtol=1e-4)
    assert_close(polished, scorer(found.mask.transpose(0, 1)).T, atol=1e-5, rtol=1e-4)
    assert polished.mean() < discrete.mean()
    uncertain = Projected().adjust_log_odds(bank.log_odds.detach().expand(-1, 2, -1), sizes)
    soft, sampled, *_ = discretize(bank, uncertain, sizes, scorer, 1, 0.5).kl.unbind(-1)
    assert_close(soft, scorer(uncertain.sigmoid().transpose(0, 1)).T, atol=1e-5, rtol=1e-4)
    assert not torch.isclose(soft, discrete, rtol=0.01).any() and not torch.isclose(sampled, soft, rtol=0.01).any()


def test_a_diagnostic_costs_one_scoring_of_the_masks_unless_more_draws_are_requested(masked_lm: MaskedLM) -> None:
    sizes, scored = torch.tensor([4, 10]), list[int]()

    class Counting(MaskScorer):
        def __call__(self, masks: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
            scored.append(len(masks))
            return super().__call__(masks, groups)

    scorer = Counting(masked_lm, texts(), GROUPS)
    bank = GateBank(3, 1, masked_lm.graph.n_nodes)
    log_odds = Projected().adjust_log_odds(bank.log_odds.detach().expand(-1, 2, -1), sizes)
    discretize(bank, log_odds, sizes, scorer, 1, 0.5)
    assert scored == [2, 2, 2]  # soft, sampled and cut
    scored.clear()
    discretize(bank, log_odds, sizes, scorer, 1, 0.5, n_samples=16)
    assert scored == [2] * 18
    scored.clear()
    found = discretize(bank, log_odds, sizes, scorer, 1, 0.5, partial(polish, rounds=1, budget=0), n_samples=0)
    assert scored == [2]  # cut, from which polish starts
    assert found.kl[..., :2].isnan().all()
    assert found.kl[..., 2].equal(found.kl[..., 3])
