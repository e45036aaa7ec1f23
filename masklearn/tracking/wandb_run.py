"""How a W&B run is started: online with a login, offline without one, and with time limits on every wait."""

import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import wandb
from wandb import Run

from masklearn.errors import UserError, one_line

DEFAULT_PROJECT = "masklearn"
"""The W&B project, unless WANDB_PROJECT names another."""
INIT_TIMEOUT, FINISH_TIMEOUT = 15.0, 60.0
"""Seconds that W&B may take to start a run, and to send the remaining data at its end."""
FLUSH_INTERVAL = 1.0
"""Seconds between two writes of W&B to the disk."""

StartRun = Callable[..., Run]
"""`wandb.init` with everything settled but `mode` and `settings`."""


def project_name() -> str:
    """The W&B project of this run."""
    return os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT)


def run_starter(folder: Path, config: dict[str, Any], **arguments: Any) -> StartRun:
    """`wandb.init` for a run in a folder.

    Args:
        folder: The run is named after it, and W&B writes its files into it.
        config: All settings of the run.
        arguments: Further arguments of `wandb.init`.
    """
    return partial(wandb.init, project=project_name(), name=folder.name, dir=folder, config=config, **arguments)


def start_run(start: StartRun) -> tuple[Run, str]:
    """Start a W&B run: online if possible, else offline, else disabled.

    Returns:
        The run, and the reason if it is not online.

    Raises:
        UserError: If W&B can be neither started nor disabled.
    """
    mode, reason = os.environ.get("WANDB_MODE"), f"WANDB_MODE is {os.environ.get('WANDB_MODE')}"
    try:
        if mode is None:
            wandb.setup(wandb_settings(silent=True))  # otherwise W&B asks its server for the user's name, to greet them
            mode, reason = ("online", "") if wandb.login(prompt=False, verify=False) else ("offline", "no login found")
        return start(mode=mode, settings=wandb_settings(silent=mode != "online")), reason  # offline we print our own
    except Exception as error:
        reason = f"could not connect ({one_line(error)})" if mode == "online" else one_line(error)
    for fallback in ("offline", "disabled") if mode == "online" else ("disabled",):
        os.environ["WANDB_MODE"] = fallback
        try:
            wandb.teardown()  # the failed attempt still holds the run's id
            return start(mode=fallback, settings=wandb_settings(silent=True)), reason
        except Exception as error:
            reason = one_line(error)
    raise UserError(
        f"W&B can be neither started nor disabled ({reason}). Run without it: --trainer.logger false; in "
        "evaluate.py: --track false"
    )


def restart_offline(start: StartRun) -> Run:
    """Start an offline run in place of one that failed.

    Raises:
        Exception: Whatever W&B raises if that fails as well.
    """
    os.environ["WANDB_MODE"] = "offline"
    return start(mode="offline", settings=wandb_settings(silent=True))


def wandb_settings(**settings: Any) -> wandb.Settings:
    """W&B settings with our time limits, as far as the installed version has them."""
    settings |= {
        "init_timeout": INIT_TIMEOUT,
        "finish_timeout": FINISH_TIMEOUT,
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": FLUSH_INTERVAL,
    }
    return wandb.Settings(**{name: value for name, value in settings.items() if name in wandb.Settings.model_fields})


def describe_location(run: Run, reason: str) -> str:
    """One line for the user: the run's address, or its folder, why it is offline and how to send it."""
    if run.disabled:
        return f"W&B: disabled ({reason})"
    if not run.offline:
        return f"W&B: {run.url}"
    return f"W&B: {reason}, so the run is stored in {_folder(run)}. {how_to_sync([run])}"


def how_to_sync(runs: Sequence[Run]) -> str:
    """The command that sends runs from the disk to W&B."""
    folders = " ".join(shlex.quote(_folder(run)) for run in runs)
    return f"Send {'it' if len(runs) == 1 else 'them'} with: wandb sync {folders}"


def _folder(run: Run) -> str:
    folder = Path(run.dir).parent
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
