"""Which next-token distributions of a text are scored, and where texts are truncated for it."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from masklearn.data.encoded import Encoded

Positions = Literal["last", "all", "random", "each", "completion"]
"""`last`, `all`: of the whole text. `random`: one position; the text is truncated after the token to predict.
`each`: every position in turn, each as an input of its own, truncated likewise. `completion`: every token of the
answer to a prompt, and none of the prompt."""
TRUNCATING: tuple[Positions, ...] = ("random", "each")
"""Modes whose inputs end with the token to predict, which the scored position does not see."""
MIN_CONTEXT_TOKENS = 2
"""Tokens before a random position, where the text has them: a beginning token alone carries no content."""


def expand_positions(positions: Positions, texts: Sequence[Encoded], seed: int) -> list[Encoded]:
    """The model inputs that texts give: one each, or one for every position.

    Args:
        positions: Which positions are scored.
        texts: Texts of at least two tokens.
        seed: Seed of the random positions; equal texts get equal positions.
    """
    if positions == "random":
        return [_truncate(text, _random_position(text.ids, seed)) for text in texts]
    if positions == "each":
        return [
            replace(_truncate(text, position), position=position)
            for text in texts
            for position in range(1, len(text.ids))
        ]
    return list(texts)


def _random_position(ids: list[int], seed: int) -> int:
    return random.Random(f"{seed}/{ids}").randrange(min(MIN_CONTEXT_TOKENS, len(ids) - 1), len(ids))


def _truncate(text: Encoded, position: int) -> Encoded:
    """A text up to and including one token. Answers are dropped, since they follow the end of the whole text."""
    corrupted = None if text.corrupted is None else text.corrupted[: position + 1]
    return replace(text, ids=text.ids[: position + 1], corrupted=corrupted, answers=(), wrong=())
