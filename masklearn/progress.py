"""Progress bars, as the package sees them: whoever has a terminal hands one down."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class ProgressBar(Protocol):
    """Passes on the items that it is given, and shows how many are done and the time left."""

    def __call__(
        self, items: Iterable[Item], phase: str, /, total: int | None = None, brief: bool = False
    ) -> Iterable[Item]:
        """Pass on the items.

        Args:
            items: What is worked on, one after the other.
            phase: What is done with them, a word or two.
            total: Their number, if `items` has no length.
            brief: Whether this is part of a longer phase with a bar of its own: the bar appears only if the work takes
                a while, and vanishes at its end.
        """
        ...


def no_bar(items: Iterable[Item], phase: str, /, total: int | None = None, brief: bool = False) -> Iterable[Item]:
    """Pass on the items and show nothing."""
    return items
