"""The `--trainer.*` flags: which of Lightning's a run supports, and those that depend on other settings."""

import os
from collections.abc import Sequence
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from masklearn.errors import UserError

VALIDATION_INTERVAL = 50
"""Steps between two evaluations on the validation split, unless `--trainer.val_check_interval` says otherwise."""
UNSUPPORTED_TRAINER_FLAGS = {
    "precision": "Choose the precision of the frozen model with --model.dtype; gates stay float32",
    "accumulate_grad_batches": "Choose the texts of a step with --data.batch_size",
    "max_epochs": "Choose the number of steps with --model.steps",
    "limit_train_batches": "Choose the number of steps with --model.steps",
    "overfit_batches": "For few texts, use --data.limit",
    "fast_dev_run": "For a quick look, use --model.steps 10 --data.limit 30",
}
"""Lightning's flags that conflict with how a run works, and what to use instead."""
NEUTRAL_VALUES = (None, 1, False, "32", 32, "32-true")
"""Values of those flags that change nothing."""
SINGLE_DEVICE_VALUES = {"devices": (1, "1", [0]), "num_nodes": (1,), "strategy": (None, "auto")}
NO_LIMIT = {"max_steps": "-1", "max_time": "null"}
"""Lightning's flags that limit a run, and the values that lift the limit."""


def require_supported_flags(trainer: Any) -> None:
    """Refuse trainer flags that conflict with how a run works.

    Args:
        trainer: The trainer's section of the config.

    Raises:
        UserError: Names the flag and what to use instead.
    """
    if SLURMEnvironment.detect() and os.environ["SLURM_NTASKS"] != "1":
        raise UserError(
            f"this SLURM job has {os.environ['SLURM_NTASKS']} tasks, but a run is one process. Submit it with sbatch "
            "-n 1, and with --cpus-per-task for more cores"
        )
    for flag, alternative in UNSUPPORTED_TRAINER_FLAGS.items():
        if trainer[flag] is True or trainer[flag] not in NEUTRAL_VALUES:
            raise UserError(f"trainer.{flag} is {trainer[flag]}, but masklearn sets it itself. {alternative}")
    for flag, values in SINGLE_DEVICE_VALUES.items():
        if trainer[flag] not in values:
            raise UserError(
                f"trainer.{flag} is {trainer[flag]}; a run uses one device. Start one run for each device instead"
            )


def require_one_process(trainer: Any, device_map: str | None) -> None:
    """Refuse a device map in a run of several processes, each of which would spread a model over the same devices.

    Args:
        trainer: The trainer's section of the config.
        device_map: The model's device map.

    Raises:
        UserError: Which of the two to use when.
    """
    changed = [flag for flag, values in SINGLE_DEVICE_VALUES.items() if trainer[flag] not in values]
    if device_map and changed:
        raise UserError(
            f"model.device_map spreads one model over the devices of one process, and trainer.{changed[0]} is "
            f"{trainer[changed[0]]}. For a model that fits on one device leave --model.device_map out; for a larger "
            f"one leave --trainer.{changed[0]} out"
        )


def set_validation_interval(trainer: Any, steps: int) -> None:
    """Set the interval between validations, or check the one given.

    Args:
        trainer: The trainer's section of the config; changed in place.
        steps: Optimiser steps of the run.

    Raises:
        UserError: If the interval given is longer than the run, which Lightning would notice only later.
    """
    interval = trainer.val_check_interval
    if interval is None:
        trainer.val_check_interval = max(1, min(VALIDATION_INTERVAL, steps))
    elif isinstance(interval, int) and interval > steps and trainer.check_val_every_n_epoch is not None:
        raise UserError(
            f"trainer.val_check_interval is {interval}, but the run has {steps} steps. Choose at most {steps}"
        )


def limiting_flags(trainer: dict[str, Any]) -> list[str]:
    """The trainer flags that limit a run whose config has this trainer section."""
    return [flag for flag in NO_LIMIT if trainer[flag] not in (None, -1)]


def name_limits(flags: Sequence[str]) -> str:
    """What stopped a run before its last step, in words: these flags or, if there are none, a callback."""
    return " or ".join(f"--trainer.{flag}" for flag in flags) or "a callback of the trainer"


def flags_without(flags: Sequence[str]) -> str:
    """Flags to add to a command that resumes a run, so that these limits in the run's config no longer stop it."""
    return "".join(f" --trainer.{flag} {NO_LIMIT[flag]}" for flag in flags)
