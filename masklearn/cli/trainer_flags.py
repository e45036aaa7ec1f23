"""The `--trainer.*` flags: which of Lightning's a run supports, and those that depend on other settings."""

import os
import re
from collections.abc import Sequence
from typing import Any

from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from masklearn.errors import UserError

VALIDATION_INTERVAL, VALIDATION_SHARE = 50, 0.167
"""Steps between two evaluations on the validation split; or a share of the steps, if the model decides their number."""
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
COUNTED_IN_BATCHES = ("limit_train_batches", "overfit_batches")
"""Of those flags, the ones of which a whole number counts batches, and 1.0 is all of them."""
SINGLE_DEVICE_VALUES = {"devices": (1, "1"), "num_nodes": (1,), "strategy": (None, "auto")}
STRATEGIES = (None, "auto", "ddp")
"""Values of `--trainer.strategy`: the first two are ddp if there are several devices."""
NO_LIMIT = {"max_steps": "-1", "max_time": "null"}
"""Lightning's flags that limit a run, and the values that lift the limit."""


def require_supported_flags(trainer: Any) -> None:
    """Refuse trainer flags that conflict with how a run works.

    Args:
        trainer: The trainer's section of the config.

    Raises:
        UserError: Names the flag and what to use instead.
    """
    n_tasks = int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else 1
    n_devices = int(trainer.devices) if str(trainer.devices).isdecimal() else 0
    if n_tasks > 1 and uses_ranks(trainer) and n_devices and n_devices * trainer.num_nodes != n_tasks:
        raise UserError(
            f"this SLURM job has {n_tasks} tasks, but --trainer.devices {n_devices} on --trainer.num_nodes "
            f"{trainer.num_nodes} makes {n_devices * trainer.num_nodes} processes. Make both the same"
        )
    if n_tasks > 1 and not uses_ranks(trainer):
        raise UserError(
            f"this SLURM job has {n_tasks} tasks, but the run is one process. Give each task a "
            "device: --trainer.devices and --trainer.num_nodes; or submit the job with sbatch -n 1 and --cpus-per-task"
        )
    for flag, alternative in UNSUPPORTED_TRAINER_FLAGS.items():
        value = trainer[flag]
        counts_batches = flag in COUNTED_IN_BATCHES and type(value) is int and value > 0
        if value is True or counts_batches or value not in NEUTRAL_VALUES:
            raise UserError(f"trainer.{flag} is {value}, but masklearn sets it itself. {alternative}")
    if trainer.strategy not in STRATEGIES:
        raise UserError(
            f"trainer.strategy is {trainer.strategy}, but every device holds the whole model. Choose "
            "--trainer.strategy ddp"
        )


def uses_ranks(trainer: Any) -> bool:
    """Whether a run with this trainer section has a process for each of several devices."""
    return bool(_flags_of_several_devices(trainer))


def _flags_of_several_devices(trainer: Any) -> list[str]:
    """The flags that ask for more than one device or process; a list of one device names which one to use."""
    changed = [flag for flag, values in SINGLE_DEVICE_VALUES.items() if trainer[flag] not in values]
    is_one = isinstance(trainer.devices, list) and len(trainer.devices) == 1
    return [flag for flag in changed if not (flag == "devices" and is_one)]


def parse_shard(given: str | None) -> tuple[int, int]:
    """The number of a shard, from 0, and how many there are; a run without shards is one of one.

    Raises:
        UserError: If it is not two numbers such as 3/8.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", given or "1/1")
    number, n_shards = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= n_shards:
        raise UserError(f"run.shard is {given}; give the number of this shard and of all, from 1/8 to 8/8 for eight")
    return number - 1, n_shards


def require_one_process(trainer: Any, device_map: str | None) -> None:
    """Refuse a device map in a run of several processes, each of which would spread a model over the same devices.

    Args:
        trainer: The trainer's section of the config.
        device_map: The model's device map.

    Raises:
        UserError: Which of the two to use when.
    """
    changed = _flags_of_several_devices(trainer)
    if device_map and changed:
        raise UserError(
            f"model.device_map spreads one model over the devices of one process, and trainer.{changed[0]} is "
            f"{trainer[changed[0]]}. For a model that fits on one device leave --model.device_map out; for a larger "
            f"one leave --trainer.{changed[0]} out"
        )


def default_validation_interval(steps: int | None) -> int | float:
    """Steps between two validations of a run of that many; a share of the run if its steps depend on the model."""
    return min(VALIDATION_INTERVAL, steps) if steps else VALIDATION_SHARE


def check_validation_interval(trainer: Trainer, steps: int) -> None:
    """Refuse an interval between validations that is longer than the run, as Lightning does after the run has begun.

    Args:
        trainer: The trainer of the run.
        steps: Optimiser steps of the run.

    Raises:
        UserError: The largest interval that would do.
    """
    interval = trainer.val_check_interval
    if trainer.limit_val_batches and isinstance(interval, int) and interval > steps:
        raise UserError(
            f"trainer.val_check_interval is {interval}, but the run has {steps} steps. Choose at most {steps}"
        )


def require_unlimited(trainer: Any, graph: str) -> None:
    """Refuse Lightning's limits where texts with graphs of their own are learned one by one, which it does not count.

    Args:
        trainer: The trainer's section of the config.
        graph: What the graph is made of.

    Raises:
        UserError: What limits such a run instead.
    """
    if graph != "nodes" and (flags := limiting_flags(trainer)):
        raise UserError(
            f"trainer.{flags[0]} does not limit model.graph {graph}, whose texts are learned one by one. Leave it out; "
            "for less work choose fewer texts with --data.limit, or fewer steps of each with --model.steps"
        )


def limiting_flags(trainer: Any) -> list[str]:
    """The trainer flags that limit a run whose config has this trainer section."""
    return [flag for flag in NO_LIMIT if trainer[flag] not in (None, -1)]


def name_limits(flags: Sequence[str]) -> str:
    """What stopped a run before its last step, in words: these flags or, if there are none, a callback."""
    return " or ".join(f"--trainer.{flag}" for flag in flags) or "a callback of the trainer"


def flags_without(flags: Sequence[str]) -> str:
    """Flags to add to a command that resumes a run, so that these limits in the run's config no longer stop it."""
    return "".join(f" --trainer.{flag} {NO_LIMIT[flag]}" for flag in flags)
