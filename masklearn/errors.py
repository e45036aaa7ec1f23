"""Errors for the user: what happened, what is allowed and what to change, in one line."""

from collections.abc import Iterable
from difflib import get_close_matches

from torch import Tensor


class UserError(Exception):
    """An error that the user can fix. The command line prints its message alone and exits with code 2."""


class NonFiniteLoss(UserError):
    """A loss or gradient is NaN or infinite; the parameters of the last finite step are kept."""


def require_finite(what: str, value: Tensor, step: int) -> None:
    """Stop before a step that would corrupt the parameters.

    Args:
        what: The value in words.
        value: Any shape.
        step: The current step.

    Raises:
        NonFiniteLoss: If an element is NaN or infinite.
    """
    if not value.isfinite().all():
        raise NonFiniteLoss(
            f"the {what} at step {step} is not finite, so this step was not taken. "
            "Try --model.dtype float32, or leave out the texts on which the model itself is not finite"
        )


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most similar to a mistyped one; None if none is similar."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def one_line(error: BaseException) -> str:
    """The first non-empty line of another library's error, to quote in a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
