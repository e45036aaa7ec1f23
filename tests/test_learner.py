import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from transformers import PreTrainedModel

import masklearn as ml
from masklearn.masking import MaskedLM
from masklearn.selection import polish as polish_module
from masklearn.selection.scorer import MaskScorer
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


def test_frozen_means_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[PreTrainedModel] = []

    def load(*args: object, **kwargs: object) -> PreTrainedModel:
        loaded.append(ml.load_lm(*args, **kwargs))  # pyright: ignore[reportArgumentType]
        loaded.append(copy.deepcopy(loaded[0]))
        return loaded[0]

    monkeypatch.setattr(learner_module, "load_lm", load)
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
    assert set(state) == {"bank.log_odds", "budget.multiplier"}


PLANTED = {"a0.h1", "m0", "a2.h3", "m3"}


def planted(folder: Path) -> str:
    """The embedded model, in which all but four nodes add nothing, in a folder."""
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
    """A model in which all but four nodes add nothing: they are the best subgraph of four nodes, and a perfect one."""
    lm = planted(tmp_path / "lm")
    data = {"positions": "all", "batch_size": 8}
    learner = learn(
        tmp_path,
        data,
        lm,
        sizes=[2, 4, 12],
        ablation=ablation,
        steps=200 if method is LAGRANGIAN else 100,
        **method,
    )
    mask = learner.discretize()
    kept = {name for name, keep in zip(mask.graph.names, mask.select(s=4), strict=True) if keep}
    assert kept == PLANTED
    assert {name for name, keep in zip(mask.graph.names, mask.select(s=2), strict=True) if keep} < PLANTED


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_expected_sizes_arrive(tmp_path: Path, method: dict) -> None:
    sizes = [1, 4, 18, 30, 35]
    learner = learn(tmp_path, {"task": "mixed", "batch_size": 4}, sizes=sizes, steps=120, polish=0, **method)
    for size, expected in zip(learner.sizes, learner.open_probabilities()[0].sum(-1).tolist(), strict=True):
        assert expected == pytest.approx(size, abs=0.5)
    assert learner.discretize().mask.sum(-1).tolist() == [sizes]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, method: dict) -> None:
    whole = learn(tmp_path / "whole", steps=7, **method)

    part = ml.MaskLearner(steps=7, **method)
    data = {"task": "names", "limit": 40}
    first = trainer(7, tmp_path / "part", limit_train_batches=7)

    def kill(*_: object) -> None:
        if part.global_step == 4:
            raise KeyError("killed")

    part.on_train_batch_end = kill
    with pytest.raises(KeyError):
        first.fit(part, datamodule=ml.MaskData(**data))
    resumed = ml.MaskLearner(steps=7, **method)
    trainer(7, tmp_path / "part").fit(
        resumed, datamodule=ml.MaskData(**data), ckpt_path=tmp_path / "part" / "last.ckpt", weights_only=True
    )
    assert resumed.global_step == 7
    for name, value in whole.budget.state_dict().items() | whole.bank.state_dict().items():
        assert torch.equal((resumed.bank.state_dict() | resumed.budget.state_dict())[name], value)


@pytest.mark.parametrize(("ablation", "sizes"), [("zero", [4, 9]), ("learned", [9])])  # the latter is polished twice
def test_a_polish_that_is_stopped_goes_on_where_it_was(
    ablation: str, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learn(tmp_path, {"limit": 12, "positions": "last"}, steps=6, sizes=sizes, polish=1, ablation=ablation)
    resize, done, stops, patience = polish_module.resize, [], 0, None

    def impatient(scorer: MaskScorer, mask: Tensor, *args: Any) -> Any:
        nonlocal stops
        if len(done) == patience and not stops:
            stops += 1
            raise KeyboardInterrupt
        done.append(len(mask))
        return resize(scorer, mask, *args)

    monkeypatch.setattr(polish_module, "resize", impatient)
    monkeypatch.setattr(LearnedConstants, "refit", lambda *_: None)
    alone, stages = learner.discretize(), learner.stages
    assert len(done) == 4  # each size on the way down and on the way back
    learner.store, patience = BlockStore(tmp_path / "blocks"), 3
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        learner.discretize()
    gone_on = learner.discretize()
    assert len(done) == 4  # no step was made twice, but the one that was stopped in
    assert torch.equal(gone_on.mask, alone.mask) and learner.stages == stages


def test_a_learner_goes_back_to_where_it_learned(tmp_path: Path) -> None:
    """Lightning leaves it on the CPU when a fit is over."""
    learner = learn(tmp_path, {"limit": 12}, steps=2, ablation="learned", polish=0)
    learner.trainer.strategy._root_device = torch.device("meta")
    with pytest.raises(RuntimeError, match="meta"):  # nothing can be computed there
        learner.discretize()
    assert {tensor.device.type for tensor in learner.parameters()} == {"meta"}
    assert learner.constants is not None
    ablation = learner.constants()
    assert {value.device.type for value in (*ablation.heads, *ablation.mlps)} == {"meta"}


def test_full_targets_are_the_same_kept_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = learn(tmp_path, steps=3)
    monkeypatch.setattr(learner_module, "CACHE_BYTES", 1000)
    again = learn(tmp_path, steps=3)
    assert kept._targets and not again._targets
    torch.testing.assert_close(kept.bank.log_odds, again.bank.log_odds, atol=1e-4, rtol=0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = ml.MaskLearner(steps=9)
    chunked_kl = learner_module.chunked_kl

    def broken(*args: object) -> torch.Tensor:
        return chunked_kl(*args) * (float("nan") if learner.global_step == 5 else 1)  # pyright: ignore

    monkeypatch.setattr(learner_module, "chunked_kl", broken)
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
def test_a_learner_needs_its_own_kind_of_data(tmp_path: Path) -> None:
    with pytest.raises(ml.UserError, match="MaskData"):
        trainer(1, tmp_path).fit(ml.MaskLearner(), train_dataloaders=[1])


def test_smaller_subgraphs_lie_inside_larger_ones(tmp_path: Path) -> None:
    masks = learn(tmp_path, steps=20, sizes=[3, 7, 20]).discretize().mask[0]
    assert not (masks[:-1] & ~masks[1:]).any()


def test_a_penalty_on_nested_sizes_is_refused() -> None:
    with pytest.raises(ml.UserError, match="every size gates of its own. Add --model.family independent"):
        ml.MaskLearner(budget="lagrangian")
