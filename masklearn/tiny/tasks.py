"""Tasks in the embedded language: prompts that end just before the answer, each with a corrupted twin.

A twin has the same length and another answer. The answers are not listed here: they are the tokens that the language
allows after each prompt, so a prompt and its answers always agree.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from masklearn.tiny import language as lang


@dataclass(frozen=True)
class Prompt:
    """A prompt, its corrupted twin, and the answers to both."""

    text: str
    corrupted: str
    answers: tuple[str, ...]
    """Every token that the language allows after the prompt."""
    wrong_answers: tuple[str, ...]
    """Every token that it allows after the corrupted twin only."""


Twins = tuple[list[str], list[str]]
"""The tokens of a prompt and of its corrupted twin."""


def _names(rng: random.Random) -> Twins:
    """Indirect object identification; the twin has the other giver."""
    tokens = lang.write(rng, lang.names)[:-2]
    giver_at = 8
    other_name = tokens[2] if tokens[giver_at] == tokens[0] else tokens[0]
    return tokens, _replaced(tokens, giver_at, other_name)


def _agreement(rng: random.Random) -> Twins:
    """Subject-verb agreement; the twin's subject has the other number."""
    while True:
        tokens = lang.write(rng, lang.agreement)
        is_singular = [token in lang.NOUNS for token in tokens if token in (*lang.NOUNS, *lang.PLURALS)]
        if len(is_singular) == 1 + lang.MAX_DISTRACTORS and is_singular[0] not in is_singular[1:]:
            break  # every distractor has the other number, so the nearest noun misleads
    subject = tokens[1]
    same, other = (lang.NOUNS, lang.PLURALS) if is_singular[0] else (lang.PLURALS, lang.NOUNS)
    return tokens[:-2], _replaced(tokens[:-2], 1, other[same.index(subject)])


def _years(rng: random.Random) -> Twins:
    """Greater-than; the twin's event starts in the first year, so that every later year is allowed."""
    while True:
        tokens = lang.write(rng, lang.years)[:-2]
        start_at = 4
        if tokens[start_at] != lang.YEARS[0]:
            return tokens, _replaced(tokens, start_at, lang.YEARS[0])


def _copy(rng: random.Random) -> Twins:
    """Induction; the twin has an unused letter in place of the answer."""
    tokens = lang.write(rng, lang.copy)
    colon = tokens.index(":")
    answer_at = rng.randrange(2, colon)  # not the first letter, so that there is a letter before it to match
    unused = rng.choice([letter for letter in lang.LETTERS if letter not in tokens])
    prompt = tokens[: colon + answer_at]
    return prompt, _replaced(prompt, answer_at, unused)


def _replaced(tokens: list[str], at: int, token: str) -> list[str]:
    """Copy the tokens with one of them replaced."""
    return [*tokens[:at], token, *tokens[at + 1 :]]


TASKS: dict[str, Callable[[random.Random], Twins]] = {
    "names": _names,
    "agreement": _agreement,
    "years": _years,
    "copy": _copy,
}
"""How to write one prompt of each task."""
MIXED = "mixed"
"""Name under which whole texts are available instead of the prompts of one task."""


def prompts(task: str, seed: int = 0) -> Iterator[Prompt]:
    """Yield endless prompts of one task, equal for equal seeds; prompts may repeat."""
    rng = random.Random(f"{task}/{seed}")
    while True:
        clean, corrupted = TASKS[task](rng)
        answers, twin_answers = (tuple([*lang.truth(tokens)][-1]) for tokens in (clean, corrupted))
        yield Prompt(" ".join(clean), " ".join(corrupted), answers, tuple(t for t in twin_answers if t not in answers))


def texts(seed: int = 0) -> Iterator[str]:
    """Yield endless whole texts without the end token, equal for equal seeds."""
    rng = random.Random(f"{MIXED}/{seed}")
    while True:
        yield " ".join(lang.write(rng)[:-1])
