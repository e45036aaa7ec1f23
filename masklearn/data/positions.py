"""Which next-token distributions of a text count, and where texts are cut for it."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from masklearn.data.tokenization import Encoded

Positions = Literal["last", "all", "random", "each"]
"""`last`, `all`: of the whole text. `random`: one, and the text is cut behind the token that came there. `each`: every
one in turn, each with an input of its own, cut likewise."""
CUT: tuple[Positions, ...] = ("random", "each")
"""Those whose inputs end with the token that came, which the scored position does not see."""
LEAST_READ = 2
"""Tokens before a random position, where the text has them: a beginning token alone says nothing of a text."""


def inputs(positions: Positions, texts: Sequence[Encoded], seed: int) -> list[Encoded]:
    """The inputs that texts give.

    Args:
        positions: What counts.
        texts: The texts, of two tokens or more each.
        seed: Of the random positions; equal texts have equal ones.
    """
    if positions == "random":
        return [_cut(text, _drawn(text.ids, seed)) for text in texts]
    if positions == "each":
        return [replace(_cut(text, at), at=at) for text in texts for at in range(1, len(text.ids))]
    return list(texts)


def _drawn(ids: list[int], seed: int) -> int:
    return random.Random(f"{seed}/{ids}").randrange(min(LEAST_READ, len(ids) - 1), len(ids))


def _cut(text: Encoded, at: int) -> Encoded:
    """A text up to a token and with it; an answer that comes after its end is none any more."""
    other = None if text.corrupted is None else text.corrupted[: at + 1]
    return replace(text, ids=text.ids[: at + 1], corrupted=other, answers=(), wrong=())
