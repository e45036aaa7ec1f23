import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llama
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.masking import MaskedLM
from masklearn.selection import polish as polish_module
from masklearn.selection.scorer import MaskScorer
from masklearn.training import block_learner, full_targets
from masklearn.training import learner as learner_module
from masklearn.training.block_store import BlockStore
from masklearn.training.learned_ablation import LearnedConstants

LAGRANGIAN = {"budget": "lagrangian", "family": "independent", "lr": 0.8}
METHODS = ({}, {"family": "independent"}, {"gates": "mean-field"}, LAGRANGIAN)


def trainer(steps: int, folder: Path, **settings: object) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    checkpoint = ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    return Trainer(max_steps=steps, accelerator="cpu", callbacks=[checkpoint], **quiet | settings)


def learn(folder: Path, data: dict | None = None, lm: str = "embedded", **settings: object) -> ml.MaskLearner:
    learner = ml.MaskLearner(lm, **settings)  # pyright: ignore[reportArgumentType]
    texts = ml.MaskData(**{"task": "names", "limit": 40, "lm": lm} | (data or {}))
    trainer(learner.schedule.steps, folder).fit(learner, datamodule=texts)
    return learner


@pytest.mark.parametrize(
    ("layers", "settings", "expected"),
    [
        (11, {}, (300, 4)),
        (12, {}, (1200, 1)),  # 60 nodes: many steps of one draw, as many scored tokens
        (12, {"steps": 20}, (20, 1)),
        (12, {"draws": 3}, (1200, 3)),
        (11, {"scope": "input"}, (80, 1)),
        (12, {"scope": "input"}, (240, 1)),
    ],
)
def test_steps_and_draws_depend_on_scope_and_model(layers: int, settings: dict, expected: tuple[int, int]) -> None:
    learner = ml.MaskLearner(tiny_llama(layers=layers), **settings)
    learner.load()
    assert (learner.schedule.steps, learner.settings.draws_per_text) == expected


def test_training_leaves_the_model_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[PreTrainedModel] = []

    def load(*args: object, **kwargs: object) -> PreTrainedModel:
        loaded.append(ml.load_lm(*args, **kwargs))  # pyright: ignore[reportArgumentType]
        loaded.append(copy.deepcopy(loaded[0]))
        return loaded[0]

    monkeypatch.setattr(block_learner, "load_lm", load)
    learner = learn(tmp_path, steps=3)
    after, before = loaded
    for (name, now), (_, then) in zip(after.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(now, then), f"{name} has changed"
    assert not any(p.grad is not None for p in after.parameters())
    assert not after.training
    assert learner.bank.log_odds.grad is not None


def test_checkpoints_leave_the_model_out(tmp_path: Path) -> None:
    learn(tmp_path, steps=2, **LAGRANGIAN)
    file = tmp_path / "last.ckpt"
    assert file.stat().st_size < 200_000
    state = torch.load(file, weights_only=True)["state_dict"]
    assert set(state) == {"bank.log_odds", "budget.multiplier", "step_log.sums"}


PLANTED = {"a0.h1", "m0", "a2.h3", "m3"}


def planted(folder: Path) -> str:
    """Save the embedded model with all but four nodes set to zero, and return its folder."""
    lm = ml.load_lm()
    layout = MaskedLM(lm).layout
    for node in layout.graph.nodes:
        if node.name not in PLANTED:
            site = layout.sites[node.layer]
            if node.head is None:
                site.mlp.get_parameter("down_proj.weight").zero_()
            else:
                weight = site.output_projection.get_parameter("weight")
                width = weight.shape[1] // layout.graph.n_heads
                weight[:, node.head * width : (node.head + 1) * width] = 0
    lm.save_pretrained(folder)
    ml.load_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_the_planted_subgraph_is_found(tmp_path: Path, ablation: str, method: dict) -> None:
    """All but four nodes of the model are zero, so these four are the best subgraph of four nodes, with a KL of 0."""
    lm = planted(tmp_path / "lm")
    data = {"positions": "all", "batch_size": 4}
    learner = learn(
        tmp_path,
        data,
        lm,
        sizes=[2, 4, 12],
        ablation=ablation,
        steps=120 if method is LAGRANGIAN else 60,
        polish=0,
        **method,
    )
    mask = learner.discretize()
    kept = {name for name, keep in zip(mask.graph.names, mask.select(s=4), strict=True) if keep}
    assert kept == PLANTED
    assert {name for name, keep in zip(mask.graph.names, mask.select(s=2), strict=True) if keep} < PLANTED


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_expected_sizes_end_at_the_requested_ones(tmp_path: Path, method: dict) -> None:
    sizes = [1, 4, 18, 30, 35]
    learner = learn(tmp_path, {"batch_size": 1}, sizes=sizes, steps=120, polish=0, **method)
    for size, expected in zip(learner.sizes, learner.open_probabilities()[0].sum(-1).tolist(), strict=True):
        assert expected == pytest.approx(size, abs=0.5)
    assert learner.discretize().mask.sum(-1).tolist() == [sizes]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, method: dict) -> None:
    whole = learn(tmp_path / "whole", steps=7, **method)

    killed = ml.MaskLearner(steps=7, **method)
    data = {"task": "names", "limit": 40}
    first = trainer(7, tmp_path / "killed", limit_train_batches=7)

    def kill(*_: object) -> None:
        if killed.global_step == 4:
            raise KeyError

    killed.on_train_batch_end = kill
    with pytest.raises(KeyError):
        first.fit(killed, datamodule=ml.MaskData(**data))
    resumed = ml.MaskLearner(steps=7, **method)
    trainer(7, tmp_path / "killed").fit(
        resumed, datamodule=ml.MaskData(**data), ckpt_path=tmp_path / "killed" / "last.ckpt", weights_only=True
    )
    assert resumed.global_step == 7
    for name, value in whole.budget.state_dict().items() | whole.bank.state_dict().items():
        assert torch.equal((resumed.bank.state_dict() | resumed.budget.state_dict())[name], value)


@pytest.mark.parametrize(("ablation", "sizes"), [("zero", [4, 9]), ("learned", [9])])  # learned: polished twice
def test_a_stopped_polish_resumes_at_its_next_step(
    ablation: str, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learn(
        tmp_path,
        {"limit": 3, "positions": "last"},
        steps=2,
        sizes=sizes,
        polish=1,
        ablation=ablation,
        polish_budget=None,
    )
    resize, done, stops, stop_after = polish_module.resize, [], 0, None

    def interrupted(scorer: MaskScorer, mask: Tensor, *args: Any) -> Any:
        nonlocal stops
        if len(done) == stop_after and not stops:
            stops += 1
            raise KeyboardInterrupt
        done.append(len(mask))
        return resize(scorer, mask, *args)

    monkeypatch.setattr(polish_module, "resize", interrupted)
    monkeypatch.setattr(LearnedConstants, "refit", lambda *_: None)
    uninterrupted, stages = learner.discretize(), learner.stages
    assert len(done) == 4  # each size on the way down and on the way up
    learner.store, learner._bank, stop_after = BlockStore(tmp_path / "blocks"), None, 3
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        learner.discretize()
    resumed = learner.discretize()
    assert len(done) == 4  # only the step that was interrupted is repeated
    assert torch.equal(resumed.mask, uninterrupted.mask) and learner.stages == stages


def test_discretize_runs_on_the_device_of_the_training(tmp_path: Path) -> None:
    """Lightning moves the learner to the CPU when a fit is over."""
    learner = learn(tmp_path, {"limit": 12}, steps=2, ablation="learned", polish=0)
    learner.trainer.strategy._root_device = torch.device("meta")
    with pytest.raises(RuntimeError, match="meta"):  # nothing can be computed on this device
        learner.discretize()
    assert {tensor.device.type for tensor in learner.parameters()} == {"meta"}
    assert learner.constants is not None
    ablation = learner.constants()
    assert {value.device.type for value in (*ablation.heads, *ablation.mlps)} == {"meta"}


def test_kept_full_targets_equal_recomputed_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = learn(tmp_path, steps=3)
    monkeypatch.setattr(full_targets, "MAX_TARGET_BYTES", 1000)
    recomputed = learn(tmp_path, steps=3)
    assert kept._full_targets and not recomputed._full_targets
    torch.testing.assert_close(kept.bank.log_odds, recomputed.bank.log_odds, atol=1e-4, rtol=0)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    learn(tmp_path, steps=2)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state["room"] = state.pop("step_shape")
    torch.save(state, tmp_path / "old.ckpt")
    learner, data = ml.MaskLearner(steps=4), ml.MaskData(task="names", limit=40)
    with pytest.raises(ml.UserError, match="earlier version of masklearn wrote the checkpoint.*--run.dir"):
        trainer(4, tmp_path / "resumed").fit(
            learner, datamodule=data, ckpt_path=tmp_path / "old.ckpt", weights_only=True
        )


def test_learner_and_data_hold_the_same_plan(tmp_path: Path) -> None:
    learner, data = ml.MaskLearner(scope="input", block=3, steps=2), ml.MaskData(task="names", limit=7, scope="input")
    data.setup("fit")
    learner.load()
    assert learner.plan_blocks(data) == ""
    assert learner.plan is data.plan
    assert sorted(map(len, learner.plan.blocks)) == [2, 2, 3]
    assert learner.plan.n_groups == 7 and learner.plan.total_steps == 6 and learner.plan.step_shape == (3, 16)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = ml.MaskLearner(steps=9)
    losses = learner_module.losses

    def broken(*args: Any) -> Any:
        found = losses(*args)
        return found._replace(values=found.values * (float("nan") if learner.global_step == 5 else 1))

    monkeypatch.setattr(learner_module, "losses", broken)
    with pytest.raises(ml.UserError, match="the loss at step 5 is not finite"):
        trainer(9, tmp_path).fit(learner, datamodule=ml.MaskData(task="names", limit=40))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == 5
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = ml.MaskLearner(steps=9)
    sample = learner_module.sample

    def broken(*args: object) -> torch.Tensor:
        gates = sample(*args)
        if learner.global_step == 5:
            gates.register_hook(lambda gradient: gradient * float("inf"))
        return gates

    monkeypatch.setattr(learner_module, "sample", broken)
    with pytest.raises(ml.UserError, match="the gradient at step 5 is not finite"):
        trainer(9, tmp_path).fit(learner, datamodule=ml.MaskData(task="names", limit=40))
    assert learner.bank.log_odds.isfinite().all()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_learner_accepts_no_data_but_mask_data(tmp_path: Path) -> None:
    with pytest.raises(ml.UserError, match="MaskData"):
        trainer(1, tmp_path).fit(ml.MaskLearner(), train_dataloaders=[1])


def test_smaller_subgraphs_lie_inside_larger_ones(tmp_path: Path) -> None:
    masks = learn(tmp_path, steps=20, sizes=[3, 7, 20], polish=0).discretize().mask[0]
    assert not (masks[:-1] & ~masks[1:]).any()


def test_a_lagrangian_budget_of_nested_sizes_is_refused() -> None:
    with pytest.raises(ml.UserError, match="every size gates of its own. Add --model.family independent"):
        ml.MaskLearner(budget="lagrangian")


def test_the_user_hears_of_a_spent_budget_and_of_half_precision(tmp_path: Path) -> None:
    learner = learn(tmp_path, {"limit": 6}, steps=1, sizes=[3], polish=1, polish_budget=0.01, dtype="bfloat16")
    learner.discretize()
    spent, rounding = learner.notices
    assert "Polish used up --model.polish_budget 0.01 with 3 of its steps untried" in spent
    assert "bfloat16" in rounding and "--model.dtype float32" in rounding
    other = replace(learner.finisher, untried_steps=[])  # of a process that polished nothing, such as a merge of shards
    other.gather()
    assert other.notices[0] == spent
