"""Quiet trainers and the default model and texts of the benchmarks."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from lightning import Trainer
from transformers.utils import logging as transformers_logging

import masklearn as ml

SHARED_FOLDER = Path(__file__).resolve().parents[2] / "shared"
"""Folder beside the checkout that may hold a pretrained model and its texts."""


def quiet_trainer(**settings: Any) -> Trainer:
    """Make a trainer that prints and writes nothing."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        "devices": 1,
    }
    return Trainer(**defaults | settings)


@dataclass(frozen=True)
class Setting:
    """A model and its texts: by default TinyStories 260K if it is in the shared folder, else the embedded model.

    Args:
        lm: Model folder, hub id or `embedded`.
        path: File with texts.
        task: Task of the embedded language, instead of a file.
    """

    lm: str = str(SHARED_FOLDER / "models" / "stories260k") if SHARED_FOLDER.is_dir() else "embedded"
    path: str | None = str(SHARED_FOLDER / "data" / "stories.jsonl") if SHARED_FOLDER.is_dir() else None
    task: str | None = None

    def data(self, **settings: Any) -> ml.MaskData:
        """Make the data module; settings are those of `MaskData`."""
        source = {"path": self.path} if self.path and not self.task else {"task": self.task or "mixed"}
        return ml.MaskData(lm=self.lm, **source, **settings)

    def __str__(self) -> str:
        return f"{Path(self.lm).name}, {self.task or Path(self.path or 'mixed').name}"
