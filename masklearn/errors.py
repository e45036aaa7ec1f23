"""Errors for the user: what happened, what is allowed and what to change, in one line."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MAX_LISTED = 10
"""Names that a message lists."""


class UserError(Exception):
    """An error that the user can fix. The command line prints its message alone and exits with code 2."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message, without the traceback."""
        return [f"{type(self).__name__}: {self}"]


class NonFiniteLoss(UserError):
    """A loss or gradient is NaN or infinite; the parameters of the last finite step are kept."""


class WriteError(UserError):
    """A file cannot be written: the disk is full, or the folder is not the user's."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most similar to a mistyped one; None if none is similar."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def one_line(error: BaseException) -> str:
    """The first non-empty line of another library's error, to quote in a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
