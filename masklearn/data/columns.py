"""Which column of a source holds what: requested by flag, or recognised by name so that common files work unchanged.

Recognised are EAP's CSV (`clean,corrupted,label` and `correct_idx,incorrect_idx`), Edge-Pruning's JSONL with
`<predict>` tags, auto-circuit's JSON (`clean, corrupt, answers, wrong_answers` under `prompts`), and our own JSONL
(`clean, corrupted, answer, wrong_answer`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from masklearn.data.readers import MAX_TEXT_LENGTH
from masklearn.errors import UserError

TEXT, CORRUPTED = ("text", "clean"), ("corrupted", "corrupt")
ANSWER = ("answer", "answers", "correct_idx", "label")
WRONG = ("wrong_answer", "wrong_answers", "incorrect_idx")
"""Recognised names of each column, the preferred one first."""
YEAR_COLUMN = "label"
"""EAP's column of the two digits that a year must exceed."""
YEARS_IN_A_CENTURY = 100
MAX_QUOTED = 80
"""Characters of a value that a message quotes."""
PREDICT_TAG = re.compile(r"(\s*)<predict>(.*?)</predict>", re.DOTALL)

Answers = tuple[str | int, ...]
"""Possible continuations of a text: strings, or token ids."""


class Text(NamedTuple):
    """One text of a source."""

    row: int
    """Its index in the source, from 0; lines without text are not counted."""
    text: str
    group_value: str
    """The value of the group column; an empty string if none was requested."""
    corrupted: str | None = None
    """The other text of a pair."""
    answers: Answers = ()
    """Right continuations of the text."""
    wrong: Answers = ()
    """Wrong continuations of the text."""

    @property
    def name(self) -> str:
        """Name of the input that this text gives."""
        return f"{self.row}"


@dataclass(frozen=True)
class RequestedColumns:
    """Columns that the user requested by flag."""

    text: str | None = None
    corrupted: str | None = None
    answer: str | None = None
    wrong: str | None = None
    group: str | None = None

    @property
    def readable(self) -> set[str]:
        """Names of all columns that may be read."""
        requested = (self.text, self.corrupted, self.answer, self.wrong, self.group)
        return {name for name in requested if name is not None} | {*TEXT, *CORRUPTED, *ANSWER, *WRONG}


FLAGS = {"text": "--data.text_column", "wrong": "--data.wrong_answer_column", "group": "--model.scope column:..."}
"""The flag of each column that is not simply `--data.<column>_column`."""


@dataclass(frozen=True)
class Columns:
    """Which column of a source holds what."""

    source: str
    """The source in words, for messages."""
    text: str
    corrupted: str | None
    answer: str | None
    wrong: str | None
    group: str | None

    @classmethod
    def of(cls, source: str, names: Sequence[str], requested: RequestedColumns) -> "Columns":
        """The requested columns, and the recognised ones where nothing was requested.

        Answer columns are recognised only next to corrupted texts, since many datasets have labels of another kind.

        Args:
            source: The source in words, for messages.
            names: Names of all its columns.
            requested: Columns requested by flag.

        Raises:
            UserError: If a column is missing; names those that exist.
        """

        def find(column: str, recognised: Sequence[str]) -> str | None:
            name = getattr(requested, column)
            if name is None:
                return next((name for name in recognised if name in names), None)
            if name not in names:
                raise _missing(source, name, names, column)
            return name

        text = find("text", TEXT)
        if text is None:
            raise _missing(source, TEXT[0], names, "text")
        corrupted = find("corrupted", CORRUPTED)
        answer, wrong = find("answer", ANSWER if corrupted else ()), find("wrong", WRONG if corrupted else ())
        return cls(source, text, corrupted, answer, wrong, find("group", ()))

    def read(self, index: int, row: dict[str, Any]) -> Text:
        """Convert one row of the source.

        Raises:
            UserError: If a value is not of the type that its column holds.
        """
        text, tagged = _split_at_tag(self._string(index, row, self.text, _flag("text")))
        group_value = row.get(self.group) if self.group else ""
        if not isinstance(group_value, str | int | float | bool):
            raise self._bad(index, self.group, group_value, "is not a group name", _flag("group"))
        corrupted, corrupted_tagged = None, ()
        if self.corrupted:
            corrupted, corrupted_tagged = _split_at_tag(self._string(index, row, self.corrupted, _flag("corrupted")))
        answers = self._answers(index, row, self.answer, _flag("answer"))
        wrong = self._answers(index, row, self.wrong, _flag("wrong"))
        if self.answer == YEAR_COLUMN and not self.wrong and len(answers) == 1 and isinstance(answers[0], int):
            if answers[0] >= YEARS_IN_A_CENTURY:
                raise self._bad(index, YEAR_COLUMN, answers[0], "is not a two-digit year", _flag("answer"))
            answers, wrong = _year_answers(answers[0])
        other = tuple(answer for answer in corrupted_tagged if answer not in tagged)
        return Text(index, text, str(group_value), corrupted, answers or tagged, wrong or other)

    def _string(self, index: int, row: dict[str, Any], column: str, flag: str) -> str:
        text = row.get(column)
        if not isinstance(text, str):
            raise self._bad(index, column, text, "is not text", flag)
        if len(text) > MAX_TEXT_LENGTH:
            raise self._bad(index, column, text[:MAX_QUOTED], f"is too long ({len(text)} characters)", flag)
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise self._bad(index, column, text, "contains half a character (a lone surrogate)", flag)
        return text

    def _answers(self, index: int, row: dict[str, Any], column: str | None, flag: str) -> Answers:
        """One row's answers: token ids in columns named `..._idx` or `..._id`, digits of a year, text elsewhere."""
        if column is None:
            return ()
        found = row.get(column)
        values: list[Any] = found if isinstance(found, list) else [found]
        if not values or not all(type(value) in (str, int) and value != "" for value in values):
            raise self._bad(index, column, found, "is not an answer", flag)
        if column != YEAR_COLUMN and re.search(r"(^|_)(idx|ids?)$", column) is None:
            return tuple(map(str, values))
        # CSV has strings where other files have numbers
        answers = tuple(int(value) if re.fullmatch(r"-?\d+", str(value)) else value for value in values)
        if any(answer < 0 if isinstance(answer, int) else column != YEAR_COLUMN for answer in answers):
            raise self._bad(index, column, found, "is not a token id", flag)
        return answers

    def _bad(self, index: int, column: str | None, value: Any, problem: str, flag: str) -> UserError:
        quoted = repr(value) if len(repr(value)) < MAX_QUOTED else f"{repr(value)[:MAX_QUOTED]}..."
        return UserError(
            f"{self.source}, row {index + 1}: {column!r} holds {quoted}, which {problem}. "
            f"Fix the row, or name another column with {flag}"
        )


def _flag(column: str) -> str:
    return FLAGS.get(column, f"--data.{column}_column")


def _missing(source: str, name: str, names: Sequence[str], column: str) -> UserError:
    return UserError(
        f"{source} has no column {name!r}; it has {', '.join(names) or 'none'}. Name one with {_flag(column)}"
    )


def _split_at_tag(text: str) -> tuple[str, Answers]:
    """A text up to its first `<predict>` tag, and the tag's content as its answer, with the white space before it."""
    found = PREDICT_TAG.search(text)
    return (text[: found.start()], (found[1] + found[2],)) if found else (text, ())


def _year_answers(year: int) -> tuple[Answers, Answers]:
    """Right answers, the two digits of every later year of the century; and wrong ones, those of all others."""
    digits = tuple(f"{other:02d}" for other in range(YEARS_IN_A_CENTURY))
    return digits[year + 1 :], digits[: year + 1]
