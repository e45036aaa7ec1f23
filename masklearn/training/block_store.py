"""What a run has finished so far: the masks of its blocks, and the progress of the polish under way."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from masklearn import ranks
from masklearn.errors import UserError, one_line
from masklearn.files import READ_ERRORS, read_checked, write_checked
from masklearn.progress import ProgressBar, no_bar

STEP_SHAPE_FILE = "step-shape.safetensors"
"""Groups of a block, and texts of each in a step, in all processes that work on a run."""
Step = TypeVar("Step")
"""A step of a polish; the store counts steps and looks into none."""


class BlockStore:
    """The masks of finished blocks, one file each, and one file for the progress of each polish.

    Args:
        folder: Folder of the files; None keeps the blocks in memory, and no progress.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.shared = False
        """Whether all ranks finish the same blocks together; rank 0 then writes the files, and knows what is there."""
        self._in_memory: dict[int, dict[str, Tensor]] = {}

    def _file(self, block: int) -> Path | None:
        return self.folder / f"block-{block:06d}.safetensors" if self.folder else None

    def __contains__(self, block: int) -> bool:
        file = self._file(block)
        found = file.is_file() if file else block in self._in_memory
        return ranks.from_first(found) if self.shared else found

    def settle_step_shape(self, step_shape: tuple[int, int]) -> tuple[int, int]:
        """The step shape of the run in this folder: the one given, unless an earlier process has stored another.

        It depends on the memory that was free then, and it decides which groups make a block.
        """
        stored = self.stored_step_shape()
        if self.folder and not stored:
            write_checked(self.folder / STEP_SHAPE_FILE, {"step_shape": torch.tensor(step_shape)})
        return stored or step_shape

    def stored_step_shape(self) -> tuple[int, int] | None:
        """The step shape that is stored in the folder; None if none is."""
        if self.folder:
            with suppress(*READ_ERRORS):
                n_groups, n_texts = read_checked(self.folder / STEP_SHAPE_FILE)["step_shape"].tolist()
                return n_groups, n_texts
        return None

    def forget(self) -> None:
        """Forget the blocks in memory; files stay."""
        self._in_memory.clear()

    def put(self, block: int, groups: Sequence[int], tensors: dict[str, Tensor]) -> None:
        """Store the results of a block.

        Args:
            block: The block.
            groups: Indices of its groups in the run.
            tensors: Results by name; the first dimension of each counts the groups.
        """
        tensors = {"groups": torch.tensor(list(groups)), **tensors}
        file = self._file(block)
        if file:
            self._write(file, tensors)
        else:
            self._in_memory[block] = {name: tensor.cpu() for name, tensor in tensors.items()}

    def get(self, block: int) -> dict[str, Tensor]:
        """The results of a block, and the indices of its groups as `groups`.

        Raises:
            UserError: If its file is missing or damaged.
        """
        file = self._file(block)
        if not file and block not in self._in_memory:
            raise UserError(
                "training ended before its last step, or began in another process that kept finished blocks in memory, "
                "so some masks are not learned. Let the trainer make all steps: leave out its limits of steps and of "
                "time. To resume, set learner.store = BlockStore(folder) in both processes, or use train.py"
            )
        try:
            return read_checked(file) if file else self._in_memory[block]
        except READ_ERRORS as error:
            raise UserError(
                f"a finished block of the run, {file}, cannot be read: {one_line(error)}. Restore it from a "
                "copy, or start the run again in another folder: --run.dir"
            ) from error

    def require(self, blocks: Iterable[int]) -> None:
        """Refuse to resume if one of these blocks is lost.

        Raises:
            UserError: If a block's file is missing or damaged.
        """
        for block in blocks:
            self.get(block)

    def take_over(self, other: "BlockStore", n_blocks: int) -> None:
        """Store those of the first `n_blocks` blocks that another store has and this one lacks.

        Raises:
            UserError: If a block's file is damaged.
        """
        for block in range(n_blocks):
            if block in other and block not in self:
                tensors = other.get(block)
                self.put(block, tensors.pop("groups").tolist(), tensors)

    def gather(self, n_blocks: int) -> dict[str, Tensor]:
        """The results of the first `n_blocks` blocks, concatenated in the order of the groups.

        Raises:
            UserError: If a block's file is missing or damaged, or if blocks were cut in different ways.
        """
        blocks = [self.get(block) for block in range(n_blocks)]
        groups, order = torch.cat([block["groups"] for block in blocks]).sort()
        if not groups.equal(torch.arange(len(groups))):
            raise UserError(
                f"the finished blocks in {self.folder} overlap or leave groups out, as they were learned with "
                "different numbers of groups in a block. Start the run again in another folder: --run.dir"
            )
        return {name: torch.cat([block[name] for block in blocks])[order] for name in blocks[0] if name != "groups"}

    def resume_polish(
        self, name: str, steps: Sequence[Step], masks: Tensor, kl: Tensor, n_spent: Tensor, bar: ProgressBar = no_bar
    ) -> Iterator[Step]:
        """The steps of a polish that are left to do; the progress is written after each.

        If an earlier process was stopped in the polish of the same name, begun from the same masks, `masks` and `kl`
        are set to their state after its last whole step.

        Args:
            name: Name of the polish.
            steps: All of its steps.
            masks: The masks, which the steps change in place.
            kl: KL of the masks, which the steps change in place.
            n_spent: Tokens scored so far, which the steps change in place.
            bar: Shows the progress.
        """
        if not self.folder:
            yield from bar(steps, "Polish")
            return
        file, n_done, initial = self.folder / f"{name}.safetensors", 0, masks.cpu().clone()
        with suppress(*READ_ERRORS):  # without a readable file the polish starts at its first step
            saved = read_checked(file)
            if saved["initial"].equal(initial):
                n_done = int(saved["done"])
                masks.copy_(saved["masks"])
                kl.copy_(saved["kl"])
                n_spent.copy_(saved["spent"])
        if self.shared:
            ranks.gathered(None)  # all have read it before it changes
        for number, step in enumerate(bar(steps[n_done:], "Polish"), n_done + 1):
            yield step
            progress = {"done": torch.tensor(number), "masks": masks, "kl": kl, "spent": n_spent}
            self._write(file, {"initial": initial, **progress})

    def _write(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        if not self.shared or ranks.rank() == 0:
            write_checked(file, tensors)
