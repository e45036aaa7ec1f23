"""A training step costs little beside the model, and never waits for the device; a bad step changes nothing."""

from typing import Any

import pytest
import torch
from lightning import Trainer
from operations import READS_BACK, CountedSteps, Operations

import masklearn as ml
from masklearn.errors import NonFiniteLoss
from masklearn.training.step_guard import StepGuard

MAX_EXTRA_OPERATIONS = 200


def counted_step(data: ml.MaskData, **settings: Any) -> tuple[ml.MaskLearner, dict[str, int]]:
    """A learner, and how often its fourth step runs every operation."""
    learner, counted = ml.MaskLearner(sizes="log:12", steps=6, draws=4, **settings), CountedSteps()
    trainer = Trainer(
        accelerator="cpu", max_steps=6, logger=False, enable_checkpointing=False, callbacks=[counted],
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=100, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(learner, datamodule=data)
    return learner, counted.steps[3].counts


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("settings", [{}, {"gates": "mean-field"}, {"budget": "lagrangian", "family": "independent"}])
def test_a_step_adds_few_operations_to_a_bare_pass_and_reads_nothing_back(settings: dict[str, Any]) -> None:
    data = ml.MaskData(task="mixed", limit=24, batch_size=4)  # 24 texts in six steps: the full model has run before
    learner, step = counted_step(data, **settings)
    assert not READS_BACK & set(step), "the step waits for the device"
    lm, input_ids = learner.masked_lm.lm, next(iter(data.loader("train"))).input_ids.repeat(4, 1)
    embeddings = lm.get_input_embeddings()(input_ids).requires_grad_()
    with Operations() as bare:
        lm(inputs_embeds=embeddings, use_cache=False).logits.float().sum().backward()
    assert sum(step.values()) <= sum(bare.counts.values()) + MAX_EXTRA_OPERATIONS


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("objective", ["logit-diff", "cross-entropy"])
def test_a_step_on_answers_reads_nothing_back(objective: str) -> None:
    step = counted_step(ml.MaskData(task="names", positions="last", limit=30, batch_size=4), objective=objective)[1]
    assert not READS_BACK & set(step), "the step waits for the device"


def test_the_guard_names_the_first_bad_step_and_skips_from_there_on() -> None:
    guard, good, bad = StepGuard(), torch.tensor(1.0), torch.tensor(float("nan"))
    gates, constants = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    gates.grad, constants.grad = torch.ones(2), torch.ones(2)
    assert guard.note(good, [gates, constants], 0) == 0
    guard.check()
    constants.grad = torch.tensor([1.0, float("inf")])
    assert guard.note(good, [gates, constants], 4) == 1
    assert guard.note(bad, [gates], 7) == 1
    assert guard.note(good, [gates], 8) == 1
    with pytest.raises(NonFiniteLoss, match="the loss at step 7"):
        guard.check()
    guard.check(before=4)
    with pytest.raises(NonFiniteLoss, match="the gradient at step 4"):
        guard.check(before=5)


def test_a_skipped_update_leaves_gates_and_optimiser_as_they_were() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], lr=0.1, fused=True)
    for found_inf, gradient in ((0.0, 1.0), (1.0, float("nan"))):
        parameter.grad = torch.full((3,), gradient)
        optimizer.found_inf = torch.tensor(found_inf)  # pyright: ignore[reportAttributeAccessIssue]
        before = parameter.detach().clone()
        optimizer.step()
    assert torch.equal(parameter, before) and parameter.isfinite().all()
    state = optimizer.state[parameter]
    assert state["step"] == 1 and state["exp_avg"].isfinite().all()
