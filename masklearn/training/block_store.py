"""What a run has found so far: the masks of finished blocks, and how far the polish of others has come."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from masklearn.errors import UserError, one_line
from masklearn.files import atomic_write
from masklearn.selection.polish import Step

CHECKSUM = "sha256"
"""Where a file has the checksum of its tensors."""
UNREADABLE = (OSError, KeyError, ValueError, SafetensorError)
"""What comes of a file that is gone or damaged."""
ProgressBar = Callable[[Sequence[Step]], Iterable[Step]]
"""Passes on what it is given, as a progress bar does."""


class BlockStore:
    """Masks of blocks, each in a file of its own; and how far polish has come, after each of its steps.

    Args:
        folder: Where the files go; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.held: dict[int, dict[str, Tensor]] = {}

    def _file(self, block: int) -> Path | None:
        return self.folder / f"block-{block:06d}.safetensors" if self.folder else None

    def __contains__(self, block: int) -> bool:
        file = self._file(block)
        return file.is_file() if file else block in self.held

    def put(self, block: int, groups: Sequence[int], tensors: dict[str, Tensor]) -> None:
        """Keep what was found of some groups of the run: tensors by name, groups first in each."""
        tensors = {"groups": torch.tensor(list(groups)), **tensors}
        file = self._file(block)
        if file:
            _write(file, tensors)
        else:
            self.held[block] = {name: tensor.cpu() for name, tensor in tensors.items()}

    def get(self, block: int) -> dict[str, Tensor]:
        """What was kept of a block.

        Raises:
            UserError: If its file is gone or damaged.
        """
        file = self._file(block)
        try:
            return _read(file) if file else self.held[block]
        except UNREADABLE as error:
            raise UserError(
                f"a finished block of the run, {file or block}, cannot be read: {one_line(error)}. Put it back from a "
                "copy, or begin anew in another folder: --run.dir"
            ) from error

    def require(self, n_blocks: int) -> None:
        """Refuse to go on, after so many blocks, if one of them is lost.

        Raises:
            UserError: If a block's file is gone or damaged.
        """
        for block in range(n_blocks):
            self.get(block)

    def gather(self, n_blocks: int) -> dict[str, Tensor]:
        """What was kept, of all groups in their order.

        Raises:
            UserError: If a block's file is gone or damaged.
        """
        blocks = [self.get(block) for block in range(n_blocks)]
        order = torch.cat([block["groups"] for block in blocks]).argsort()
        return {name: torch.cat([block[name] for block in blocks])[order] for name in blocks[0] if name != "groups"}

    def resume_polish(
        self, polish: str, steps: Sequence[Step], masks: Tensor, kl: Tensor, bar: ProgressBar = iter
    ) -> Iterator[Step]:
        """The steps of a polish that a process which was stopped did not come to.

        Args:
            polish: Its name.
            steps: All of its steps.
            masks: What they change, in place; as the other process left it, if that began with the same.
            kl: KL of the masks, in step with them.
            bar: Shows how far it has come.
        """
        if not self.folder:
            yield from bar(steps)
            return
        file, done, begun = self.folder / f"{polish}.safetensors", 0, masks.cpu().clone()
        with suppress(*UNREADABLE):  # then it begins anew
            kept = _read(file)
            if kept["begun"].equal(begun):
                done = int(kept["done"])
                masks.copy_(kept["masks"])
                kl.copy_(kept["kl"])
        for number, step in enumerate(bar(steps[done:]), done + 1):
            yield step
            _write(file, {"begun": begun, "done": torch.tensor(number), "masks": masks, "kl": kl})


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(file, save(tensors, {CHECKSUM: _checksum(tensors)}))


def _read(file: Path) -> dict[str, Tensor]:
    """What was written; one of the `UNREADABLE` is raised if it is gone or damaged."""
    with safe_open(file, "pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (no mapping)
        stated = (content.metadata() or {}).get(CHECKSUM)
    if stated != _checksum(tensors):
        raise ValueError("its checksum is another one")
    return tensors


def _checksum(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(save(tensors)).hexdigest()
