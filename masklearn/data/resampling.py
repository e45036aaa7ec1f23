"""Corrupted texts for resample ablation where the source has none: other texts of the same length."""

import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from masklearn.data.encoded import Encoded

RANDOM_TRIES = 8
"""Texts drawn at random before all candidates are searched in order."""


def add_resample_texts(texts: Sequence[Encoded], pool: Sequence[int], seed: int) -> list[Encoded]:
    """Give every text without a corrupted counterpart another text of the pool.

    The other text is drawn at random from those of equal length. If there is none, it is drawn from longer ones and
    truncated; if there is none of these either, several texts are concatenated. The draw depends only on the text, the
    pool and the seed. A text stays without a counterpart if the pool holds no different text.

    Args:
        texts: All texts.
        pool: Indices of the texts that others may be drawn from.
        seed: Seed of the draws.
    """
    candidates = _ResamplePool([texts[index].ids for index in pool])
    return [
        text if text.corrupted is not None else replace(text, corrupted=candidates.other_text(text.ids, seed))
        for text in texts
    ]


class _ResamplePool:
    """Token ids of the texts to draw from, indexed by their length."""

    def __init__(self, texts: Sequence[list[int]]) -> None:
        self.texts = texts
        self.by_length: dict[int, list[list[int]]] = defaultdict(list)
        for ids in texts:
            self.by_length[len(ids)].append(ids)
        self.ascending = sorted(texts, key=len)
        self.lengths = [len(ids) for ids in self.ascending]

    def other_text(self, ids: list[int], seed: int) -> list[int] | None:
        """As many tokens as `ids` has, from other texts; None if the pool holds no different text."""
        n = len(ids)
        generator = random.Random(f"{seed} {ids}")
        found = _draw_different(self.by_length[n], ids, generator)
        if found is None:
            found = _draw_different(self.ascending[bisect_right(self.lengths, n) :], ids, generator)
        if found is not None:
            return found
        joined = _draw_different(self.texts, ids, generator)
        while joined is not None and len(joined) < n:
            joined = joined + generator.choice(self.texts)
        return None if joined is None else joined[:n]


def _draw_different(candidates: Sequence[list[int]], ids: list[int], generator: random.Random) -> list[int] | None:
    """The first `len(ids)` tokens of a candidate that does not begin as `ids` does."""
    n = len(ids)
    shuffled = generator.sample(candidates, min(RANDOM_TRIES, len(candidates)))
    for options in (shuffled, candidates):
        for other in options:
            if other[:n] != ids[: len(other)]:
                return other[:n]
    return None
