"""Answers to tokens of the model's tokenizer: words by their first token, token ids after a check."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from masklearn.data.encoded import Encoded
from masklearn.data.text_tokenizer import TextTokenizer
from masklearn.data.texts import Answers, Text
from masklearn.errors import UserError

AnswerIds = Literal["auto", "this-tokenizer", "ignore"]
"""What token ids among the answers are: `auto` checks them against the texts, `this-tokenizer` takes them as they are,
`ignore` leaves out answers that are ids."""
MIN_SHARE_IN_TEXT = 0.5
"""Fraction of the texts whose right answers must occur in the text for token ids to count as this tokenizer's."""


@dataclass(frozen=True)
class AnswerEncoder:
    """Maps the answers of texts to tokens.

    Args:
        tokenizer: The tokenizer of the texts.
        ids: What token ids among the answers are.
        scores_all: Whether all tokens of an answer are scored, not its first alone.
    """

    tokenizer: TextTokenizer
    ids: AnswerIds = "auto"
    scores_all: bool = False

    def __call__(
        self, texts: Sequence[Text], prompts: Sequence[str], encoded: Sequence[Encoded], notices: list[str]
    ) -> list[Encoded]:
        """The texts with their answers, each as its first token.

        A token that begins right and wrong answers alike is dropped, as it does not distinguish them.

        Args:
            texts: The texts.
            prompts: What each text says, chats rendered.
            encoded: The tokens of each, up to the answer.
            notices: Remarks for the user are added here.

        Raises:
            UserError: If an answer has no token, or if token ids cannot be checked.
        """
        if not self._may_use_ids(texts, notices):
            texts = [text._replace(answers=_words(text.answers), wrong=_words(text.wrong)) for text in texts]
        tokens = self._tokens_of_words(texts, prompts, encoded)
        answered, n_ambiguous, n_long = list[Encoded](), 0, 0
        for index, (text, row) in enumerate(zip(texts, encoded, strict=True)):
            right, wrong = (
                {a if isinstance(a, int) else tokens[index, a][0] for a in given}
                for given in (text.answers, text.wrong)
            )
            shared = right & wrong
            n_ambiguous += bool(shared)
            n_long += any(isinstance(a, str) and len(tokens[index, a]) > 1 for a in text.answers)
            right, wrong = right - shared, wrong - shared
            if not right or (text.wrong and not wrong):
                right, wrong = set[int](), set[int]()
            answered.append(replace(row, answers=tuple(sorted(right)), wrong=tuple(sorted(wrong))))
        if n_ambiguous:
            notices.append(
                f"In {n_ambiguous} of {len(texts)} texts a right and a wrong answer begin with the same token; "
                "these answers are ignored, as this token does not distinguish them"
            )
        if n_long and not self.scores_all:
            notices.append(
                f"In {n_long} of {len(texts)} texts a right answer has several tokens, and counts by its first. "
                "--data.positions completion scores all of them"
            )
        return answered

    def _may_use_ids(self, texts: Sequence[Text], notices: list[str]) -> bool:
        """Whether token ids among the answers are those of this tokenizer.

        Raises:
            UserError: If nothing shows that they are, or if they cannot be.
        """
        ids = [a for text in texts for a in text.answers + text.wrong if isinstance(a, int)]
        if not ids or self.ids == "ignore":
            return False
        n = len(self.tokenizer.tokenizer)
        if max(ids) >= n:
            problem = f"they hold token ids of another tokenizer, for example {max(ids)}, where this one has {n} tokens"
            if self.ids == "this-tokenizer":
                raise UserError(f"{self.tokenizer.source}: the answers are of no use, as {problem}. Give words instead")
            notices.append(f"Answers are ignored: {problem}")
            return False
        if self.ids == "this-tokenizer" or self._occur_in_texts(texts):
            return True
        first = next(text for text in texts if any(isinstance(a, int) for a in text.answers + text.wrong))
        words = [", ".join(repr(self._decode(a)) for a in given) or "none" for given in (first.answers, first.wrong)]
        raise UserError(
            f"{self.tokenizer.source}: the answers are token ids, and nothing shows that they are of the tokenizer of "
            f"{self.tokenizer.lm}. If they are, text {first.row + 1} has the right answer {words[0]} and the wrong "
            f"answer {words[1]}. Say so with --data.answer_ids this-tokenizer, name a column of words with "
            "--data.answer_column, or leave the answers out with --data.answer_ids ignore"
        )

    def _occur_in_texts(self, texts: Sequence[Text]) -> bool:
        with_ids = [text for text in texts if any(isinstance(a, int) for a in text.answers)]
        n = sum(
            any(len(word := self._decode(a).strip()) > 1 and word in text.content for a in text.answers)
            for text in with_ids
        )
        return n > MIN_SHARE_IN_TEXT * len(with_ids)

    def _decode(self, answer: str | int) -> str:
        return str(self.tokenizer.tokenizer.decode([answer])) if isinstance(answer, int) else answer

    def _tokens_of_words(
        self, texts: Sequence[Text], prompts: Sequence[str], encoded: Sequence[Encoded]
    ) -> dict[tuple[int, str], list[int]]:
        """The tokens of every answer that is a word, by the index of its text and the word."""
        pairs = [(i, a) for i, t in enumerate(texts) for a in dict.fromkeys(_words(t.answers + t.wrong))]
        if not pairs:
            return {}
        found = self.tokenizer.continuations(
            [prompts[i] for i, _ in pairs], [answer for _, answer in pairs], [encoded[i].ids for i, _ in pairs]
        )
        for (_, answer), tokens in zip(pairs, found, strict=True):
            if not tokens:
                raise UserError(
                    f"{self.tokenizer.source}: the answer {answer!r} has no token in the tokenizer of "
                    f"{self.tokenizer.lm}. Fix it"
                )
        return dict(zip(pairs, found, strict=True))


def _words(answers: Answers) -> tuple[str, ...]:
    return tuple(answer for answer in answers if isinstance(answer, str))
