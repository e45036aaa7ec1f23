"""The doors' command lines. A user's mistake becomes one line and exit code 2."""

import logging
import sys
import warnings
from collections.abc import Callable

import datasets
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers.utils import logging as transformers_logging

from masklearn.cli.evaluate_command import run_evaluation
from masklearn.cli.stopping import interruptible
from masklearn.cli.train_command import run_training
from masklearn.errors import UserError, one_line

LONGEST = 1000
"""Letters of a message; the middle of a longer one is left out."""


def train(args: list[str] | None = None) -> int:
    """`python train.py`: the exit code."""
    return _guarded(run_training, args)


def evaluate(args: list[str] | None = None) -> int:
    """`python evaluate.py`: the exit code."""
    return _guarded(run_evaluation, args)


def _guarded(door: Callable[[list[str] | None], None], args: list[str] | None) -> int:
    """Run a door; a user's mistake becomes one line and exit code 2."""
    _quieten()
    try:
        with interruptible():
            door(args)
    except UserError as error:
        message = str(error)
    except MisconfigurationException as error:
        message = f"trainer: {one_line(error)}"
    except torch.OutOfMemoryError as error:
        message = f"out of memory ({one_line(error)}). Try a smaller --data.batch_size, or --model.dtype bfloat16"
    except KeyboardInterrupt:
        message = "stopped"
    else:
        return 0
    print(f"error: {_printable(message)}", file=sys.stderr)
    return 2


def _printable(message: str) -> str:
    """One line of a length to read, whatever is quoted in it: files and metadata may hold line breaks and escapes."""
    line = "".join(letter if letter.isprintable() else " " for letter in message)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def _quieten() -> None:
    """Silence what other libraries say about themselves, so that what we say is seen."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry
    logging.raiseExceptions = False  # on a full disk, W&B's log prints a traceback for every line it cannot write
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*Checkpoint directory.*exists.*",
        ".*in eval mode.*",
        ".*dirpath has changed.*",
    ):
        warnings.filterwarnings("ignore", message)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
