"""Learners and texts that are used again, and fits that cannot end as planned."""

from itertools import islice
from typing import Any

import pytest
import torch
from lightning import Trainer

import masklearn as ml
from masklearn.errors import NonFiniteLoss
from masklearn.masking import MaskedLM
from masklearn.progress import no_bar
from masklearn.selection.scorer import MaskScorer
from masklearn.tiny import tasks
from masklearn.training import full_targets

QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
QUIET |= {"limit_val_batches": 0, "enable_checkpointing": False, "accelerator": "cpu"}


def fit(learner: ml.MaskLearner, task: Any, steps: int = 8, **flags: Any) -> ml.MaskLearner:
    """Learn masks of 40 texts of a task."""
    Trainer(max_steps=steps, **QUIET | flags).fit(learner, datamodule=ml.MaskData(task=task, limit=40))
    return learner


def test_a_learner_is_fitted_again_to_other_texts() -> None:
    """Masks of the first texts, which it holds in memory, are not those of the second."""
    learner, fresh = (ml.MaskLearner(steps=8, sizes=[3], polish=0) for _ in range(2))
    first = fit(learner, "names").discretize()
    assert learner.discretize() is first
    second, expected = fit(learner, "agreement").discretize(), fit(fresh, "agreement").discretize()
    assert torch.equal(second.scores, expected.scores) and not torch.equal(second.scores, first.scores)
    assert learner.stages == fresh.stages


def test_a_fit_that_ends_early_has_no_masks() -> None:
    learner = fit(ml.MaskLearner(steps=4, sizes=[3]), "names", steps=2)
    with pytest.raises(ml.UserError, match="training ended before its last step"):
        learner.discretize()


def test_accumulated_gradients_are_refused() -> None:
    with pytest.raises(ml.UserError, match="accumulates gradients of 2 batches"):
        fit(ml.MaskLearner(steps=2), "names", steps=2, accumulate_grad_batches=2)


def test_a_precision_of_the_trainer_is_refused() -> None:
    with pytest.raises(ml.UserError, match="precision 'bf16-true'.*MaskLearner"):
        fit(ml.MaskLearner(steps=2), "names", steps=2, precision="bf16-true")


def test_a_fit_that_fails_does_not_spoil_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = ml.MaskLearner(steps=2, sizes=[3], polish=0)
    with monkeypatch.context() as patch:
        patch.setattr("masklearn.training.learner.LOG_KL_EPS", float("nan"))
        with pytest.raises(NonFiniteLoss, match="at step 0"):
            fit(learner, "names", steps=2)
    assert fit(learner, "names", steps=2).discretize().mask.sum() == 3


@pytest.mark.parametrize("ablation", ["zero", "learned"])
def test_masks_are_finished_where_gradients_are_off(ablation: Any) -> None:
    learner = fit(ml.MaskLearner(steps=2, sizes=[3], polish_budget=0.1, ablation=ablation), "names", steps=2)
    with torch.no_grad():
        assert learner.discretize().mask.sum() == 3


@pytest.mark.parametrize(("steps", "kept"), [(1, False), (8, True)])
def test_the_full_model_runs_ahead_only_on_texts_that_steps_use(steps: int, kept: bool) -> None:
    """80 % of 40 texts, 4 in a step; other targets are computed in their step."""
    masked_lm, data = MaskedLM(ml.load_lm()), ml.MaskData(task="names", limit=40, batch_size=4)
    data.setup("fit")
    targets = full_targets.FullTargets.of_block(masked_lm, data, [0], steps, no_bar)
    assert (targets is not None) == kept


def test_masks_without_polish_have_the_kl_of_the_constants_that_are_saved() -> None:
    learner = fit(ml.MaskLearner(steps=4, sizes=[5], polish=0, ablation="learned"), "names", steps=4)
    bank = learner.discretize()
    (stage,) = learner.stages
    scorer = MaskScorer(MaskedLM(ml.load_lm(), bank.ablation), learner.finisher.data.loader("selection"))
    assert stage["polished"] == pytest.approx(scorer(bank.mask[0][:, None]).item(), rel=1e-4)


def test_texts_that_are_set_up_already_are_checked_before_they_are_learned_on() -> None:
    data = ml.MaskData(texts=[*islice(tasks.texts(), 2)])
    data.setup()
    with pytest.raises(ml.UserError, match="holds 2 different texts, but the train, validation and test splits"):
        data.setup("fit")


def test_a_plan_of_smaller_steps_ends_with_it() -> None:
    data = ml.MaskData(task="names", limit=40, batch_size=8)
    data.setup("fit")
    data.use_plan(data.block_plan(1, 2, batch_size=3))
    assert data.texts_per_group == 3
    data.use_plan(None)
    assert data.texts_per_group == 8
