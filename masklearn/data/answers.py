"""Answers of known tasks as words: token ids in a file are those of some tokenizer, and rarely of the model's own.

The words follow from the texts. Known are greater-than (a year must exceed the one before), indirect object
identification, and gender bias, as in the files of EAP and EAP-IG.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from masklearn.data.columns import YEAR_COLUMN, Columns
from masklearn.data.texts import Answers, Text

YEARS_IN_A_CENTURY = 100
MIN_SHARE = 0.9
"""Fraction of the texts that must be of a task for their answers to be read as the task's."""
CENTURY_AT_END = re.compile(r"(?<!\d)\d\d\Z")
NAMES = re.compile(r"\b([A-Z]\w+),? and ([A-Z]\w+)\b")
PRONOUNS = {"man": " he", "woman": " she", "boy": " he", "girl": " she"}
SPACED_AFTER = re.compile(r"[^\W_]\Z|[,.;:!?]\Z")
"""The end of a text that a word continues with a space before it."""
PART_OF_NUMBER = re.compile(r"\d[.,:]?\Z")
UNSPACED_SCRIPTS = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR",
)  # fmt: skip
"""Begin the Unicode names of letters of scripts that are written without spaces between words; Hangul has spaces."""

Found = tuple[Answers, Answers]
"""Right and wrong answers of one text."""


class Task(NamedTuple):
    """A task whose answers follow from its texts."""

    name: str
    solve: Callable[[str, str, Answers], Found | None]
    """From a text, its corrupted text and its right answers as given; None if the text is not of the task."""
    given_are_ids: bool = True
    """Whether the answers given are token ids of the words that are found."""


def _greater_than(text: str, corrupted: str, given: Answers) -> Found | None:
    """The digits of every later year of the century, and of all others."""
    century, year = CENTURY_AT_END.search(text), given[0] if len(given) == 1 else None
    if century is None or not isinstance(year, int) or year >= YEARS_IN_A_CENTURY:
        return None
    if f"{century[0]}{year:02d}" not in text[: century.start()]:
        return None
    digits = tuple(f"{other:02d}" for other in range(YEARS_IN_A_CENTURY))
    return digits[year + 1 :], digits[: year + 1]


def _indirect_object(text: str, corrupted: str, given: Answers) -> Found | None:
    """Of two names, the one that does not come again."""
    names = NAMES.search(text)
    if names is None:
        return None
    again = [name for name in names.groups() if re.search(rf"\b{name}\b", text[names.end() :])]
    if len(again) != 1:
        return None
    other = names[1] if again[0] == names[2] else names[2]
    return (f" {other}",), (f" {again[0]}",)


def _gender_bias(text: str, corrupted: str, given: Answers) -> Found | None:
    """The pronoun that the corrupted text, of a man or a woman, does not ask for."""
    words = set(corrupted.lower().split()) - set(text.lower().split())
    wrong = {PRONOUNS[word] for word in words if word in PRONOUNS}
    if len(wrong) != 1:
        return None
    return tuple({" he", " she"} - wrong), tuple(wrong)


TASKS = (
    Task("greater-than", _greater_than, given_are_ids=False),
    Task("indirect object identification", _indirect_object),
    Task("gender bias", _gender_bias),
)


def answers_in_words(texts: Sequence[Text], columns: Columns, chat: bool = False) -> tuple[list[Text], list[str]]:
    """The texts with words in place of token ids, where they are of a known task; and notices for the user.

    Args:
        texts: The texts.
        columns: Where they come from.
        chat: Whether they become a user's message, so that answers begin a message and need no space before them.
    """
    texts = list(texts)
    if not any(isinstance(answer, int) for text in texts for answer in text.answers):
        return texts, []
    for task in TASKS:
        found = [_solve(task, text) for text in texts]
        solved = [pair is not None for pair in found]
        if sum(solved) < MIN_SHARE * len(texts) or (task.given_are_ids and not _agree(texts, found)):
            continue
        notices = [f"Answers: the task is {task.name}, so they are read from the texts, not from {columns.answer!r}"]
        if not all(solved):
            notices.append(f"{len(texts) - sum(solved)} of {len(texts)} texts are not of this task and have no answers")
        pairs = [pair or ((), ()) for pair in found]
        if chat:
            pairs = [tuple(tuple(str(word).lstrip() for word in words) for words in pair) for pair in pairs]
        return [text._replace(answers=a, wrong=w) for text, (a, w) in zip(texts, pairs, strict=True)], notices
    if columns.answer != YEAR_COLUMN:
        return texts, []
    notice = (
        f"Answers: the column {YEAR_COLUMN!r} is not used, as it does not hold the years that the texts must exceed"
    )
    return [text._replace(answers=(), wrong=()) for text in texts], [notice]


def _solve(task: Task, text: Text) -> Found | None:
    if not isinstance(text.text, str):
        return None
    return task.solve(text.text.rstrip(), text.corrupted if isinstance(text.corrupted, str) else "", text.answers)


def _agree(texts: Sequence[Text], found: Sequence[Found | None]) -> bool:
    """Whether every id stands for one word throughout, as it does if the words found are those meant."""
    words: dict[int | str, Counter[str | int]] = defaultdict(Counter)
    for text, pair in zip(texts, found, strict=True):
        for given, word in zip((text.answers, text.wrong), pair or ((), ()), strict=True):
            if len(given) == len(word) == 1:
                words[given[0]][word[0]] += 1
    total = sum(sum(count.values()) for count in words.values())
    return sum(count.most_common(1)[0][1] for count in words.values()) >= MIN_SHARE * total


def spaced(texts: Sequence[Text]) -> tuple[list[Text], list[str]]:
    """The texts with a space before answers that are words, where these continue the text with one.

    A file in which some answer begins with a space means what it writes, and is left as it is.
    """
    answers = [answer for text in texts for answer in (*text.answers, *text.wrong) if isinstance(answer, str)]
    if not answers or any(answer[:1].isspace() for answer in answers):
        return list(texts), []
    result, example = list[Text](), ""
    for text in texts:
        right, wrong = (tuple(_spaced(text.text, a) for a in given) for given in (text.answers, text.wrong))
        if not example and right != text.answers:
            example = f"{right[0]!r}"
        result.append(text._replace(answers=right, wrong=wrong))
    notice = f"Answers: a space is put before words, as the texts continue with one: {example}"
    return result, [notice] if example else []


def _spaced(text: object, answer: str | int) -> str | int:
    if not isinstance(text, str) or not isinstance(answer, str) or not SPACED_AFTER.search(text):
        return answer
    if PART_OF_NUMBER.search(text) and answer[:1].isdigit():
        return answer
    if any(unicodedata.name(letter, "").startswith(UNSPACED_SCRIPTS) for letter in text[-1] + answer[:1]):
        return answer
    return f" {answer}" if answer[:1].isalnum() else answer
