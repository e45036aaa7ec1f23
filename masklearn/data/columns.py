"""Which column of a source holds what: requested by flag, or recognised by name so that common files work unchanged.

Recognised are EAP's and EAP-IG's CSV (`clean,corrupted` with `correct_idx,incorrect_idx`, `country_idx`,
`answers_idx`, ...), Edge-Pruning's JSONL with `<predict>` tags, auto-circuit's JSON (`clean, corrupt, answers,
wrong_answers` under `prompts`), chats (`messages`, or `prompt` and `completion`), token ids, and our own JSONL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from masklearn.data.readers import Row
from masklearn.errors import UserError

TEXT = ("text", "clean", "messages", "tokens", "input_ids")
PROMPT, COMPLETION = "prompt", "completion"
CORRUPTED = ("corrupted", "corrupt")
ANSWER_AND_WRONG = (
    ("answer", "wrong_answer"), ("answers", "wrong_answers"), ("answers", "corrupted_answers"),
    ("correct_idx", "incorrect_idx"), ("clean_answer_idx", "corrupted_answer_idx"),
    ("country_idx", "corrupted_country_idx"), ("capital_idx", "corrupted_capital_idx"),
    ("answers_idx", "corrupted_answers_idx"), ("clean_idx", "corrupted_idx"), ("answer_idx", "corrupted_idx"),
    ("label", "wrong_answer"),
)  # fmt: skip
"""Recognised names of each column, the preferred one first; those of answers with those of wrong answers."""
YEAR_COLUMN = "label"
"""EAP's column of the two digits that a year must exceed. Many datasets have labels of another kind."""
WITHOUT_WORDS = ("plural",)
"""Columns that say something on answers but hold none: EAP-IG's grammatical number."""
ATTENTION_MASK = "attention_mask"
"""Column that marks the padding of token ids."""
ID_SUFFIXES = ("_idx", "_id", "_ids")
NO_WORDS = {"clean", "corrupted", "correct", "incorrect", "input"}
"""Columns that do not hold the words to the ids of `clean_idx`, and so on."""


@dataclass(frozen=True)
class RequestedColumns:
    """Columns that the user requested by flag; a path such as `pair.prompt` leads into a nested column."""

    text: str | None = None
    corrupted: str | None = None
    answer: str | None = None
    wrong: str | None = None
    group: str | None = None
    completion: str | None = None

    @property
    def named(self) -> str | None:
        """The first column that the user requested; None if there is none."""
        return next((name for name in vars(self).values() if name is not None), None)

    @property
    def readable(self) -> set[str]:
        """Names of all columns that may be read."""
        requested = {name for name in vars(self).values() if name is not None}
        recognised = {*TEXT, PROMPT, COMPLETION, *CORRUPTED, ATTENTION_MASK, *WITHOUT_WORDS}
        recognised |= {name for pair in ANSWER_AND_WRONG for name in pair}
        words = {without_id_suffix(name) for name in recognised | requested}
        return requested | {name.split(".")[0] for name in requested} | recognised | words


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
    completion: str | None
    unused: tuple[str, ...]
    """Columns with a name of answers that are not read."""

    @classmethod
    def of(cls, source: str, names: Sequence[str], requested: RequestedColumns) -> "Columns":
        """The requested columns, and the recognised ones where nothing was requested.

        Answer columns are recognised only next to corrupted texts, since many datasets have labels of another kind,
        and completions only next to prompts. Where the corrupted texts are the texts, the clean ones are their pairs.

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
            if not has_column(names, name):
                raise _missing(source, name, names, column)
            return name

        follows = requested.text == PROMPT or (requested.text is None and PROMPT in names)
        completion = find("completion", (COMPLETION,) if follows else ())
        text = find("text", (PROMPT, *TEXT) if completion else TEXT)
        if text is None:
            raise _missing(source, TEXT[0], names, "text")
        corrupted = find("corrupted", CORRUPTED)
        if is_swapped := corrupted == text:  # the pair the other way round; the answers are those of the other text
            corrupted = next((name for name in TEXT if name in names and name != text), None)
        has_answers = bool(corrupted) and not is_swapped
        answer = find("answer", [pair[0] for pair in ANSWER_AND_WRONG] if has_answers else ())
        twins = [wrong for right, wrong in ANSWER_AND_WRONG if right == answer]
        others = [wrong for _, wrong in ANSWER_AND_WRONG[:4]]
        wrong = find("wrong", [*twins, *others] if has_answers else ())
        known = {right for right, _ in ANSWER_AND_WRONG} | set(WITHOUT_WORDS) if answer is None else set[str]()
        known -= set() if corrupted else {YEAR_COLUMN}
        unused = tuple(name for name in names if name in known)
        answer, wrong = (_words_beside(name, names) for name in (answer, wrong))
        return cls(source, text, corrupted, answer, wrong, find("group", ()), completion, unused)


def has_column(names: Sequence[str], name: str) -> bool:
    """Whether a column exists, or the column into which a path such as `pair.prompt` leads."""
    return name in names or name.split(".")[0] in names


def value_at(row: Row, column: str) -> Any:
    """The value of a column, or of a path into nested columns and lists; None if there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def without_id_suffix(column: str) -> str:
    """The name of a column without the ending that says that it holds token ids."""
    return next((column.removesuffix(suffix) for suffix in ID_SUFFIXES if column.endswith(suffix)), column)


def _words_beside(column: str | None, names: Sequence[str]) -> str | None:
    """The column with the words whose ids a column holds, if there is one; otherwise the column itself."""
    words = without_id_suffix(column) if column else column
    return words if words and words in names and words not in NO_WORDS else column


def flag_of(column: str) -> str:
    """The flag that names a column, by what it holds."""
    return FLAGS.get(column, f"--data.{column}_column")


def _missing(source: str, name: str, names: Sequence[str], column: str) -> UserError:
    columns = ", ".join(map(str, names)) or "none"
    return UserError(f"{source} has no column {name!r}; it has {columns}. Name one with {flag_of(column)}")
