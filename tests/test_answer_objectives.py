"""Objectives of answers: logit difference and cross-entropy in place of the KL."""

from typing import Any

import pytest
import torch
from conftest import refused
from test_mib import ioi_rows
from torch import Tensor

import masklearn as ml
from masklearn.data import Batch
from masklearn.masking import MaskedLM
from masklearn.objective import answer_loss
from masklearn.selection.losses import losses
from masklearn.selection.scorer import MaskScorer


def test_losses_of_answers_by_hand() -> None:
    logp = torch.tensor([[[0.5, 0.25, 0.125, 0.125]]]).log()
    right, wrong = torch.tensor([[0, -1]]), torch.tensor([[1, 2]])
    difference = torch.tensor(0.5).log() - (torch.tensor(0.25).log() + torch.tensor(0.125).log()) / 2
    expected = -torch.sigmoid(difference).log()
    torch.testing.assert_close(answer_loss("logit-diff", logp, right, wrong), expected.view(1, 1))
    both = answer_loss("cross-entropy", logp, torch.tensor([[0, 1]]), None)
    torch.testing.assert_close(both, -torch.tensor([[0.75]]).log())


def pairs() -> tuple[MaskedLM, ml.MaskData]:
    data = ml.MaskData(texts=ioi_rows(24), positions="last", bos="always")
    data.setup("fit")
    return MaskedLM(ml.load_lm(), ml.Ablation("resample")), data


@pytest.mark.parametrize("objective", ["logit-diff", "cross-entropy"])
def test_masks_are_scored_by_the_answers_of_whole_logits(objective: Any) -> None:
    """For two masks, one text at a time; a text without answers does not count."""
    masked_lm, data = pairs()
    batch = next(iter(data.loader("all", batch_size=5)))
    assert batch.answers is not None and batch.wrong is not None and batch.corrupted is not None
    batch.answers[2] = -1
    batch = batch._replace(answered=None, contrasted=None)  # found again
    masks = torch.rand(2, 1, 36, generator=torch.Generator().manual_seed(0)) > 0.3
    found = MaskScorer(masked_lm, [batch], objective=objective)(masks)[:, 0]
    for mask, value in zip(masks[:, 0], found, strict=True):
        by_hand = []
        for i in (0, 1, 3, 4):
            n = int(batch.real[i].sum())
            with ml.gated(masked_lm.lm, mask, masked_lm.resampled(batch.corrupted[i : i + 1, :n])), torch.no_grad():
                logp = masked_lm.lm(batch.input_ids[i : i + 1, :n]).logits[0, -1].log_softmax(-1)
            right, wrong = logp[batch.answers[i, 0]], logp[batch.wrong[i, 0]]
            by_hand.append(-torch.sigmoid(right - wrong).log() if objective == "logit-diff" else -right)
        torch.testing.assert_close(value, torch.stack(by_hand).mean(), atol=1e-5, rtol=1e-4)


def test_a_loss_of_answers_has_the_gradient_of_its_logits() -> None:
    """With respect to gates, against finite differences."""
    masked_lm, data = pairs()
    batch = next(iter(data.loader("all", batch_size=3)))
    gates = torch.full((1, 3, 36), 0.7, dtype=torch.float32)

    def value(of: Tensor) -> Tensor:
        masked = masked_lm(batch.input_ids, batch.scored, of, batch.corrupted)
        return losses("logit-diff", masked_lm, batch, None, masked).values.sum()

    (gradient,) = torch.autograd.grad(value(start := gates.clone().requires_grad_()), start)
    step = torch.zeros_like(gates)
    step[0, 1] = 1e-2 * torch.sign(gradient[0, 1])
    with torch.no_grad():
        slope = (value(gates + step) - value(gates - step)) / 2
    torch.testing.assert_close(slope, (gradient * step).sum(), atol=1e-3, rtol=0.05)


@pytest.mark.parametrize("objective", ["logit-diff", "cross-entropy"])
def test_an_objective_needs_its_answers(objective: str) -> None:
    learner = ml.MaskLearner(objective=objective, steps=1)
    data = ml.MaskData(limit=24)
    data.setup()
    learner.load()
    message = refused(lambda: learner.plan_blocks(data))
    assert f"model.objective {objective} needs" in message and "--data.answer_column" in message
    assert "--model.objective" in refused(
        lambda: ml.MaskLearner(graph="edges", scope="input", method="s-trace", objective=objective)
    )


def test_masks_scored_without_any_answer_are_all_alike_and_numbers() -> None:
    masked_lm = MaskedLM(ml.load_lm())
    ids = torch.randint(3, 50, (64, 5), generator=torch.Generator().manual_seed(3))
    none = torch.full((64, 1), -1)
    real, group = torch.ones(64, 5, dtype=torch.bool), torch.zeros(64, dtype=torch.long)
    batch = Batch(ids, real, real, torch.arange(64), group, answers=none)
    scorer = MaskScorer(masked_lm, [batch], objective="cross-entropy")
    masks = torch.rand(2, 1, masked_lm.graph.n_nodes, generator=torch.Generator().manual_seed(1)) > 0.4
    assert scorer(masks).tolist() == [[0], [0]] and scorer.subsample is None


def test_masks_of_an_objective_have_a_lower_loss_than_random_ones() -> None:
    bank = ml.learn(
        texts=ioi_rows(12), sizes=[9], ablation="resample", objective="logit-diff", positions="last", bos="always",
        steps=15, polish=0, progress=False,
    )  # fmt: skip
    scorer = MaskScorer(bank.masked_lm, bank.data.loader("all"), objective="logit-diff")
    random = torch.rand(8, 1, 36, generator=torch.Generator().manual_seed(0)).argsort(-1) < 9
    assert scorer(bank.mask.mask)[0, 0] < scorer(random).min() / 2
