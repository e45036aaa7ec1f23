"""Memory that learning the subgraphs of one text takes, from the memory of short texts; and how long a text may be.

What a forward keeps for its backward is a polynomial of second degree in the tokens T of a text. Of edges, T squared
counts for gates and attention weights of every layer and head. Of positions it does so only where the model's
attention keeps its weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from masklearn.errors import UserError
from masklearn.shares import TextUnit
from masklearn.training.budget import GRID

PROBED_TOKENS = 32
"""Length of the longest of the texts whose memory is measured; the others have a half and a quarter of it."""
SEARCH_BYTES = 3 * 4 * GRID
"""Of every unit while the budget of one size is searched for: three arrays of its log-odds under many shifts."""
STEP_BYTES = 104
"""Of every unit and size in a step: scores, their gradients and Adam's two moments of them, log-odds before and after
the shift, gates, their gradients, flat copies, and the probabilities that an edge is closed, from which those of the
streams follow."""


@dataclass(frozen=True)
class TextMemory:
    """Bytes that learning takes, besides the weights."""

    row: tuple[float, float, float]
    """What a forward of one size keeps for its backward: bytes, bytes for each token, and for each squared."""
    n_units: Callable[[int], int]
    """Edges or positions of a text of so many tokens."""
    n_sizes: int

    @classmethod
    def probed(
        cls, row_bytes: Callable[[int], int], n_units: Callable[[int], int], n_sizes: int, context: int | None = None
    ) -> Self:
        """Measure some short texts.

        Args:
            row_bytes: From the tokens of a text to what one row keeps for its backward.
            n_units: As in the class.
            n_sizes: Sizes that are learned together, a row each.
            context: Tokens that the model reads at most, if known.
        """
        c = max(4, min(PROBED_TOKENS, context or PROBED_TOKENS))
        a, b = c // 4, c // 2
        at_a, at_b, at_c = map(row_bytes, (a, b, c))
        slope = (at_b - at_a) / (b - a)
        square = max(0.0, ((at_c - at_b) / (c - b) - slope) / (c - a))
        linear = slope - square * (a + b)
        return cls((at_a - linear * a - square * a * a, linear, square), n_units, n_sizes)

    def __call__(self, n_tokens: int) -> float:
        """Bytes for a text of so many tokens."""
        row = sum(value * n_tokens**degree for degree, value in enumerate(self.row))
        return self.n_sizes * row + (SEARCH_BYTES + self.n_sizes * STEP_BYTES) * self.n_units(n_tokens)

    def require(self, n_tokens: int, allowed: float, unit: TextUnit) -> None:
        """Refuse texts that do not fit.

        Args:
            n_tokens: Tokens of the longest text.
            allowed: Bytes that may be used.
            unit: What is learned.

        Raises:
            UserError: Names the memory, and how long a text would do.
        """
        if self(n_tokens) <= allowed:
            return
        fits = _largest(range(1, n_tokens), lambda t: self(t) <= allowed)
        raise UserError(
            f"model.graph {unit}: learning {self.n_sizes} sizes of a text of {n_tokens} tokens, with "
            f"{self.n_units(n_tokens):,} {unit}, needs {self(n_tokens) / 1e9:.1f} GB, and {allowed / 1e9:.1f} GB may "
            f"be used. Texts of up to {fits} tokens fit: --data.max_length {fits}. Fewer sizes need less: --model.sizes"
        )


def _largest(values: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The last of some ascending values that fits, where all before it do; the first if none does."""
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(values[middle]) else (low, middle - 1)
    return values[low]
