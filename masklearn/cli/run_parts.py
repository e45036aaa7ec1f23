"""A run in parts: processes with a device each, or jobs that know nothing of each other, and what they share."""

import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from masklearn import ranks
from masklearn.cli.checkpoints import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, REQUEUE_PATTERN
from masklearn.cli.rank_watch import GO_ON, stopped_together
from masklearn.cli.run_folder import BLOCKS_FOLDER, CONFIG_FILE, RunFolder
from masklearn.cli.train_cli import TrainCLI
from masklearn.data import MaskData
from masklearn.errors import UserError
from masklearn.files import atomic_write
from masklearn.training.block_store import BlockStore
from masklearn.training.cost import learning_tokens, memory_so_far, tokens_by_block
from masklearn.training.dealing import busy_share
from masklearn.training.learner import MaskLearner
from masklearn.training.strategy import RankStrategy

BUSY_ENOUGH = 0.9
"""Share of the time that processes should work; if they will wait longer, smaller blocks are recommended."""
WORTH_MENTION = 0.01
"""What these must add to that share."""


@contextmanager
def all_ranks(cli: TrainCLI) -> Iterator[None]:
    """Start the other processes of a run on several devices; all end together.

    Raises:
        UserError: If they cannot be started, or if one fails.
    """
    strategy = cli.trainer.strategy
    if not isinstance(strategy, RankStrategy):
        yield
        return
    with stopped_together(strategy, partial(next_step, cli)):
        cli.folder = RunFolder(ranks.from_first(cli.folder.path), cli.folder.shard)  # its name may hold the time
        yield


def next_step(cli: TrainCLI) -> str:
    """How the user goes on after the run has stopped."""
    if not (cli.folder / CONFIG_FILE).is_file():
        return "Nothing has been written"
    return f"What was finished is kept. {GO_ON}{cli.folder.resume_command}"


def claim_folder(cli: TrainCLI) -> None:
    """Claim the run's folder, agree there on which groups make a block, and take this process's share of the blocks.

    Raises:
        UserError: If the folder holds something else, or if a rank cannot write it.
    """
    learner, data = cli.model, cli.datamodule
    store = learner.store = BlockStore(cli.folder / BLOCKS_FOLDER)
    if ranks.rank() == 0:
        if cli.is_shard:
            agree = partial(store.settle_step_shape, learner.plan.step_shape)
            cli.folder.claim_shard(cli.requested_yaml, cli.requested, cli.shard[0], agree)
        elif not cli.resume:
            cli.folder.claim(cli.requested_yaml)
        cli.folder.settle_inputs(data, learner.masked_lm.layout)
    ranks.gathered(None)
    require_shared(cli.folder / BLOCKS_FOLDER)
    step_shape = store.settle_step_shape(learner.plan.step_shape) if ranks.rank() == 0 else None
    step_shape = ranks.from_first(step_shape)
    if step_shape != learner.plan.step_shape:
        learner.plan_blocks(data, step_shape)
    if cli.merges and ranks.rank() == 0:
        _merge(cli, store)
    if cli.deals_blocks and ranks.rank() == 0:  # they hold what is now learned by several processes
        old = (cli.folder / LAST_CHECKPOINT, cli.folder / PREVIOUS_CHECKPOINT, *cli.folder.path.glob(REQUEUE_PATTERN))
        for checkpoint in old:
            checkpoint.unlink(missing_ok=True)
    learner.deal_blocks(data, cli.shard)


def require_work(cli: TrainCLI) -> None:
    """Refuse more processes than groups, and constants that are learned from block to block."""
    plan, n_ranks = cli.model.plan, ranks.count()
    if cli.is_shard and plan.n_groups == 1:
        raise UserError(
            "run.shard divides the groups of a run among jobs, and these texts make one group. Leave it out, or use "
            "several devices: --trainer.devices"
        )
    if 1 < plan.n_groups < n_ranks:
        raise UserError(
            f"there are {n_ranks} processes, but only {plan.n_groups} groups of texts to learn masks for. Use as many "
            f"with --trainer.devices {plan.n_groups}"
        )
    if cli.deals_blocks and plan.n_groups > 1 and cli.model.settings.ablation == "learned":
        raise UserError(
            "model.ablation learned trains its constants from one block of groups to the next, which cannot be divided "
            "among processes. Use one device, or --model.ablation mean"
        )


def require_shared(folder: Path, flag: str = "--run.dir") -> None:
    """Refuse a folder that a rank cannot write, or that is another one on its machine; names the rank.

    Args:
        folder: The folder.
        flag: The flag that chooses another one, for messages.
    """
    if ranks.count() == 1:
        return
    token, file = ranks.from_first(token_hex(8)), folder / f"rank-{ranks.rank()}"
    problem, rank_name = "", f"rank {ranks.rank()} on {socket.gethostname()}"
    try:
        atomic_write(file, token.encode())
    except UserError as error:
        problem = f"{rank_name}: {error}"
    ranks.gathered(None)  # all have written
    if not problem and not (folder / "rank-0").is_file():
        problem = (
            f"{rank_name} does not see the files of rank 0 in {folder}. Give {flag} a folder that all machines share"
        )
    problems = [problem for problem in ranks.gathered(problem) if problem]
    with suppress(OSError):
        file.unlink()
    if problems:
        raise UserError(problems[0])


def throughput(learner: MaskLearner) -> list[dict[str, Any]]:
    """What every rank has learned, how fast, and its peak memory; every rank must call this.

    Returns:
        For each rank its machine, groups, seconds by phase, tokens scored in a second of learning, and memory in bytes.
    """
    plan, seconds, rows = learner.plan, learner.clock.seconds, learner.settings.rows_per_text
    groups = [group for block in plan.own for group in plan.blocks[block]]
    tokens = learning_tokens(learner.finisher.data, plan, rows, groups) / learner.n_sharing if groups else 0.0
    own = {
        "rank": ranks.rank(),
        "machine": socket.gethostname(),
        "groups": len(groups),
        "seconds": {phase: round(value, 1) for phase, value in seconds.items()},
        "tokens_per_second": round(tokens / max(seconds["learning"], 1e-9)),
        "memory": memory_so_far(learner.device),
    }
    return ranks.gathered(own)


def rank_metrics(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The speed and the memory of every rank, as they are logged."""
    names = ("tokens_per_second", "memory")
    return {f"system/rank{each['rank']}/{name}": each[name] for each in found for name in names}


def _merge(cli: TrainCLI, store: BlockStore) -> None:
    """Take over the masks of shards from their folders, and refuse to go on if some are missing."""
    plan = cli.model.plan
    for path in cli.merged_folders:
        folder = RunFolder(Path(path))
        folder.require_same_settings(cli.requested, "run.merge")
        folder.require_same_inputs(cli.datamodule, cli.model.masked_lm.layout)
        other = BlockStore(folder / BLOCKS_FOLDER)
        if other.stored_step_shape() not in (None, plan.step_shape):
            raise UserError(
                f"run.merge: the groups in {path} were learned in other blocks than those in {cli.folder.path}, as "
                "other memory was free. Learn all shards with the same --model.block"
            )
        store.take_over(other, len(plan.blocks))
    missing = [block for block in range(len(plan.blocks)) if block not in store]
    if missing:
        raise UserError(
            f"run.merge: {len(missing)} of {len(plan.blocks)} blocks of groups are not learned yet, the first of them "
            f"is number {missing[0] + 1}. Wait for the other shards, or learn it here: {cli.folder.resume_command}"
        )


def finish_shard(cli: TrainCLI) -> None:
    """Store the masks of the last block of a shard, and say what is next."""
    index, n_shards = cli.shard
    cli.model.finish_blocks()
    print(
        f"Shard {index + 1} of {n_shards} is done. When all are, finish the run with: python train.py --config "
        f"{shlex.quote(str(cli.folder / CONFIG_FILE))} --run.merge true",
        flush=True,
    )


def idle_notice(learner: MaskLearner, data: MaskData, n_shards: int = 1) -> str:
    """What the user should know if some processes of a run, or of its shards, will have less to do than the others.

    Empty if none will.
    """
    plan, n_ranks = learner.plan, ranks.count() * n_shards

    def busy(groups_per_block: int) -> float:
        other = data.block_plan(groups_per_block, plan.steps, plan.batch_size)
        return busy_share(tokens_by_block(data, other), n_ranks)

    size = plan.groups_per_block
    smaller = [size >> halvings for halvings in range(1, size.bit_length())]
    if plan.n_groups == 1 or not smaller or (now := busy(size)) >= BUSY_ENOUGH:
        return ""
    best = max(smaller, key=lambda n: min(busy(n), BUSY_ENOUGH))  # the largest of those that are enough
    if busy(best) < now + WORTH_MENTION:
        return ""
    blocks = f"{len(plan.blocks)} block{'s' * (len(plan.blocks) > 1)}"
    return (
        f"{plan.n_groups} groups make {blocks}, with which {n_ranks} processes will work {now:.0%} of "
        f"the time. With smaller ones it is {busy(best):.0%}, and masks are others: --model.block {best}"
    )
