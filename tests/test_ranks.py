"""Runs on several devices: masks do not depend on their number, and all processes end together."""

import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from conftest import one_line, refused, tiny_llama
from faults.processes import end, run_to_end, start, wait_for
from forked import (
    PER_INPUT,
    SHARED_MASK,
    on_ranks,
    rank_environment,
    run_ranks,
    same_masks,
    same_nodes,
    start_ranks,
    train,
)
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from text_files import TEXTS
from torch import Tensor
from wandb_file import OfflineRun

from masklearn import cli, ranks
from masklearn.cli.run_parts import require_shared
from masklearn.cli.stopping import StopBetweenSteps, Stopped
from masklearn.data import Batch, MaskData
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.selection import scorer
from masklearn.selection.scorer import MaskScorer
from masklearn.training import learned_ablation, strategy
from masklearn.training.block_store import BlockStore
from masklearn.training.learned_ablation import LearnedConstants
from masklearn.training.learner import MaskLearner
from masklearn.training.trainer import quiet_lightning, trainer_defaults


@pytest.fixture
def one_line_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], str]:
    """The one line that a user reads who gives these flags."""
    monkeypatch.setattr("sys.argv", ["train.py"])

    def run(args: list[str]) -> str:
        assert cli.train(args) == 2
        return one_line(capsys)

    return run


def test_masks_of_single_texts_do_not_depend_on_the_number_of_processes(one_process: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first, *others = run_ranks(4, [*PER_INPUT, "--run.dir", str(folder)])
    assert same_masks(one_process, folder)
    assert "Results on 10 texts" in first and not any(others)  # messages once
    factor = re.search(r"4 processes: up to (\S+) times as fast as one", first)
    assert factor and 1 < float(factor[1]) <= 4


def test_masks_of_a_column_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    """Four groups of three texts, in two blocks."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text, "noun": text.split()[1]}) + "\n" for text in TEXTS))
    flags = [*PER_INPUT, "--data.task", "null", "--data.path", str(texts), "--data.limit", "null"]
    flags += ["--model.scope", "column:noun", "--model.block", "2", "--run.dir"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_to_end([*flags, str(one), "--trainer.accelerator", "cpu"], train).code == 0
    run_ranks(2, [*flags, str(two)])
    assert Mask.load(two / "mask.safetensors").groups == ("dog", "cat", "bird", "king") and same_masks(one, two)
    learned = json.loads((two / "metrics.json").read_text())["ranks"]
    assert len(learned) == 2 and sum(each["groups"] for each in learned) == 4


def test_shards_in_one_folder_make_the_masks_of_one_process(
    one_process: Path, tmp_path: Path, one_line_of: Callable[[list[str]], str]
) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    flags = [*PER_INPUT, "--trainer.accelerator", "cpu", "--run.dir"]
    done = run_to_end([*flags, str(folder), "--run.shard", "1/2"], train)
    assert done.code == 0 and "Shard 1 of 2 is done" in done.out
    merge = ["--config", str(folder / "config.yaml"), "--run.merge"]
    assert "2 of 4 blocks of groups are not learned yet" in one_line_of([*merge, "true"])
    other = one_line_of([*flags, str(folder), "--run.shard", "2/2", "--model.steps", "7"])
    assert f"run.shard: the run in {folder} was started with model.steps 6, not 7" in other
    assert run_to_end([*flags, str(elsewhere), "--run.shard", "2/2"], train).code == 0
    merged = run_to_end([*merge, f"[{elsewhere}]"], train)
    assert merged.code == 0 and "Gathering the masks of 4 blocks" in merged.out and "Discretising" not in merged.out
    assert same_masks(one_process, folder)
    late = one_line_of([*flags, str(folder), "--run.shard", "2/2", "--model.steps", "7"])  # the run is finished
    assert f"run.shard: the run in {folder} was started with model.steps 6, not 7" in late


def test_ranks_share_items_and_add_up_gradients() -> None:
    def shared() -> object:
        parameters = [torch.ones(2, requires_grad=True), torch.ones((), requires_grad=True)]
        parameters[0].grad = torch.tensor([1.0, 10.0]) * (1 + ranks.rank())
        ranks.sum_gradients(parameters)
        gradients = [parameter.grad.tolist() for parameter in parameters]
        kept, weight = ranks.part(5)
        return list(ranks.share("abcde")), ranks.from_first(ranks.rank()), gradients, kept.tolist(), weight

    first, second = on_ranks(2, shared)
    assert first == (["a", "c", "e"], 0, [[3, 30], 0], [True, False, True, False, True], 1)
    assert second == (["b", "d"], 0, [[3, 30], 0], [False, True, False, True, False], 1)


def test_fewer_rows_than_ranks_are_run_by_all_and_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 4)
    kept, weight = ranks.part(3)
    assert kept.all() and 4 * weight == 1


def test_a_folder_that_one_rank_cannot_write_is_refused_at_the_start(tmp_path: Path) -> None:
    def write() -> str:
        target = tmp_path / "run" if ranks.rank() == 0 else tmp_path / "file" / "run"
        return refused(lambda: require_shared(target))

    (tmp_path / "file").touch()
    first, second = on_ranks(2, write)
    assert first == second and "rank 1 on" in first and f"cannot write {tmp_path / 'file'}" in first


def test_machines_without_a_cluster_meet_and_say_what_they_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines of one device each, the second of which starts late."""
    monkeypatch.setattr(strategy, "NOTICE_SECONDS", 0.1)
    flags = [*PER_INPUT, "--data.limit", "2", "--model.polish", "0", "--model.block", "1", "--trainer.num_nodes", "2"]
    flags += ["--trainer.devices", "1", "--trainer.accelerator", "cpu", "--run.dir", str(tmp_path / "run")]
    environment = rank_environment(0, 2, find_free_network_port())
    first = start(flags, train, **environment)
    assert wait_for(lambda: "Waiting" in first.output(), first)
    second = start(flags, train, **environment | {"NODE_RANK": "1"})
    out = end(first).out
    where = f"Waiting for 2 processes at 127.0.0.1:{environment['MASTER_PORT']}, each machine with its NODE_RANK"
    assert where in out and "Results on 2 texts" in out and end(second).code == 0


@pytest.mark.parametrize("estimate", ["false", "true"])
def test_more_processes_than_groups_are_refused(estimate: str, tmp_path: Path) -> None:
    flags = [*PER_INPUT, "--data.limit", "2", "--run.dir", str(tmp_path / "run"), "--run.estimate", estimate]
    first, *others = map(end, start_ranks(3, flags))
    assert first.one_line and "3 processes, but only 2 groups" in first.err and not (tmp_path / "run").exists()
    assert [each.code for each in others] == [2, 2] and not any("error" in each.err for each in others)


def test_ranks_with_numbers_of_polishes_of_their_own_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Three dealt blocks: the first rank polishes two, and reads both only after the last rank has stored its own."""

    def polish_own() -> list[int]:
        store, own = BlockStore(tmp_path), ranks.share(range(3))
        for block in own:
            state = torch.zeros(1, 1, 2, dtype=torch.bool), torch.zeros(1, 1), torch.zeros(())
            steps = list(store.resume_polish(f"polish-{block}", "ab", *state))
            assert steps == ["a", "b"]
            time.sleep(0.2 * ranks.rank())
            store.put(block, [block], {"kl": torch.zeros(1)})
        ranks.gathered(None)
        return [block for block in range(3) if block in store]

    assert on_ranks(2, polish_own) == [[0, 1, 2]] * 2


def test_processes_that_share_steps_find_the_masks_of_one(one_process_shared: Path, tmp_path: Path) -> None:
    """And one W&B run holds them all."""
    folder = tmp_path / "run"
    run_ranks(3, [*SHARED_MASK, "--trainer.logger", "true", "--run.dir", str(folder)])
    assert same_nodes(one_process_shared, folder)
    (logged,) = (folder / "wandb").glob("offline-run-*")
    tracked = OfflineRun.read(logged)
    assert tracked.config["trainer"]["devices"] == "3" and len(tracked.column("train/kl/s=4")) == 1
    for each in json.loads((folder / "metrics.json").read_text())["ranks"]:
        for name in ("tokens_per_second", "memory"):
            assert tracked.column(f"system/rank{each['rank']}/{name}") == [each[name]] and each[name] > 0


def refitted_constants(rounding: float) -> tuple[list[float], list[list[bool]]]:
    """Learned constants and masks after the refit; on other ranks than the first its result differs by rounding."""
    learner = MaskLearner(sizes=[4, 18], steps=6, polish=1, ablation="learned")
    data = MaskData(task="names", limit=40, batch_size=7, positions="last")
    trainer = Trainer(**trainer_defaults(), logger=False, enable_checkpointing=False, enable_progress_bar=False)
    refit = LearnedConstants._train

    def rounded(constants: LearnedConstants, *args: Any) -> None:
        refit(constants, *args)
        for shift in constants.shifts:
            shift.data += rounding * ranks.rank()

    with quiet_lightning(), patch.object(LearnedConstants, "_train", rounded):
        trainer.fit(learner, datamodule=data)
        mask = learner.discretize()
    values = [
        value for part in (mask.ablation.heads, mask.ablation.mlps) for layer in part for value in layer.flatten()
    ]
    return [float(value) for value in values], mask.mask.tolist()


def test_ranks_refit_the_constants_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_ablation, "REFIT_STEPS", 4)
    ((constants, mask),) = on_ranks(1, partial(refitted_constants, 0.0))
    first, *others = on_ranks(3, partial(refitted_constants, 1e-3))
    assert all(other == first for other in others)
    assert first[1] == mask and first[0] == pytest.approx(constants, rel=1e-3, abs=1e-4)


def test_ranks_that_share_steps_stop_at_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that reaches one of them between two steps."""
    monkeypatch.setattr(MaskLearner, "n_sharing", 2)

    def step() -> str | None:
        stop, trainer, learner = StopBetweenSteps(), Trainer.__new__(Trainer), MaskLearner()
        stop.on_train_batch_start(trainer, learner, None, 0)
        if ranks.rank() == 1:
            stop.stop_signal = "SIGUSR1"
        with pytest.raises(Stopped):
            stop.on_train_batch_start(trainer, learner, None, 1)
        return stop.stop_signal

    assert on_ranks(2, step) == ["SIGUSR1"] * 2


def test_ranks_that_share_a_polish_spend_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them has memory for fewer masks at once, and one for no prefix."""
    monkeypatch.setattr(scorer.ForwardCost, "favours_sharing", lambda *_: True)
    monkeypatch.setattr(scorer, "scored_together", lambda _: 1000 if ranks.rank() else 50)
    masked_lm, tokens = MaskedLM(tiny_llama()), torch.arange(3, 27).view(4, 6)
    flips = 1 - torch.eye(masked_lm.graph.n_nodes)[:, None]

    def spend(without_prefix: int | None) -> tuple[list[float], float]:
        if ranks.rank() == without_prefix:
            masked_lm.prefix = lambda *_: None
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        batch = Batch(tokens, everywhere, everywhere, torch.arange(4), torch.zeros(4, dtype=torch.long))
        shared = MaskScorer(masked_lm, [batch], shared=True)
        return shared(flips).flatten().tolist(), shared.tokens.spent

    for without_prefix in (None, 1):
        first, second = on_ranks(2, partial(spend, without_prefix))
        assert first == second
        assert first[0] == pytest.approx(on_ranks(1, partial(spend, None))[0][0], rel=1e-3, abs=1e-6)


class KeepGradients(Callback):
    """Keeps the gradient of the gates at every step."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if pl_module.bank.log_odds.grad is not None:
            self.gradients.append(pl_module.bank.log_odds.grad.clone())


def gradients_of_two_steps() -> list[list[float]]:
    """Of a learner whose penalty has a gradient of its own, on seven texts a step."""
    learner = MaskLearner(sizes=[4, 18], steps=3, polish=0, budget="lagrangian", family="independent", draws=2)
    data, kept = MaskData(task="names", limit=40, batch_size=7, positions="last"), KeepGradients()
    trainer = Trainer(
        **trainer_defaults(), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0, callbacks=[kept],
    )  # fmt: skip
    with quiet_lightning():
        trainer.fit(learner, datamodule=data)
    return [gradient.flatten().tolist() for gradient in kept.gradients if gradient.any()]


def test_the_gradient_of_a_step_is_that_of_one_process() -> None:
    alone = on_ranks(1, gradients_of_two_steps)[0]
    first, *others = on_ranks(3, gradients_of_two_steps)
    assert len(alone) == 2 and all(other == first for other in others)
    for mine, theirs in zip(alone, first, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
