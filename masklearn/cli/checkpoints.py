"""A run's checkpoints: whole on the disk or not there, checked before they are used, and the one before kept."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from masklearn.files import atomic_write

FOLDER = Path("checkpoints")
LAST, BEFORE = FOLDER / "last.ckpt", FOLDER / "before.ckpt"
REQUEUED = "hpc_ckpt_*.ckpt"
"""What Lightning's SLURM plugin leaves in a run's folder when a job is put back into the queue."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint aside, flushes it and puts it in place; the one that was there becomes `before.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        path = Path(path)
        atomic_write(path, content.getvalue(), keep=path.with_name(BEFORE.name) if path.name == LAST.name else None)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return super().load_checkpoint(path, map_location, weights_only=True)  # whoever asks: nothing in it is run


class StepCheckpoint(ModelCheckpoint):
    """Saves where a step is over and done with, the look at the validation split that falls on it included."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Too early: the validation is still to come, and a run that goes on would leave it out."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # what loggers call the step; Lightning guesses it anew when a run goes on, and is one off after some stops
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, None, batch, batch_idx)


def step_of(path: Path) -> int | None:
    """The step of a checkpoint; None if it is damaged: every part of the file carries a checksum."""
    try:
        with zipfile.ZipFile(path) as parts:
            if parts.testzip():
                return None
        return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    except Exception:  # damaged files raise whatever they like
        return None


def newest_sound(folder: Path) -> tuple[Path | None, str]:
    """The checkpoint of a run's folder to go on from, and what there is to say about it, if anything."""
    present = [path for path in (folder / LAST, folder / BEFORE, *sorted(folder.glob(REQUEUED))) if path.is_file()]
    steps = {path: step_of(path) for path in present}
    sound = {path: step for path, step in steps.items() if step is not None}
    chosen = max(sound, key=lambda path: sound[path], default=None)
    damaged = ", ".join(str(path) for path in present if path not in sound)
    if not damaged:
        return chosen, ""
    return chosen, f"{damaged} is damaged; going on from " + (
        f"{chosen}, at step {sound[chosen]}" if chosen else "the beginning, as there is no other"
    )
