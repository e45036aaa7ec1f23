"""The entry points: they run a command and turn a user's mistake into one line and exit code 2."""

import logging
import re
import sys
from collections.abc import Callable
from io import TextIOWrapper

import datasets
from transformers.utils import logging as transformers_logging

from masklearn.cli.evaluate_command import run_evaluation
from masklearn.cli.export_command import run_export
from masklearn.cli.stopping import interruptible
from masklearn.cli.train_command import run_training
from masklearn.cli.user_messages import LESS_MEMORY, user_message
from masklearn.training.trainer import quiet_lightning

FLAGS_OF_LOADING = ("trust_remote_code", "allow_pickle", "dtype", "device_map")
"""Flags of loading a model that all commands have."""
MAX_MESSAGE_LENGTH = 1000
"""Characters of a message that are printed; the middle of a longer one is left out."""


def train(args: list[str] | None = None) -> int:
    """Run `python train.py`.

    Args:
        args: The command line; that of the process by default.

    Returns:
        The exit code.
    """
    return exit_code(run_training, args)


def evaluate(args: list[str] | None = None) -> int:
    """Run `python evaluate.py`; arguments and result are those of `train`."""
    return exit_code(run_evaluation, args, own_flags)


def export(args: list[str] | None = None) -> int:
    """Run `python export.py`; arguments and result are those of `train`."""
    return exit_code(run_export, args, lambda message: own_flags(message).replace("--data.tokenizer", "--tokenizer"))


def own_flags(message: str) -> str:
    """A message with flags of the model as evaluate.py and export.py name them; those of train.py begin with model."""
    message = message.replace("model.lm:", "lm:").replace(LESS_MEMORY, "Try a smaller --data.batch_size")
    return re.sub(rf"--model\.({'|'.join(FLAGS_OF_LOADING)})\b", r"--\1", message)


def exit_code(
    command: Callable[[list[str] | None], None],
    args: list[str] | None,
    reworded: Callable[[str], str] = str,
) -> int:
    """Run a command: 0, or 2 after one line that says what went wrong, reworded for the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack characters of tables and texts
    _silence_libraries()
    with quiet_lightning(), interruptible() as requeue:
        try:
            command(args)
        except (Exception, KeyboardInterrupt) as error:
            if not (message := user_message(error)):
                raise
        else:
            return 0
        print(f"error: {printable(reworded(message))}", file=sys.stderr, flush=True)
        if notice := requeue.finish():
            print(notice, flush=True)
    return 2


def printable(message: str) -> str:
    """A message as one line of bounded length, without control characters that a quoted file may contain."""
    line = "".join(letter if letter.isprintable() else " " for letter in message)
    if len(line) <= MAX_MESSAGE_LENGTH:
        return line
    return f"{line[: MAX_MESSAGE_LENGTH // 2]} ... {line[-MAX_MESSAGE_LENGTH // 2 :]}"


def _silence_libraries() -> None:
    """Silence the messages of other libraries, so that users see ours."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports every retry
    logging.raiseExceptions = False  # on a full disk, W&B's log prints a traceback for every line it cannot write
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
