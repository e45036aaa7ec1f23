"""Texts to tokens: cut or packed, each with its corrupted counterpart and with the tokens that answer it."""

import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from transformers import PreTrainedTokenizerBase

from masklearn.data.columns import Text
from masklearn.errors import UserError, one_line

TRIES = 8
"""Draws of another text before all are looked through."""


@dataclass(frozen=True)
class Encoded:
    """One text in tokens."""

    row: int
    """Its place in the source, from 0."""
    value: str
    """What the group column holds."""
    ids: list[int]
    corrupted: list[int] | None = None
    """The other text of its pair, of as many tokens; or another text of the source."""
    answers: tuple[int, ...] = ()
    """Tokens that are right after the text, and tokens that are wrong."""
    wrong: tuple[int, ...] = ()
    at: int = 0
    """The token that comes next, where every position of the text gives an input of its own."""

    @property
    def name(self) -> str:
        """What an input is called: the text's place, and the token's where it has one."""
        return f"{self.row}:{self.at}" if self.at else f"{self.row}"


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, and what is done with texts that are too long.

    Args:
        source: Where the texts come from, in words.
        lm: Whose tokenizer it is.
        max_length: Tokens of a text at most.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    lm: str
    max_length: int

    def __call__(self, texts: Sequence[Text]) -> tuple[list[Encoded], list[str]]:
        """The texts in tokens, cut where they are too long; and remarks on what became of them.

        Pairs of unequal length are left out: what a node puts out at a position can take another's place there only
        where positions correspond.

        Raises:
            UserError: If the tokenizer cannot read them, if a text that has an answer would be cut, or if no pair is
                of equal length.
        """
        whole = self._ids([text.text for text in texts])
        too_long = [i for i, text in enumerate(texts) if text.answers and len(whole[i]) > self.max_length]
        if too_long:
            raise UserError(
                f"{self.source}: {len(too_long)} texts with answers are longer than data.max_length "
                f"{self.max_length}, the first is text {texts[too_long[0]].row + 1} of {len(whole[too_long[0]])} "
                f"tokens. Raise it: --data.max_length {max(len(whole[i]) for i in too_long)}"
            )
        found = [Encoded(t.row, t.value, ids[: self.max_length]) for t, ids in zip(texts, whole, strict=True)]
        notices: list[str] = []
        found = self._answered(texts, found, whole, notices)
        if not any(text.corrupted is not None for text in texts):
            return found, notices
        others = self._ids([text.corrupted or "" for text in texts])
        found = [replace(text, corrupted=ids[: self.max_length]) for text, ids in zip(found, others, strict=True)]
        unequal = [i for i, (ids, other) in enumerate(zip(whole, others, strict=True)) if len(ids) != len(other)]
        if unequal:
            first = unequal[0]
            what = (
                f"the first is text {texts[first].row + 1} of {len(whole[first])} tokens, "
                f"with {len(others[first])} in its corrupted text"
            )
            if len(unequal) == len(texts):
                raise UserError(
                    f"{self.source}: no pair has as many tokens in its corrupted text; {what}. Give pairs of equal "
                    "length for this tokenizer, or name another column with --data.corrupted_column"
                )
            notices.append(f"{len(unequal)} of {len(texts)} pairs are of unequal token length and left out; {what}")
        out = set(unequal)
        return [text for i, text in enumerate(found) if i not in out], notices

    def packed(self, texts: Sequence[Text]) -> list[Encoded]:
        """The texts of every group in a row, in pieces of `max_length` tokens; what is left at the end is a piece too.

        Between two texts stands the end token, where the tokenizer has one and does not begin texts with another.

        Raises:
            UserError: If the tokenizer cannot read them, or if texts stand in pairs or have answers.
        """
        if any(text.corrupted is not None or text.answers for text in texts):
            raise UserError(f"{self.source} holds pairs or answers, which cannot be packed. Leave out --data.pack")
        rows: dict[str, list[int]] = defaultdict(list)
        end = self.tokenizer.eos_token_id
        for text, ids in zip(texts, self._ids([text.text for text in texts]), strict=True):
            begun = ids[:1] == [self.tokenizer.bos_token_id]
            rows[text.value] += ids + ([end] if isinstance(end, int) and not begun and ids[-1:] != [end] else [])
        pieces = [
            (value, row[begin : begin + self.max_length])
            for value, row in rows.items()
            for begin in range(0, len(row), self.max_length)
        ]
        kept = [piece for piece in pieces if len(piece[1]) > 1]
        return [Encoded(i, value, ids) for i, (value, ids) in enumerate(kept)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return cast(list[list[int]], self.tokenizer(list(texts))["input_ids"])
        except Exception as error:  # tokenizers raises nothing more special
            raise UserError(
                f"{self.source}: the tokenizer of {self.lm} cannot read these texts ({one_line(error)}). "
                "Give the model that the texts are for with --model.lm"
            ) from error

    def _answered(
        self, texts: Sequence[Text], found: list[Encoded], whole: list[list[int]], notices: list[str]
    ) -> list[Encoded]:
        """The texts with the tokens that answer them.

        An answer counts by its first token. One that a wrong answer begins with as well tells nothing.
        """
        known, vocabulary = self._first_tokens(texts, whole), len(self.tokenizer)
        foreign = [i for text in texts for i in text.answers + text.wrong if isinstance(i, int) and i >= vocabulary]
        if foreign:
            notices.append(
                f"Ids of answers are of another tokenizer: {foreign[0]} among them, and this one has {vocabulary} "
                "tokens. Answers are not looked at"
            )
            return found
        answered, alike = [], 0
        for text, encoded in zip(texts, found, strict=True):
            right, wrong = (
                {a if isinstance(a, int) else known[text.text, a] for a in some} for some in (text.answers, text.wrong)
            )
            both = right & wrong
            alike += bool(both)
            right, wrong = right - both, wrong - both
            if not right or (text.wrong and not wrong):
                right, wrong = set(), set()
            answered.append(replace(encoded, answers=tuple(sorted(right)), wrong=tuple(sorted(wrong))))
        if alike:
            notices.append(
                f"In {alike} of {len(texts)} texts right and wrong answers begin with the same token, "
                "which says nothing of either: such answers are not looked at"
            )
        return answered

    def _first_tokens(self, texts: Sequence[Text], whole: list[list[int]]) -> dict[tuple[str, str], int]:
        """The first token of every answer, as it comes after its text."""
        begun = {text.text: ids for text, ids in zip(texts, whole, strict=True)}
        pairs = list(
            dict.fromkeys((text.text, a) for text in texts for a in text.answers + text.wrong if isinstance(a, str))
        )
        if not pairs:
            return {}
        together = self._ids([text + answer for text, answer in pairs])
        found: dict[tuple[str, str], int] = {}
        for (text, answer), ids in zip(pairs, together, strict=True):
            n = len(begun[text])
            if ids[:n] != begun[text] or len(ids) == n:  # the tokenizer joins them, or ends every text
                ids, n = cast(list[int], self.tokenizer(answer, add_special_tokens=False)["input_ids"]), 0
            if len(ids) == n:
                raise UserError(f"{self.source}: the answer {answer!r} is no token of {self.lm}. Mend it")
            found[text, answer] = ids[n]
        return found


def add_resample_texts(texts: Sequence[Encoded], pool: Sequence[int], seed: int) -> list[Encoded]:
    """The texts, those without a corrupted counterpart each with another text of the pool.

    Drawn at random among those of equal length; where there is none, among longer ones, cut; and where there is none of
    these either, among all, as many in a row as it takes. A function of the text, the pool and the seed alone. Texts
    stay as they are where the pool holds no other.

    Args:
        texts: All texts.
        pool: Places of those that others may be drawn from.
        seed: The same seed draws the same.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for place in pool:
        by_length[len(texts[place].ids)].append(place)
    ascending = sorted(pool, key=lambda place: len(texts[place].ids))
    lengths = [len(texts[place].ids) for place in ascending]

    def drawn(places: Sequence[int], ids: list[int], generator: random.Random) -> list[int] | None:
        """The beginning of one of some texts, as long as a text that it is not to be the beginning of."""
        n = len(ids)
        shuffled = generator.sample(places, min(TRIES, len(places)))
        for some in (shuffled, places):
            for place in some:
                if texts[place].ids[:n] != ids[: len(texts[place].ids)]:
                    return texts[place].ids[:n]
        return None

    def other(text: Encoded) -> list[int] | None:
        ids, n = text.ids, len(text.ids)
        generator = random.Random(f"{seed} {ids}")
        for places in (by_length[n], ascending[bisect_right(lengths, n) :]):
            found = drawn(places, ids, generator)
            if found is not None:
                return found
        row = drawn(pool, ids, generator)
        while row is not None and len(row) < n:
            row = row + texts[generator.choice(pool)].ids
        return None if row is None else row[:n]

    return [text if text.corrupted is not None else replace(text, corrupted=other(text)) for text in texts]
