"""A small language whose true next-token distribution is known at every token.

A sentence is a coroutine: it yields the distribution of its next token and is sent the token that came. Sentences keep
no secrets (every choice is a visible token), so what is yielded *is* the true distribution given the prefix. Writing a
text and reading the truth off a given text are then the same walk, with the tokens drawn or given.
"""

import math
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

Choice = dict[str, float]
"""Distribution of the next token: token to probability, summing to 1."""
Sentence = Generator[Choice, str, None]

BEGIN, END, PAD = "<s>", "</s>", "<pad>"

NAMES = tuple("mary john anna paul lucy mark emma david sara peter julia simon clara oscar nina felix".split())
PLACES = tuple("park market river school garden harbor castle forest".split())
THINGS = tuple("ball book ring lamp coin drum kite cup".split())
GAVE = ("gave", "sent", "sold", "lent")
NOUNS = tuple("dog cat bird girl boy king horse farmer teacher child friend guard poet sailor".split())
PLURALS = tuple(
    "dogs cats birds girls boys kings horses farmers teachers children friends guards poets sailors".split()
)
VERBS = tuple("runs sleeps sings waits smiles works laughs dances".split())
PLURAL_VERBS = tuple("run sleep sing wait smile work laugh dance".split())
PREPOSITIONS = ("near", "behind", "beside")
ADJECTIVES = tuple("big old red small young quiet happy blue tall green brave cold".split())
SAW = tuple("saw found liked chased painted heard followed forgot".split())
EVENTS = tuple("war siege feast reign drought journey".split())
CENTURIES = tuple(f"{c}" for c in range(11, 20))
YEARS = tuple(f"{y:02d}" for y in range(1, 100))
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz".replace("a", ""))  # "a" is the article
BRANCHINGS = ("one", "two", "four", "eight", "sixteen")
OPTIONS = tuple(f"option{i}" for i in range(16))

MAX_DISTRACTORS = 2
MIN_COPIED, MAX_COPIED = 3, 7


def only(token: str) -> Choice:
    return {token: 1.0}


def uniform(tokens: Sequence[str]) -> Choice:
    return dict.fromkeys(tokens, 1 / len(tokens))


def zipf(tokens: Sequence[str]) -> Choice:
    """Probability proportional to 1 / rank, as word frequencies roughly go (Zipf 1949)."""
    total = sum(1 / rank for rank in range(1, len(tokens) + 1))
    return {token: 1 / rank / total for rank, token in enumerate(tokens, start=1)}


def without(choice: Choice, *taken: str) -> Choice:
    rest = {token: p for token, p in choice.items() if token not in taken}
    total = sum(rest.values())
    return {token: p / total for token, p in rest.items()}


def mix(*weighted: tuple[float, Choice]) -> Choice:
    """Mixture of choices over disjoint tokens."""
    return {token: weight * p for weight, choice in weighted for token, p in choice.items()}


def entropy(choice: Choice) -> float:
    """In nats."""
    return -sum(p * math.log(p) for p in choice.values() if p > 0)


def phrase(*parts: str | Choice) -> Generator[Choice, str, list[str]]:
    """Fixed words and free choices in a row; returns the tokens that came."""
    came = []
    for part in parts:
        came.append((yield only(part) if isinstance(part, str) else part))
    return came


ANY_NAME, ANY_PLACE, ANY_THING, ANY_GAVE = zipf(NAMES), zipf(PLACES), zipf(THINGS), zipf(GAVE)
ANY_NOUN = mix((0.5, zipf(NOUNS)), (0.5, zipf(PLURALS)))
ONE_NOUN, ANY_ADJECTIVE, ANY_SAW, ANY_EVENT = zipf(NOUNS), zipf(ADJECTIVES), zipf(SAW), zipf(EVENTS)
ANY_VERB, ANY_PLURAL_VERB, ANY_PREPOSITION = zipf(VERBS), zipf(PLURAL_VERBS), uniform(PREPOSITIONS)
SECOND_NAME = {name: without(ANY_NAME, name) for name in NAMES}
LATER_YEARS = {year: uniform(YEARS[i + 1 :]) for i, year in enumerate(YEARS[:-1])}


def names() -> Sentence:
    """Two names are introduced; one of them acts, and the other is referred back to (indirect object)."""
    first, _ = yield from phrase(ANY_NAME, "and")
    (second,) = yield from phrase(SECOND_NAME[first])
    yield from phrase("went", "to", "the", ANY_PLACE, ".")
    giver = yield uniform((first, second))
    yield from phrase(ANY_GAVE, "a", ANY_THING, "to", second if giver == first else first, ".")


def agreement() -> Sentence:
    """A subject, up to two distractors of either number, and a verb that agrees with the subject."""
    (_, subject) = yield from phrase("the", ANY_NOUN)
    verbs = ANY_VERB if subject in NOUNS else ANY_PLURAL_VERB
    for _ in range(MAX_DISTRACTORS):
        token = yield mix((0.7, ANY_PREPOSITION), (0.3, verbs))
        if token not in PREPOSITIONS:
            break
        yield from phrase("the", ANY_NOUN)
    else:
        yield verbs
    yield only(".")


def years() -> Sentence:
    """An event that ends in the century in which it began, in a later year."""
    *_, century, start = yield from phrase(ANY_EVENT, "lasted", "from", uniform(CENTURIES), uniform(YEARS[:-1]))
    yield from phrase("to", century, LATER_YEARS[start], ".")


def copy() -> Sentence:
    """A sequence of different letters, then the same sequence again."""
    yield only("copy")
    letters: list[str] = []
    while len(letters) < MAX_COPIED:
        more = without(uniform(LETTERS), *letters)
        token = yield more if len(letters) < MIN_COPIED else mix((0.7, more), (0.3, only(":")))
        if token == ":":
            break
        letters.append(token)
    else:
        yield only(":")
    yield from phrase(*letters, ".")


def select() -> Sentence:
    """A choice whose branching the text itself announces: its entropy is log 1, 2, 4, 8 or 16."""
    _, word, _ = yield from phrase("pick", uniform(BRANCHINGS), "of")
    yield from phrase(uniform(OPTIONS[: 2 ** BRANCHINGS.index(word)]), ".")


def story() -> Sentence:
    """Words with Zipf frequencies and no other order than grammar's."""
    yield from phrase("a", ANY_ADJECTIVE, ONE_NOUN, ANY_SAW, "a", ANY_ADJECTIVE, ANY_THING, ".")


SENTENCES: dict[Callable[[], Sentence], float] = {
    names: 0.2, agreement: 0.25, years: 0.15, copy: 0.2, select: 0.1, story: 0.1,
}  # fmt: skip
STOP, MAX_SENTENCES = 0.2, 5
"""Probability that a text ends after each sentence, and the number after which it surely does."""


def _resume(sentence: Sentence, token: str) -> Sentence:
    try:
        while True:
            token = yield sentence.send(token)
    except StopIteration:
        return


def text() -> Sentence:
    """One to five sentences, then `END`. A sentence's first token tells its kind."""
    for stop in (0.0, *[STOP] * (MAX_SENTENCES - 1)):
        kinds = [(weight, make()) for make, weight in SENTENCES.items()]
        openings = [next(sentence) for _, sentence in kinds]
        weighted = [((1 - stop) * weight, opening) for (weight, _), opening in zip(kinds, openings, strict=True)]
        token = yield mix(*weighted, (stop, only(END))) if stop else mix(*weighted)
        if token == END:
            return
        (sentence,) = (s for (_, s), opening in zip(kinds, openings, strict=True) if token in opening)
        yield from _resume(sentence, token)
    yield only(END)


def vocabulary() -> list[str]:
    """Every token, special ones first, in a fixed order."""
    groups: list[Iterable[str]] = [
        (PAD, BEGIN, END), ". : and went to the a from lasted copy pick of".split(), NAMES, PLACES, THINGS, GAVE, NOUNS,
        PLURALS, VERBS, PLURAL_VERBS, PREPOSITIONS, ADJECTIVES, SAW, EVENTS, YEARS, LETTERS, BRANCHINGS, OPTIONS,
    ]  # fmt: skip
    tokens = [token for group in groups for token in group]
    return list(dict.fromkeys(tokens))


def write(rng: random.Random, sentence: Callable[[], Sentence] = text) -> list[str]:
    """Draw one text (or one sentence), `END` included where it came."""
    walk, tokens = sentence(), []
    try:
        choice = next(walk)
        while True:
            (token,) = rng.choices(list(choice), weights=list(choice.values()))
            tokens.append(token)
            choice = walk.send(token)
    except StopIteration:
        return tokens


def truth(tokens: Iterable[str]) -> Iterator[Choice]:
    """True distributions along a text: first that of its first token, last that of what follows it.

    Raises:
        ValueError: At a token that the language cannot produce there.
    """
    walk = text()
    choice = next(walk)
    yield choice
    for i, token in enumerate(tokens):
        if token not in choice:
            raise ValueError(f"token {i}, {token!r}, is not in the language here; possible: {', '.join(choice)}")
        try:
            choice = walk.send(token)
        except StopIteration:
            return
        yield choice
