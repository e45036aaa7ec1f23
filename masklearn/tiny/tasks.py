"""Named tasks in the embedded language: prompts that end where the answer comes next, each beside a corrupted twin.

A twin has the same length and another answer. The answers are not written down here: they are what the language allows
after each prompt, so a prompt and its answers cannot disagree.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from masklearn.tiny import language as lang


@dataclass(frozen=True)
class Prompt:
    text: str
    corrupted: str
    answers: tuple[str, ...]
    """Every token that the language allows next."""
    wrong_answers: tuple[str, ...]
    """What only the corrupted twin allows next."""


Twins = tuple[list[str], list[str]]


def _names(rng: random.Random) -> Twins:
    tokens = lang.write(rng, lang.names)[:-2]
    giver = 8
    other = tokens[2] if tokens[giver] == tokens[0] else tokens[0]
    return tokens, _replaced(tokens, giver, other)


def _agreement(rng: random.Random) -> Twins:
    while True:
        tokens = lang.write(rng, lang.agreement)
        numbers = [token in lang.NOUNS for token in tokens if token in (*lang.NOUNS, *lang.PLURALS)]
        if len(numbers) == 1 + lang.MAX_DISTRACTORS and numbers[0] not in numbers[1:]:
            break  # every distractor is of the other number: the nearest noun misleads
    subject = tokens[1]
    one, many = (lang.NOUNS, lang.PLURALS) if numbers[0] else (lang.PLURALS, lang.NOUNS)
    return tokens[:-2], _replaced(tokens[:-2], 1, many[one.index(subject)])


def _years(rng: random.Random) -> Twins:
    while True:
        tokens = lang.write(rng, lang.years)[:-2]
        start = 4
        if tokens[start] != lang.YEARS[0]:
            return tokens, _replaced(tokens, start, lang.YEARS[0])


def _copy(rng: random.Random) -> Twins:
    tokens = lang.write(rng, lang.copy)
    colon = tokens.index(":")
    asked = rng.randrange(2, colon)  # the second letter or a later one, so that there is something to match
    spare = rng.choice([letter for letter in lang.LETTERS if letter not in tokens])
    return tokens[: colon + asked], _replaced(tokens[: colon + asked], asked, spare)


def _replaced(tokens: list[str], at: int, token: str) -> list[str]:
    return [*tokens[:at], token, *tokens[at + 1 :]]


TASKS: dict[str, Callable[[random.Random], Twins]] = {
    "names": _names,
    "agreement": _agreement,
    "years": _years,
    "copy": _copy,
}
MIXED = "mixed"
"""Whole texts in place of prompts."""


def prompts(task: str, seed: int = 0) -> Iterator[Prompt]:
    """Endless prompts of one task, the same for the same seed; a prompt may come twice."""
    rng = random.Random(f"{task}/{seed}")
    while True:
        clean, corrupted = TASKS[task](rng)
        answers, others = (tuple([*lang.truth(tokens)][-1]) for tokens in (clean, corrupted))
        yield Prompt(" ".join(clean), " ".join(corrupted), answers, tuple(t for t in others if t not in answers))


def texts(seed: int = 0) -> Iterator[str]:
    """Endless whole texts, without the end token; the same for the same seed."""
    rng = random.Random(f"{MIXED}/{seed}")
    while True:
        yield " ".join(lang.write(rng)[:-1])
