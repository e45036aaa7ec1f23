"""Which next-token distributions of a text count, and where texts are cut for it."""

import random
from collections.abc import Sequence
from typing import Literal

from masklearn.data.texts import Text

Positions = Literal["last", "all", "random", "each"]
"""`last`, `all`: of the whole text. `random`: one, and the text is cut behind the token that came there. `each`: every
one in turn, each with an input of its own, cut likewise."""
CUT: tuple[Positions, ...] = ("random", "each")
"""Those whose inputs end with the token that came, which the scored position does not see."""
LEAST_READ = 2
"""Tokens before a random position, where the text has them: a beginning token alone says nothing of a text."""


def inputs(
    positions: Positions, texts: Sequence[Text], ids: Sequence[list[int]], seed: int
) -> list[tuple[Text, list[int]]]:
    """The inputs that texts give, each with the text it is of.

    Args:
        positions: What counts.
        texts: The texts.
        ids: Their tokens, two or more each.
        seed: Of the random positions; equal texts have equal ones.
    """
    found: list[tuple[Text, list[int]]] = []
    for text, tokens in zip(texts, ids, strict=True):
        if positions == "random":
            least = min(LEAST_READ, len(tokens) - 1)
            at = random.Random(f"{seed}/{tokens}").randrange(least, len(tokens))
            found.append((text, tokens[: at + 1]))
        elif positions == "each":
            found += [(text._replace(at=at), tokens[: at + 1]) for at in range(1, len(tokens))]
        else:
            found.append((text, tokens))
    return found
