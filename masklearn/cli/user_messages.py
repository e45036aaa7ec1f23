"""Errors that a user can do something about, among them those of other libraries, in one line."""

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from masklearn.errors import UserError, one_line
from masklearn.masking import is_device_failure

LESS_MEMORY = "Try a smaller --data.batch_size, fewer groups at once with --model.block, or --model.dtype bfloat16"
"""What makes a run need less memory."""
QUOTED_LENGTH = 200
"""Characters of a device's error that are quoted."""


def user_message(error: BaseException) -> str:
    """What a user reads about an error instead of its traceback; empty if only the traceback helps."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MisconfigurationException):
        return f"trainer: {' '.join(str(error).split())}"  # what there is often stands in the second line
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory ({one_line(error)}). {LESS_MEMORY}"
    if isinstance(error, RuntimeError) and is_device_failure(error):
        return f"the device failed ({one_line(error)[:QUOTED_LENGTH]}). Start again once it works"
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    return ""
