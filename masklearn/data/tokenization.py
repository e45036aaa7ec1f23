"""Texts to tokens: truncated or packed, each with its completion, its corrupted counterpart and its answers."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from masklearn.data.answer_tokens import AnswerEncoder
from masklearn.data.encoded import Encoded, text_hash
from masklearn.data.positions import Positions
from masklearn.data.text_tokenizer import TextTokenizer
from masklearn.data.texts import Text
from masklearn.errors import UserError

Truncation = Literal["right", "left"]
"""The end at which texts that are too long are cut."""
END_COUNTS: tuple[Positions, ...] = ("last", "completion")
"""Modes that score the end of the text."""


@dataclass(frozen=True)
class Encoder:
    """Tokenises texts and truncates or packs them to a maximum length.

    Args:
        tokenizer: The tokenizer.
        answers: Maps answers to tokens.
        max_length: Maximum tokens of a text.
        truncation: The end at which longer texts are cut.
        positions: Which positions are scored.
    """

    tokenizer: TextTokenizer
    answers: AnswerEncoder
    max_length: int
    truncation: Truncation = "right"
    positions: Positions = "all"

    def __call__(self, texts: Sequence[Text]) -> tuple[list[Encoded], list[str]]:
        """The texts in tokens, truncated where they are too long; and notices for the user.

        Pairs of unequal length are left out: resample ablation replaces a node's output at each position by its output
        at the same position of the corrupted text, which needs positions that correspond.

        Raises:
            UserError: If the tokenizer cannot read the texts, if truncation would cut off the end of a text where the
                end counts, if a completion is missing, or if every pair is of unequal length.
        """
        notices: list[str] = []
        prompts, completions = self._prompts(texts)
        ids = self._ids(texts, [text.ids for text in texts], prompts)
        encoded = [Encoded(t.row, t.group_value, row, hashes=_hashes(t)) for t, row in zip(texts, ids, strict=True)]
        encoded = self.answers(texts, prompts, encoded, notices)
        if any(text.is_pair for text in texts):
            encoded = self._with_corrupted(texts, encoded, notices)
        if completions:
            encoded = self._with_completions(encoded, prompts, completions, {t.row: i for i, t in enumerate(texts)})
        self._require_ends(encoded)
        if self.truncation == "right" and (n_long := sum(len(text.ids) > self.max_length for text in encoded)):
            longest = max(len(text.ids) for text in encoded)
            notices.append(
                f"{n_long} of {len(encoded)} texts end after {self.max_length} of up to {longest} tokens: "
                "--data.max_length"
            )
        return [self._cut(text) for text in encoded], notices

    def packed(self, texts: Sequence[Text]) -> list[Encoded]:
        """The texts of each group concatenated and split into chunks of `max_length` tokens; the last may be shorter.

        The end token separates texts, unless the tokenizer has none or begins texts with a token of its own.

        Raises:
            UserError: If the tokenizer cannot read the texts, or if they have corrupted texts or answers.
        """
        if self.positions == "completion" or any(text.is_pair or text.answers for text in texts):
            raise UserError(
                f"{self.tokenizer.source} holds pairs or answers, which cannot be packed. Leave out --data.pack"
            )
        streams: dict[str, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
        end = self.tokenizer.tokenizer.eos_token_id
        tokens_of = self._ids(texts, [text.ids for text in texts], self._prompts(texts)[0])
        for text, ids in zip(texts, tokens_of, strict=True):
            separator = [end] if isinstance(end, int) and not self.tokenizer.begin else []
            hashes = _hashes(text)
            streams[text.group_value] += [(token, hashes) for token in ids + separator]
        chunks = [
            (group_value, tokens[begin : begin + self.max_length])
            for group_value, tokens in streams.items()
            for begin in range(0, len(tokens), self.max_length)
        ]
        return [
            Encoded(index, group_value, [token for token, _ in chunk], hashes=tuple({h for _, of in chunk for h in of}))
            for index, (group_value, chunk) in enumerate(chunk for chunk in chunks if len(chunk[1]) > 1)
        ]

    def _prompts(self, texts: Sequence[Text]) -> tuple[list[str], list[str]]:
        """What every text says, chats rendered; and the completions, if these are scored or told from the prompts."""
        if self.positions == "each" and all(text.completion is not None for text in texts):
            pairs = [self.tokenizer.prompt_and_completion(text) for text in texts]
            return [pair[0] for pair in pairs if pair], [pair[1] for pair in pairs if pair]
        if self.positions != "completion":
            whole = [self._whole(text) for text in texts]
            return whole, []
        pairs = [self.tokenizer.prompt_and_completion(text) for text in texts]
        missing = next((text for text, pair in zip(texts, pairs, strict=True) if pair is None), None)
        if missing is not None:
            raise UserError(
                f"data.positions is completion, but text {missing.row + 1} of {self.tokenizer.source} has none. Give "
                "columns prompt and completion, messages that end with an answer, or name a column with "
                "--data.completion_column or --data.answer_column"
            )
        found = [pair for pair in pairs if pair is not None]
        return [prompt for prompt, _ in found], [completion for _, completion in found]

    def _whole(self, text: Text) -> str:
        pair = self.tokenizer.prompt_and_completion(text, closed=False) if text.completion is not None else None
        return "".join(pair) if pair else self.tokenizer.prompt(text.text)

    def _ids(
        self, texts: Sequence[Text], given: Sequence[tuple[int, ...] | None], prompts: Sequence[str]
    ) -> list[list[int]]:
        """The tokens of every text's prompt; those of the source where it gives tokens."""
        vocabulary = len(self.tokenizer.tokenizer)
        for text, ids in zip(texts, given, strict=True):
            if ids and max(ids) >= vocabulary:
                raise UserError(
                    f"{self.tokenizer.source}, row {text.row + 1}: there is no token {max(ids)} among the "
                    f"{vocabulary} of the tokenizer of {self.tokenizer.lm}. Give the model that the tokens are of"
                )
        of_prompts = iter(self.tokenizer.ids([p for ids, p in zip(given, prompts, strict=True) if ids is None]))
        return [next(of_prompts) if ids is None else list(ids) for ids in given]

    def _require_ends(self, encoded: Sequence[Encoded]) -> None:
        """Check that no text is cut where it counts."""
        ends = [text for text in encoded if self.positions in END_COUNTS or (self.positions == "all" and text.answers)]
        long = [text for text in ends if len(text.ids) > self.max_length]
        if long and self.truncation == "right":
            what = "texts with answers" if long[0].answers else "texts"
            raise UserError(
                f"{self.tokenizer.source}: {len(long)} of {len(encoded)} {what} are longer than data.max_length "
                f"{self.max_length}, and their end counts, which truncation would cut off; the first is text "
                f"{long[0].row + 1} of {len(long[0].ids)} tokens. Raise it: --data.max_length "
                f"{max(len(text.ids) for text in long)}, or cut the beginning: --data.truncation left"
            )
        completions = [len(text.ids) - text.prompt_length for text in encoded if text.prompt_length]
        if (
            self.positions == "completion"
            and completions
            and max(completions) + len(self.tokenizer.begin) >= self.max_length
        ):
            raise UserError(
                f"{self.tokenizer.source}: a completion has {max(completions)} tokens, so no prompt fits before it in "
                f"data.max_length {self.max_length}. Raise it: --data.max_length {max(len(t.ids) for t in encoded)}"
            )

    def _cut(self, text: Encoded) -> Encoded:
        """A text of `max_length` tokens at most; it keeps its begin tokens, which given token ids may lack."""
        excess = len(text.ids) - self.max_length
        if excess <= 0:
            return text
        corrupted = text.corrupted
        if self.truncation == "right":
            return replace(text, ids=text.ids[: self.max_length], corrupted=corrupted and corrupted[: self.max_length])
        begin = self.tokenizer.begin
        kept = len(begin) if text.ids[: len(begin)] == begin else 0
        rows = [row and row[:kept] + row[kept + excess :] for row in (text.ids, corrupted)]
        return replace(
            text, ids=rows[0] or [], corrupted=rows[1], prompt_length=text.prompt_length and text.prompt_length - excess
        )

    def _with_completions(
        self, encoded: list[Encoded], prompts: Sequence[str], completions: Sequence[str], index_of_row: dict[int, int]
    ) -> list[Encoded]:
        """The texts with their completions behind them, up to the first end token."""
        indices = [index_of_row[text.row] for text in encoded]
        tails = self.tokenizer.continuations(
            [prompts[i] for i in indices], [completions[i] for i in indices], [text.ids for text in encoded]
        )
        end = self.tokenizer.tokenizer.eos_token_id
        result = list[Encoded]()
        for text, tail in zip(encoded, tails, strict=True):
            if end in tail:
                tail = tail[: tail.index(end) + 1]  # it is predicted, and nothing behind it
            if not tail or not text.ids:
                raise UserError(f"{self.tokenizer.source}, row {text.row + 1}: the prompt or the completion is empty")
            corrupted = text.corrupted and text.corrupted + tail
            result.append(replace(text, ids=text.ids + tail, corrupted=corrupted, prompt_length=len(text.ids)))
        return result

    def _with_corrupted(self, texts: Sequence[Text], encoded: list[Encoded], notices: list[str]) -> list[Encoded]:
        """The texts with their corrupted counterparts, without the pairs of unequal length."""
        prompts = [self.tokenizer.prompt(text.corrupted or "") for text in texts]
        corrupted = self._ids(texts, [text.corrupted_ids for text in texts], prompts)
        unequal = {
            i for i, (text, other) in enumerate(zip(encoded, corrupted, strict=True)) if len(text.ids) != len(other)
        }
        if unequal:
            first = min(unequal)
            example = (
                f"the first is text {texts[first].row + 1} of {len(encoded[first].ids)} tokens, "
                f"with {len(corrupted[first])} in its corrupted text"
            )
            if len(unequal) == len(texts):
                raise UserError(
                    f"{self.tokenizer.source}: every pair has a corrupted text of another token length; {example}. "
                    "Give pairs of equal length for this tokenizer, or name another column with --data.corrupted_column"
                )
            notices.append(
                f"{len(unequal)} of {len(texts)} pairs are left out, as their token lengths differ; {example}"
            )
        return [
            replace(text, corrupted=other)
            for i, (text, other) in enumerate(zip(encoded, corrupted, strict=True))
            if i not in unequal
        ]


def _hashes(text: Text) -> tuple[int, ...]:
    return tuple(map(text_hash, text.contents))
