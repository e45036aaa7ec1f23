"""One text of a source: what a row holds, checked and converted, before anything is tokenised."""

import ast
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from masklearn.data.columns import ATTENTION_MASK, ID_SUFFIXES, YEAR_COLUMN, Columns, flag_of, value_at
from masklearn.data.opening import MAX_TEXT_LENGTH
from masklearn.data.readers import Row
from masklearn.errors import UserError

MAX_QUOTED = 80
"""Characters of a value that a message quotes."""
PREDICT_TAG = re.compile(r"(\s*)<predict>(.*?)</predict>", re.DOTALL)
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""Roles of a chat's messages by the names that files give them; other names stay as they are."""

Answers = tuple[str | int, ...]
"""Possible continuations of a text: strings, or token ids."""


class Message(NamedTuple):
    """A message of a chat."""

    role: str
    content: str


Content = str | tuple[Message, ...]
"""A text, or a chat that the tokenizer's template makes a text of."""


class TokenCounts(NamedTuple):
    """A condition on the tokenizer for a text to be used."""

    words: tuple[str, ...]
    """Words that must have equally many tokens."""
    n_tokens: int | None = None
    """How many; any number if None."""


class Text(NamedTuple):
    """One text of a source."""

    row: int
    """Its index in the source, from 0; lines without text are not counted."""
    text: Content
    group_value: str
    """The value of the group column; an empty string if none was requested."""
    corrupted: Content | None = None
    """The other text of a pair."""
    answers: Answers = ()
    """Right continuations of the text."""
    wrong: Answers = ()
    """Wrong continuations of the text."""
    completion: Content | None = None
    """The continuation whose tokens `positions completion` scores, if a column holds it."""
    ids: tuple[int, ...] | None = None
    """The text's tokens, if the source holds these."""
    counts: TokenCounts | None = None
    """The text is left out unless this holds."""
    corrupted_ids: tuple[int, ...] | None = None
    """The tokens of the other text, if the source holds these."""

    @property
    def is_pair(self) -> bool:
        """Whether there is another text to this one."""
        return self.corrupted is not None or self.corrupted_ids is not None

    @property
    def name(self) -> str:
        """Name of the input that this text gives."""
        return f"{self.row}"

    @property
    def content(self) -> str:
        """All that the text says, in one string."""
        parts = (self.text, self.completion or "", " ".join(map(str, self.ids or ())))
        return "\n".join(part if isinstance(part, str) else "\n".join(map("\n".join, part)) for part in parts).strip()

    @property
    def contents(self) -> tuple[str, ...]:
        """Its `content`; and prompt and completion joined, as in a file that does not split the text."""
        is_split = isinstance(self.text, str) and isinstance(self.completion, str)
        return (self.content, f"{self.text}{self.completion}".strip()) if is_split else (self.content,)


@dataclass(frozen=True)
class RowReader:
    """Converts the rows of a source to texts."""

    columns: Columns

    def __call__(self, index: int, row: Row) -> Text:
        """Convert one row.

        Raises:
            UserError: If a value is not of the type that its column holds; or if a completion follows token ids.
        """
        columns = self.columns
        group_value = value_at(row, columns.group) if columns.group else ""
        if not isinstance(group_value, str | int | float | bool) or group_value != group_value:  # NaN is no name
            raise self._bad(index, columns.group, group_value, "is not a group name", "group")
        answers, wrong = (self._answers(index, row, kind) for kind in ("answer", "wrong"))
        ids, corrupted_ids = (self._ids(index, row, kind) for kind in ("text", "corrupted"))
        if ids is not None and columns.completion:
            raise UserError(
                f"{columns.source}, row {index + 1}: {columns.text!r} holds token ids, which the completion in "
                f"{columns.completion!r} cannot follow. Name a column of words with --data.text_column, or remove one "
                "of the two columns"
            )
        text, tagged = ("", ()) if ids is not None else _split_at_tag(self._content(index, row, "text"))
        corrupted, corrupted_tagged = None, ()
        if columns.corrupted and corrupted_ids is None:
            corrupted, corrupted_tagged = _split_at_tag(self._content(index, row, "corrupted"))
        completion = self._content(index, row, "completion") if columns.completion else None
        other = tuple(answer for answer in corrupted_tagged if answer not in tagged)
        return Text(
            index, text, str(group_value), corrupted, answers or tagged, wrong or other, completion, ids,
            corrupted_ids=corrupted_ids,
        )  # fmt: skip

    def _content(self, index: int, row: Row, kind: str) -> Content:
        """A string, or the messages of a chat."""
        column: str = getattr(self.columns, kind)
        value = value_at(row, column)
        if not isinstance(value, list) or not value:
            return self._string(index, column, value, kind)
        messages = list[Message]()
        for part in value:
            role, content = (
                next((part[key] for key in keys if key in part), None) if isinstance(part, dict) else None
                for keys in (("role", "from"), ("content", "value"))
            )
            if not isinstance(role, str):
                raise self._bad(index, column, value, "is neither text nor a list of messages", kind)
            messages.append(Message(ROLES.get(role, role), self._string(index, column, content, kind)))
        return tuple(messages)

    def _string(self, index: int, column: str, text: Any, kind: str) -> str:
        if not isinstance(text, str):
            raise self._bad(index, column, text, "is not text", kind)
        if len(text) > MAX_TEXT_LENGTH:
            raise self._bad(index, column, text[:MAX_QUOTED], f"is too long ({len(text)} characters)", kind)
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise self._bad(index, column, text, "contains half a character (a lone surrogate)", kind)
        return text

    def _ids(self, index: int, row: Row, kind: str) -> tuple[int, ...] | None:
        """The tokens that a column holds, those of the text without marked padding; None if it holds none."""
        column: str | None = getattr(self.columns, kind)
        value = value_at(row, column) if column else None
        if not isinstance(value, list) or not value or any(isinstance(part, dict) for part in value):
            return None
        if not all(type(token) is int and token >= 0 for token in value):
            raise self._bad(index, column, value, "is neither text nor a list of token ids", kind)
        mask = row.get(ATTENTION_MASK)
        if kind != "text" or not isinstance(mask, list) or len(mask) != len(value):
            return tuple(value)
        return tuple(token for token, real in zip(value, mask, strict=True) if real)

    def _answers(self, index: int, row: Row, kind: str) -> Answers:
        """One row's answers: token ids in columns named `..._idx` or `..._id`, digits of a year, text elsewhere."""
        column: str | None = getattr(self.columns, kind)
        if column is None:
            return ()
        found = value_at(row, column)
        values: list[Any] = found if isinstance(found, list) else _list_in(found)
        if not values or not all(type(value) in (str, int) and value != "" for value in values):
            raise self._bad(index, column, found, "is not an answer", kind)
        if column != YEAR_COLUMN and not column.endswith(ID_SUFFIXES):
            return tuple(map(str, values))
        # CSV has strings where other files have numbers
        answers = tuple(int(value) if re.fullmatch(r"-?\d+", str(value)) else value for value in values)
        if any(answer < 0 if isinstance(answer, int) else column != YEAR_COLUMN for answer in answers):
            raise self._bad(index, column, found, "is not a token id", kind)
        return answers

    def _bad(self, index: int, column: str | None, value: Any, problem: str, kind: str) -> UserError:
        quoted = repr(value) if len(repr(value)) < MAX_QUOTED else f"{repr(value)[:MAX_QUOTED]}..."
        return UserError(
            f"{self.columns.source}, row {index + 1}: {column!r} holds {quoted}, which {problem}. "
            f"Fix the row, or name another column with {flag_of(kind)}"
        )


def _list_in(value: Any) -> list[Any]:
    """The list that a string such as "['gem', 'gems']" writes; any other value as the only one of a list."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [value]
        return found if isinstance(found, list) else [value]
    return [value]


def _split_at_tag(content: Content) -> tuple[Content, Answers]:
    """A text up to its first `<predict>` tag, and the tag's content as its answer, with the white space before it."""
    found = PREDICT_TAG.search(content) if isinstance(content, str) else None
    return (found.string[: found.start()], (found[1] + found[2],)) if found else (content, ())
