"""Which blocks a process learns: ranks take them one by one, shards have theirs from the start."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from conftest import refused
from forked import on_ranks

import masklearn as ml
from masklearn import cli, ranks
from masklearn.cli.run_parts import idle_notice, require_work
from masklearn.data import BlockPlan, BlockQueue
from masklearn.tiny import tasks
from masklearn.training.block_store import BlockStore
from masklearn.training.dealing import busy_share, deal

PLAN = BlockPlan([[0, 1], [2, 3], [4, 5], [6, 7], [8]], steps=3, batch_size=2)


def store_with(*blocks: int) -> BlockStore:
    store = BlockStore()
    for block in blocks:
        store.put(block, PLAN.blocks[block], {"kl": torch.zeros(len(PLAN.blocks[block]))})
    return store


def every_step(plan: BlockPlan, after_the_first: Callable[[], object]) -> list[tuple[int, int]]:
    """The block of every step of this process, and the step's number in it."""
    steps: list[tuple[int, int]] = []
    while plan.goes_on(len(steps)):
        steps.append(plan.at(len(steps)))
        if len(steps) == 1:
            after_the_first()
    return steps


def test_a_slow_rank_learns_fewer_blocks() -> None:
    """Rank 1 is in its first block until rank 0 has found that none is left."""

    def learned() -> tuple[list[tuple[int, int]], list[int]]:
        plan = deal(PLAN, store_with(0))
        assert plan.most_steps == 12 and list(plan.expected) == ([1, 3], [2, 4])[ranks.rank()]
        if ranks.rank() == 0:
            ranks.gathered("rank 1 has taken a block")
            steps = every_step(plan, lambda: None)
            ranks.gathered("no block is left")
        else:
            steps = every_step(plan, lambda: (ranks.gathered("I have taken a block"), ranks.gathered("none is left")))
        return steps, list(plan.expected)

    fast, slow = on_ranks(2, learned)
    assert slow == ([(1, 0), (1, 1), (1, 2)], [1])
    assert fast == ([(block, step) for block in (2, 3, 4) for step in range(3)], [2, 3, 4])


@pytest.mark.parametrize("queue", [None, BlockQueue([0, 1])])
def test_batches_are_not_read_ahead_where_that_would_take_a_block_from_others(queue: BlockQueue | None) -> None:
    data: Any = ml.MaskData(task="names", limit=9, scope="input", workers=1)
    data.setup("fit")
    data.plan = replace(data.block_plan(groups_per_block=5, steps=3), queue=queue)
    data.trainer = SimpleNamespace(global_step=0)
    assert data.train_dataloader().num_workers == (0 if queue else 1)


def test_shards_have_every_nth_block_from_the_start() -> None:
    first, second = (deal(PLAN, store_with(0), (shard, 2)) for shard in range(2))
    assert (first.own, second.own) == ([2, 4], [1, 3])
    assert [plan.goes_on(5) for plan in (first, second)] == [True, True] and not first.goes_on(6)


def test_a_run_of_a_single_group_has_no_shards() -> None:
    """Every shard would learn all of it."""
    cli: Any = SimpleNamespace(model=SimpleNamespace(plan=BlockPlan([[0]], steps=3, batch_size=2)), is_shard=True)
    assert "these texts make one group" in refused(lambda: require_work(cli))


def test_ranks_of_a_shard_take_its_blocks_only() -> None:
    def taken() -> list[int]:
        plan = deal(PLAN, store_with(), (0, 2))
        while plan.goes_on(plan.total_steps):
            pass
        return list(plan.own)

    first, second = on_ranks(2, taken)
    assert sorted(first + second) == [0, 2, 4]


@pytest.mark.parametrize(
    ("costs", "n_ranks", "share"),
    [([2, 1, 1], 2, 1.0), ([3, 1, 1], 2, 5 / 6), ([1, 1, 1], 2, 3 / 4), ([1], 4, 1 / 4), ([1, 1], 1, 1.0)],
)
def test_ranks_wait_for_the_last_block(costs: list[float], n_ranks: int, share: float) -> None:
    assert busy_share(costs, n_ranks) == pytest.approx(share)


def test_smaller_blocks_are_recommended_where_ranks_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ml.MaskData(task="names", limit=16, scope="input")
    learner: Any = SimpleNamespace()
    data.setup("fit")
    learner.plan = data.block_plan(groups_per_block=8, steps=3)
    assert idle_notice(learner, data) == ""
    assert idle_notice(learner, data, 8).startswith("16 groups make 2 blocks, with which 8 processes will work 25% of")
    monkeypatch.setattr(ranks, "count", lambda: 3)
    assert idle_notice(learner, data).startswith("16 groups make 2 blocks, with which 3 processes will work 67% of")
    assert "With smaller ones it is 89%, and masks are others: --model.block 2" in idle_notice(learner, data)
    learner.plan = data.block_plan(groups_per_block=16, steps=3)
    assert idle_notice(learner, data).startswith("16 groups make 1 block, with which 3 processes will work 33% of")


def test_blocks_that_help_nothing_are_not_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three texts of the same length keep two processes busy for three quarters of the time, in blocks of any size."""
    data = ml.MaskData(texts=[next(tasks.texts())] * 3, scope="input")
    data.setup("fit")
    learner: Any = SimpleNamespace(plan=data.block_plan(groups_per_block=2, steps=3))
    monkeypatch.setattr(ranks, "count", lambda: 2)
    assert idle_notice(learner, data) == ""


def test_python_without_a_command_is_told_to_use_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["python"])
    flags = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--run.dir", str(tmp_path / "run")]
    assert cli.train(flags) == 2
    assert "cannot be done from Python. Run it in a terminal" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert "devices: learn uses one device" in refused(lambda: ml.learn(devices=2))


def test_a_trainer_of_several_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(lightning.Trainer, "world_size", 2)
    learner = ml.MaskLearner()
    learner.trainer = trainer
    assert "the trainer has 2 devices, but a MaskLearner uses one" in refused(lambda: learner.setup("fit"))
