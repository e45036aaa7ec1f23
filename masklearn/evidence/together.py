"""Several ranks gather evidence: each computes a part at a time, and rank 0 finds all parts where they are kept."""

from collections.abc import Iterator, Sequence

from masklearn import ranks
from masklearn.data import BlockQueue
from masklearn.errors import UserError, WriteError
from masklearn.evidence.kept_parts import KeptPart
from masklearn.progress import ProgressBar


def compute_together(parts: Sequence[KeptPart], bar: ProgressBar) -> None:
    """Let the ranks take one part after the other, and wait until all are computed; every rank must call this.

    A part that cannot be computed is left to whoever needs it, and meets the error there. A single process leaves all.

    Args:
        parts: Parts that do not need each other, the longest first.
        bar: Shows how many have been begun.

    Raises:
        WriteError: If a part cannot be kept.
    """
    if ranks.count() == 1:
        return
    for part in bar(_taken(parts), "Parts", total=len(parts)):
        if part:
            with ranks.alone():
                _compute(part)
    ranks.meet()


def _compute(part: KeptPart) -> None:
    try:
        part()
    except WriteError:  # nothing that follows could be kept either
        raise
    except UserError:
        pass


def _taken(parts: Sequence[KeptPart]) -> Iterator[KeptPart | None]:
    """The parts that this rank takes, and None in place of each that another one has taken."""
    queue, n_passed = BlockQueue(range(len(parts))), 0
    while queue.take():
        number = queue.taken[-1]
        yield from [None] * (number - n_passed)
        yield parts[number]
        n_passed = number + 1
    yield from [None] * (len(parts) - n_passed)
