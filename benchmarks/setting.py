"""What the benchmarks share: quiet trainers, and a real model with its texts where one stands beside the project."""

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

STORIES = Path(__file__).resolve().parents[2] / "shared"
"""The pretrained model and texts that may stand beside a checkout of the project."""


def quiet_trainer(**settings: Any) -> Trainer:
    """A trainer that says and writes nothing."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    quiet: dict[str, Any] = {
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        "devices": 1,
    }
    return Trainer(**quiet | settings)


@dataclass(frozen=True)
class Setting:
    """A model and its texts; by default the stories beside the project, or the embedded model and its language.

    Args:
        lm: Model.
        path: Texts in a file.
        task: Task of the embedded generator, in place of a file.
    """

    lm: str = str(STORIES / "models" / "stories260k") if STORIES.is_dir() else "embedded"
    path: str | None = str(STORIES / "data" / "stories.jsonl") if STORIES.is_dir() else None
    task: str | None = None

    def data(self, **settings: Any) -> ml.MaskData:
        texts = {"path": self.path} if self.path and not self.task else {"task": self.task or "mixed"}
        return ml.MaskData(lm=self.lm, **texts, **settings)

    def __str__(self) -> str:
        return f"{Path(self.lm).name}, {self.task or Path(self.path or 'mixed').name}"
