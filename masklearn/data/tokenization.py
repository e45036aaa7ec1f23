"""Texts to tokens: truncated or packed, each with its corrupted counterpart and the tokens that answer it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from transformers import PreTrainedTokenizerBase

from masklearn.data.columns import Text
from masklearn.errors import UserError, one_line


@dataclass(frozen=True)
class Encoded:
    """One text in tokens."""

    row: int
    """Its index in the source, from 0."""
    group_value: str
    """The value of the group column."""
    ids: list[int]
    corrupted: list[int] | None = None
    """The other text of its pair, or another text of the source; of as many tokens."""
    answers: tuple[int, ...] = ()
    """Tokens that are right continuations of the text."""
    wrong: tuple[int, ...] = ()
    """Tokens that are wrong continuations."""
    position: int = 0
    """Index of the token to predict, where every position of a text gives an input of its own; 0 otherwise."""

    @property
    def name(self) -> str:
        """Name of the input: the text's row, and the position where it has one."""
        return f"{self.row}:{self.position}" if self.position else f"{self.row}"


@dataclass(frozen=True)
class Encoder:
    """Tokenises texts and truncates or packs them to a maximum length.

    Args:
        tokenizer: The model's tokenizer.
        source: The source of the texts in words, for messages.
        lm: Name of the model, for messages.
        max_length: Maximum tokens of a text.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    lm: str
    max_length: int

    def __call__(self, texts: Sequence[Text]) -> tuple[list[Encoded], list[str]]:
        """The texts in tokens, truncated where they are too long; and notices for the user.

        Pairs of unequal length are left out: resample ablation replaces a node's output at each position by its output
        at the same position of the corrupted text, which needs positions that correspond.

        Raises:
            UserError: If the tokenizer cannot read the texts, if a text with an answer would be truncated, or if every
                pair is of unequal length.
        """
        ids = self._tokenize([text.text for text in texts])
        self._require_answered_texts_fit(texts, ids)
        encoded = [Encoded(t.row, t.group_value, row[: self.max_length]) for t, row in zip(texts, ids, strict=True)]
        notices: list[str] = []
        encoded = self._with_answers(texts, encoded, ids, notices)
        if any(text.corrupted is not None for text in texts):
            encoded = self._with_corrupted(texts, encoded, ids, notices)
        return encoded, notices

    def packed(self, texts: Sequence[Text]) -> list[Encoded]:
        """The texts of each group concatenated and split into chunks of `max_length` tokens; the last may be shorter.

        The end token separates texts, unless the tokenizer has none or begins texts with a token of its own.

        Raises:
            UserError: If the tokenizer cannot read the texts, or if they have corrupted texts or answers.
        """
        if any(text.corrupted is not None or text.answers for text in texts):
            raise UserError(f"{self.source} holds pairs or answers, which cannot be packed. Leave out --data.pack")
        streams: dict[str, list[int]] = defaultdict(list)
        end = self.tokenizer.eos_token_id
        for text, ids in zip(texts, self._tokenize([text.text for text in texts]), strict=True):
            has_begin = ids[:1] == [self.tokenizer.bos_token_id]
            separator = [end] if isinstance(end, int) and not has_begin and ids[-1:] != [end] else []
            streams[text.group_value] += ids + separator
        chunks = [
            (group_value, ids[begin : begin + self.max_length])
            for group_value, ids in streams.items()
            for begin in range(0, len(ids), self.max_length)
        ]
        long_enough = [chunk for chunk in chunks if len(chunk[1]) > 1]
        return [Encoded(index, group_value, ids) for index, (group_value, ids) in enumerate(long_enough)]

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return cast(list[list[int]], self.tokenizer(list(texts))["input_ids"])
        except Exception as error:  # tokenizers raises no narrower class
            raise UserError(
                f"{self.source}: the tokenizer of {self.lm} cannot read these texts ({one_line(error)}). "
                "Give the model that the texts are for with --model.lm"
            ) from error

    def _require_answered_texts_fit(self, texts: Sequence[Text], ids: list[list[int]]) -> None:
        too_long = [i for i, text in enumerate(texts) if text.answers and len(ids[i]) > self.max_length]
        if too_long:
            raise UserError(
                f"{self.source}: {len(too_long)} texts with answers are longer than data.max_length "
                f"{self.max_length}, the first is text {texts[too_long[0]].row + 1} of {len(ids[too_long[0]])} "
                f"tokens. Raise it: --data.max_length {max(len(ids[i]) for i in too_long)}"
            )

    def _with_corrupted(
        self, texts: Sequence[Text], encoded: list[Encoded], ids: list[list[int]], notices: list[str]
    ) -> list[Encoded]:
        """The texts with their corrupted counterparts, without the pairs of unequal length."""
        corrupted = self._tokenize([text.corrupted or "" for text in texts])
        unequal = {i for i, (row, other) in enumerate(zip(ids, corrupted, strict=True)) if len(row) != len(other)}
        if unequal:
            first = min(unequal)
            example = (
                f"the first is text {texts[first].row + 1} of {len(ids[first])} tokens, "
                f"with {len(corrupted[first])} in its corrupted text"
            )
            if len(unequal) == len(texts):
                raise UserError(
                    f"{self.source}: every pair has a corrupted text of another token length; {example}. Give pairs "
                    "of equal length for this tokenizer, or name another column with --data.corrupted_column"
                )
            notices.append(
                f"{len(unequal)} of {len(texts)} pairs are left out, as their token lengths differ; {example}"
            )
        return [
            replace(text, corrupted=other[: self.max_length])
            for i, (text, other) in enumerate(zip(encoded, corrupted, strict=True))
            if i not in unequal
        ]

    def _with_answers(
        self, texts: Sequence[Text], encoded: list[Encoded], ids: list[list[int]], notices: list[str]
    ) -> list[Encoded]:
        """The texts with their answers, each as its first token.

        A token that begins right and wrong answers alike is dropped, as it does not distinguish them.
        """
        first_token, vocabulary = self._first_tokens(texts, ids), len(self.tokenizer)
        foreign = [a for text in texts for a in text.answers + text.wrong if isinstance(a, int) and a >= vocabulary]
        if foreign:
            notices.append(
                f"Answers are ignored: they hold token ids of another tokenizer, for example {foreign[0]}, where this "
                f"one has {vocabulary} tokens"
            )
            return encoded
        answered, n_ambiguous = [], 0
        for text, tokens in zip(texts, encoded, strict=True):
            right, wrong = (
                {a if isinstance(a, int) else first_token[text.text, a] for a in answers}
                for answers in (text.answers, text.wrong)
            )
            shared = right & wrong
            n_ambiguous += bool(shared)
            right, wrong = right - shared, wrong - shared
            if not right or (text.wrong and not wrong):
                right, wrong = set(), set()
            answered.append(replace(tokens, answers=tuple(sorted(right)), wrong=tuple(sorted(wrong))))
        if n_ambiguous:
            notices.append(
                f"In {n_ambiguous} of {len(texts)} texts a right and a wrong answer begin with the same token; "
                "these answers are ignored, as this token does not distinguish them"
            )
        return answered

    def _first_tokens(self, texts: Sequence[Text], ids: list[list[int]]) -> dict[tuple[str, str], int]:
        """The first token of every (text, answer), tokenised together where the tokenizer keeps the text's tokens."""
        context = {text.text: row for text, row in zip(texts, ids, strict=True)}
        pairs = list(
            dict.fromkeys((text.text, a) for text in texts for a in text.answers + text.wrong if isinstance(a, str))
        )
        if not pairs:
            return {}
        joined = self._tokenize([text + answer for text, answer in pairs])
        first_token: dict[tuple[str, str], int] = {}
        for (text, answer), tokens in zip(pairs, joined, strict=True):
            n = len(context[text])
            if tokens[:n] != context[text] or len(tokens) == n:  # the tokenizer merges them, or adds an end token
                tokens, n = cast(list[int], self.tokenizer(answer, add_special_tokens=False)["input_ids"]), 0
            if len(tokens) == n:
                raise UserError(
                    f"{self.source}: the answer {answer!r} has no token in the tokenizer of {self.lm}. Fix it"
                )
            first_token[text, answer] = tokens[n]
        return first_token
