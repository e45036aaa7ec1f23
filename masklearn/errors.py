"""What went wrong, what was allowed, what to change: in one line, for the person at the keyboard."""

from collections.abc import Iterable
from difflib import get_close_matches

from torch import Tensor


class UserError(Exception):
    """Something the user can mend. The doors print its message alone and exit with code 2."""


class NonFiniteLoss(UserError):
    """Training met a loss that is not a number or infinite; what was learned before it is kept."""


def require_finite(what: str, value: Tensor, step: int) -> None:
    """Stop before a step that would spoil what was learned.

    Raises:
        NonFiniteLoss: If a value is not a number or infinite.
    """
    if not value.isfinite().all():
        raise NonFiniteLoss(
            f"the {what} at step {step} is not finite, and nothing of that step was taken. "
            "Try --model.dtype float32, or leave out the texts that the model itself cannot read"
        )


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like a mistyped one, if any is like it at all."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def one_line(error: BaseException) -> str:
    """The first informative line of another library's error, to quote inside ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
