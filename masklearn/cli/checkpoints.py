"""A run's checkpoints: written atomically, verified before use, and the previous one is kept."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from masklearn.files import atomic_write

CHECKPOINT_FOLDER = Path("checkpoints")
LAST_CHECKPOINT = CHECKPOINT_FOLDER / "last.ckpt"
PREVIOUS_CHECKPOINT = CHECKPOINT_FOLDER / "before.ckpt"
REQUEUE_PATTERN = "hpc_ckpt_*.ckpt"
"""Checkpoints that Lightning's SLURM plugin saves in a run's folder when a job is requeued."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically. A new `last.ckpt` turns the old one into `before.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Raises:
            UserError: If it cannot be written; the old checkpoint is untouched.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        path = Path(path)
        is_last = path.name == LAST_CHECKPOINT.name
        atomic_write(path, content.getvalue(), keep=path.with_name(PREVIOUS_CHECKPOINT.name) if is_last else None)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Load a checkpoint; whatever the caller asks for, no code in it is run."""
        return super().load_checkpoint(path, map_location, weights_only=True)


class StepCheckpoint(ModelCheckpoint):
    """Saves when a step is complete, including the validation that falls on it."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: validation follows, and a run resumed from here would leave it out."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save the state after the previous step, if a checkpoint is due."""
        # the step that loggers see; Lightning recomputes it when a run is resumed, and is one off after some stops
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, None, batch, batch_idx)


def checkpoint_step(path: Path) -> int | None:
    """The step of a checkpoint; None if the file is damaged, which its checksums show."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                return None
        return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    except Exception:  # damaged files raise errors of any kind
        return None


def newest_intact(folder: Path) -> tuple[Path | None, str]:
    """The checkpoint to resume a run from.

    Args:
        folder: The run's folder.

    Returns:
        The newest checkpoint that is not damaged, None if there is none; and a notice if any is damaged.
    """
    candidates = (folder / LAST_CHECKPOINT, folder / PREVIOUS_CHECKPOINT, *sorted(folder.glob(REQUEUE_PATTERN)))
    steps = {path: checkpoint_step(path) for path in candidates if path.is_file()}
    intact = {path: step for path, step in steps.items() if step is not None}
    newest = max(intact, key=lambda path: intact[path], default=None)
    damaged = [str(path) for path in steps if path not in intact]
    if not damaged:
        return newest, ""
    resumed = "starting from step 0, as there is no other checkpoint"
    if newest:
        resumed = f"resuming from {newest}, at step {intact[newest]}"
    return newest, f"{', '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} damaged; {resumed}"
