"""The plan of a run: which groups are learned together, and which of these blocks a process learns."""

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex

from masklearn import ranks


class BlockQueue:
    """Blocks that ranks take one after the other, so that a faster rank learns more of them.

    Every rank must make it, at the same time.

    Args:
        blocks: The blocks, in the order in which they are taken; that of rank 0 counts.
    """

    def __init__(self, blocks: Sequence[int]) -> None:
        self.blocks, self._counter = ranks.from_first((blocks, f"blocks/{token_hex(8)}"))
        self.taken: list[int] = []
        """Those that this rank has taken."""
        self._next = ranks.rank()
        """Number of the block that this rank takes next if ranks take turns."""

    def take(self) -> bool:
        """Take the next block, unless none is left; whether there was one."""
        number = ranks.next_number(self._counter)
        self._next = number + ranks.count()
        self.taken += self.blocks[number : number + 1]
        return number < len(self.blocks)

    @property
    def expected(self) -> Sequence[int]:
        """The blocks that this rank takes if from now on ranks take turns."""
        return self.blocks[self._next :: ranks.count()]


@dataclass(frozen=True)
class BlockPlan:
    """Which groups are learned together: one block after the other, each for the same number of steps."""

    blocks: Sequence[Sequence[int]]
    """Indices of the groups of every block of the run."""
    steps: int
    """Optimiser steps of every block."""
    batch_size: int
    """Texts of every group in a step, at most."""
    dealt: Sequence[int] | None = None
    """The blocks that this process learns, in this order; None for all."""
    queue: BlockQueue | None = None
    """The blocks that this process shares with others, if it does; it learns those that it takes."""

    @property
    def own(self) -> Sequence[int]:
        """The blocks that this process learns, in this order; of a queue those that it has taken so far."""
        if self.queue:
            return self.queue.taken
        return range(len(self.blocks)) if self.dealt is None else self.dealt

    @property
    def expected(self) -> Sequence[int]:
        """`own`, and the blocks that it is likely to take from the queue."""
        return [*self.own, *self.queue.expected] if self.queue else self.own

    @property
    def total_steps(self) -> int:
        """Optimiser steps of this process, on its `own` blocks."""
        return len(self.own) * self.steps

    @property
    def most_steps(self) -> int:
        """Optimiser steps of this process if other ones take nothing from the queue."""
        return len(self.queue.blocks if self.queue else self.own) * self.steps

    def goes_on(self, step: int) -> bool:
        """Whether this process has a step of this number; takes the next block from the queue if it needs one."""
        return step < self.total_steps or (self.queue is not None and self.queue.take())

    @property
    def n_groups(self) -> int:
        """Groups of the whole run."""
        return sum(map(len, self.blocks))

    @property
    def groups_per_block(self) -> int:
        """Groups of the largest block."""
        return max(map(len, self.blocks))

    @property
    def step_shape(self) -> tuple[int, int]:
        """Groups of a block, and texts of each group in a step: what fixes a step's memory."""
        return self.groups_per_block, self.batch_size

    def at(self, step: int) -> tuple[int, int]:
        """The block that a step of this process is in, and the step's number in it; past the end, the last of both."""
        own = self.own or range(len(self.blocks))  # a process that learns none is at the first step of the run
        index, block_step = divmod(min(step, len(own) * self.steps - 1), self.steps)
        return own[index], block_step

    def number(self, step: int) -> int:
        """The number that a step of this process has if one process learns all blocks."""
        block, block_step = self.at(step)
        return block * self.steps + block_step
