"""What the benchmarks share: quiet trainers, and a real model with its texts where one stands beside the project."""

import logging
import warnings
from dataclasses import dataclass, field
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
    """A model and its texts."""

    lm: str = "embedded"
    texts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, lm: str | None, path: Path | None, task: str | None) -> "Setting":
        """What was asked for; by default the stories beside the project, or the embedded model and texts."""
        if lm is None and path is None and task is None and STORIES.is_dir():
            return cls(str(STORIES / "models" / "stories260k"), {"path": str(STORIES / "data" / "stories.jsonl")})
        return cls(lm or "embedded", {"path": str(path)} if path else {"task": task or "mixed"})

    def data(self, **settings: Any) -> ml.MaskData:
        return ml.MaskData(lm=self.lm, **self.texts, **settings)

    def __str__(self) -> str:
        return f"{Path(self.lm).name}, {Path(next(iter(self.texts.values()))).name}"
