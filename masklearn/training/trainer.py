"""How a run uses Lightning's trainer: its defaults, and which of Lightning's messages are left out."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Trainer

from masklearn.errors import UserError

SILENCED_WARNINGS = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",
    ".*Checkpoint directory.*exists.*",
    ".*in eval mode.*",
    ".*dirpath has changed.*",
    ".*smaller than the logging interval.*",
    ".*across ranks is zero.*",
    ".*sync_dist=True.*",
    ".*was called before the ``update`` method.*",  # a process may have nothing to measure
)
"""Patterns of warnings of other libraries that users can do nothing about."""
LIGHTNING_LOGGERS = ("lightning.pytorch", "lightning.fabric")


def trainer_defaults() -> dict[str, Any]:
    """Defaults of the trainer's flags, where a run's differ from Lightning's."""
    return {
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        "devices": 1,
        "max_epochs": 1,  # a run is one pass over the steps of all blocks
        "log_every_n_steps": 10,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
    }


def require_plain_trainer(trainer: Trainer) -> None:
    """Refuse a trainer with several devices, whose strategy would wrap the learner and average its gradients.

    That of `python train.py` does neither, and leaves the trainer's world size at 1. Accumulated gradients are refused,
    too: a block would get fewer steps than its plan says. So is a precision, which would convert the gates.

    Raises:
        UserError: If there are several devices, a step of several batches, or a precision of the trainer's own.
    """
    if trainer.precision != "32-true":
        raise UserError(
            f"the trainer has precision {trainer.precision!r}. Choose that of the frozen model with "
            "MaskLearner(dtype=...); gates stay float32"
        )
    if trainer.accumulate_grad_batches > 1:
        raise UserError(
            f"the trainer accumulates gradients of {trainer.accumulate_grad_batches} batches. Choose the texts of a "
            "step with MaskData(batch_size=...) instead"
        )
    if trainer.world_size > 1:
        raise UserError(
            f"the trainer has {trainer.world_size} devices, but a MaskLearner uses one: Trainer(devices=1). For "
            "several run python train.py --trainer.devices N"
        )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence what Lightning says about itself, so that users see our messages."""
    loggers = [logging.getLogger(name) for name in LIGHTNING_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in SILENCED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
