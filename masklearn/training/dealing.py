"""Dealing: which blocks of a run a process learns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import heapreplace
from typing import Any

from masklearn import ranks
from masklearn.data import BlockPlan, BlockQueue
from masklearn.errors import UserError
from masklearn.training.block_store import BlockStore


def deal(plan: BlockPlan, store: BlockStore, shard: tuple[int, int] = (0, 1)) -> BlockPlan:
    """Leave this process its share of the blocks that are not stored yet. Every rank must call this.

    Ranks take blocks from a queue, in the order of the plan, the longest texts first; so none waits long for another at
    the end. What a block learns depends on its number alone, so masks do not depend on who takes it. A run of a single
    group is not dealt: its ranks share the rows of every step.

    Args:
        plan: The blocks of the run.
        store: The blocks that are finished.
        shard: Which shard of the run this is, from 0, and how many there are; blocks go to them in turn.
    """
    if plan.n_groups == 1:
        store.shared = True
        return plan
    index, n_shards = shard
    left = [block for block in range(index, len(plan.blocks), n_shards) if block not in store]
    return replace(plan, dealt=left) if ranks.count() == 1 else replace(plan, queue=BlockQueue(left))


def busy_share(costs: Sequence[float], n_ranks: int) -> float:
    """Share of the time until the last rank is done in which ranks work, if each takes the next block once it is free.

    Args:
        costs: The cost of every block, in the order in which they are taken, in any unit.
        n_ranks: Ranks of equal speed.
    """
    free_at = [0.0] * n_ranks
    for cost in costs:
        heapreplace(free_at, free_at[0] + cost)
    return sum(costs) / (n_ranks * max(free_at))


def step_shape_of(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Groups of a block, and texts of each in a step, in the run that wrote a checkpoint.

    Raises:
        UserError: If another version wrote it.
    """
    if "step_shape" not in checkpoint:
        raise UserError(
            "an earlier version of masklearn wrote the checkpoint, and this one cannot resume it. Finish the run with "
            "that version, or start it again in another folder: --run.dir"
        )
    return checkpoint["step_shape"]


def resumed(plan: BlockPlan, blocks: Sequence[int] | None) -> BlockPlan:
    """The plan of a process that goes on from a checkpoint: its blocks, then those that are still to learn besides.

    Args:
        plan: The plan as dealt anew.
        blocks: Those of the process that wrote the checkpoint; None for all.
    """
    blocks = range(len(plan.blocks)) if blocks is None else blocks
    return replace(plan, dealt=[*blocks, *(block for block in plan.own if block not in blocks)])


def learned_before(plan: BlockPlan, store: BlockStore, step: int) -> Sequence[int]:
    """The blocks of this process whose masks must be stored for it to resume at a step."""
    n_learned, block_step = divmod(min(step, plan.total_steps - 1), plan.steps)
    is_to_finish = block_step == 0 and n_learned > 0 and plan.own[n_learned - 1] not in store
    return plan.own[: n_learned - is_to_finish]
