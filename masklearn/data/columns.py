"""Which column of a source holds what: asked for by flag, or known by its name, so that usual files go as they are.

Known are EAP's CSV (`clean,corrupted,label` and `correct_idx,incorrect_idx`), Edge-Pruning's JSONL with
`<predict>` tags, auto-circuit's JSON (`clean, corrupt, answers, wrong_answers` under `prompts`), and our own JSONL
(`clean, corrupted, answer, wrong_answer`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from masklearn.data.readers import LONGEST
from masklearn.errors import UserError

TEXT, CORRUPTED = ("text", "clean"), ("corrupted", "corrupt")
ANSWER = ("answer", "answers", "correct_idx", "label")
WRONG = ("wrong_answer", "wrong_answers", "incorrect_idx")
YEARS = "label"
"""EAP's column of the two digits that a year must exceed."""
YEARS_IN_A_CENTURY = 100
MOST_TOLD = 80
"""Letters of a value that a message quotes."""
PREDICT = re.compile(r"(\s*)<predict>(.*?)</predict>", re.DOTALL)

Answers = tuple[str | int, ...]
"""What may come next: as text, or as the id of a token."""


class Text(NamedTuple):
    """One text of a source."""

    row: int
    """Its place in the source, from 0; lines without text are not counted."""
    text: str
    value: str
    """What the group column holds, or an empty string where none was asked for."""
    corrupted: str | None = None
    """The other text of a pair."""
    answers: Answers = ()
    """What is right after the text, and what is wrong."""
    wrong: Answers = ()

    @property
    def name(self) -> str:
        """What it is called as an input."""
        return f"{self.row}"


@dataclass(frozen=True)
class RequestedColumns:
    """Columns that were asked for by flag."""

    text: str | None = None
    corrupted: str | None = None
    answer: str | None = None
    wrong: str | None = None
    group: str | None = None

    @property
    def possible(self) -> set[str]:
        """Names of all columns that may be read."""
        asked = (self.text, self.corrupted, self.answer, self.wrong, self.group)
        return {name for name in asked if name is not None} | {*TEXT, *CORRUPTED, *ANSWER, *WRONG}


FLAGS = {"text": "--data.text_column", "group": "--model.scope column:..."}
"""The flags that are not called after their column."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what."""

    source: str
    text: str
    corrupted: str | None
    answer: str | None
    wrong: str | None
    group: str | None

    @classmethod
    def of(cls, source: str, names: Sequence[str], asked: RequestedColumns) -> "Columns":
        """The columns asked for, and where nothing was asked for, those whose names are known.

        Answers are looked for beside corrupted texts only, since many a data set has labels of another kind.

        Raises:
            UserError: If a column is not there; names those that are.
        """

        def one(kind: str, known: Sequence[str]) -> str | None:
            name = getattr(asked, kind)
            if name is None:
                return next((name for name in known if name in names), None)
            if name not in names:
                raise _missing(source, name, names, kind)
            return name

        text = one("text", TEXT)
        if text is None:
            raise _missing(source, TEXT[0], names, "text")
        corrupted = one("corrupted", CORRUPTED)
        answer, wrong = one("answer", ANSWER if corrupted else ()), one("wrong", WRONG if corrupted else ())
        return cls(source, text, corrupted, answer, wrong, one("group", ()))

    @property
    def names(self) -> list[str]:
        found = (self.text, self.corrupted, self.answer, self.wrong, self.group)
        return list(dict.fromkeys(name for name in found if name is not None))

    def read(self, place: int, row: dict[str, Any]) -> Text:
        """One row.

        Raises:
            UserError: If something in it is not what its column is to hold.
        """
        text, tagged = _untagged(self._string(place, row, self.text, FLAGS["text"]))
        value = row.get(self.group) if self.group else ""
        if not isinstance(value, str | int | float | bool):
            raise self._bad(place, self.group, value, "names no group", FLAGS["group"])
        corrupted, of_corrupted = None, ()
        if self.corrupted:
            corrupted, of_corrupted = _untagged(self._string(place, row, self.corrupted, _flag("corrupted")))
        answers, wrong = (
            self._answers(place, row, column, kind) for column, kind in ((self.answer, "answer"), (self.wrong, "wrong"))
        )
        if self.answer == YEARS and not self.wrong and len(answers) == 1 and isinstance(answers[0], int):
            if answers[0] >= YEARS_IN_A_CENTURY:
                raise self._bad(place, YEARS, answers[0], "is no year of two digits", _flag("answer"))
            answers, wrong = _years(answers[0])
        other = tuple(answer for answer in of_corrupted if answer not in tagged)
        return Text(place, text, str(value), corrupted, answers or tagged, wrong or other)

    def _string(self, place: int, row: dict[str, Any], column: str, flag: str) -> str:
        text = row.get(column)
        if not isinstance(text, str):
            raise self._bad(place, column, text, "is no text", flag)
        if len(text) > LONGEST:
            raise self._bad(place, column, text[:MOST_TOLD], f"goes on for {len(text)} letters, a whole book", flag)
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise self._bad(place, column, text, "has half a letter in it (a lone surrogate)", flag)
        return text

    def _answers(self, place: int, row: dict[str, Any], column: str | None, kind: str) -> Answers:
        """Ids of tokens are numbers in a column that says so, and in the one of years; other numbers are text."""
        if column is None:
            return ()
        found = row.get(column)
        values: list[Any] = found if isinstance(found, list) else [found]
        if not values or not all(type(value) in (str, int) and value != "" for value in values):
            raise self._bad(place, column, found, "is no answer", _flag(kind))
        if column != YEARS and re.search(r"(^|_)(idx|ids?)$", column) is None:
            return tuple(map(str, values))
        # CSV has texts where other files have numbers
        answers = tuple(int(value) if re.fullmatch(r"-?\d+", str(value)) else value for value in values)
        if any(answer < 0 if isinstance(answer, int) else column != YEARS for answer in answers):
            raise self._bad(place, column, found, "is the id of no token", _flag(kind))
        return answers

    def _bad(self, place: int, column: str | None, value: Any, what: str, flag: str) -> UserError:
        format_report = repr(value) if len(repr(value)) < MOST_TOLD else f"{repr(value)[:MOST_TOLD]}..."
        return UserError(
            f"{self.source}, row {place + 1}: {column!r} holds {format_report}, which {what}. "
            f"Mend the row, or name another column with {flag}"
        )


def _flag(kind: str) -> str:
    return FLAGS.get(kind) or f"--data.{'wrong_answer' if kind == 'wrong' else kind}_column"


def _missing(source: str, name: str, names: Sequence[str], kind: str) -> UserError:
    return UserError(
        f"{source} has no column {name!r}; it has {', '.join(names) or 'none'}. Name one with {_flag(kind)}"
    )


def _untagged(text: str) -> tuple[str, Answers]:
    """A text up to its first `<predict>` tag, and what the tag holds as the answer, with the white space before it."""
    found = PREDICT.search(text)
    return (text[: found.start()], (found[1] + found[2],)) if found else (text, ())


def _years(least: int) -> tuple[Answers, Answers]:
    """The two digits of the years after one, and of those up to it."""
    digits = tuple(f"{year:02d}" for year in range(YEARS_IN_A_CENTURY))
    return digits[least + 1 :], digits[: least + 1]
