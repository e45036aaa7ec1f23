"""A small language whose true next-token distribution is known at every token.

A sentence is a coroutine: it yields the distribution of its next token and is sent the token that follows. There is no
hidden state (every choice is a visible token), so the yielded distribution *is* the true one given the prefix. To write
a text and to compute the true distributions of a text is to run the same coroutine, with tokens drawn or given.
"""

import math
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

Choice = dict[str, float]
"""Distribution of the next token: token to probability, summing to 1."""
Sentence = Generator[Choice, str, None]
"""Yields the distribution of its next token; is sent the token."""

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
"""Nouns between a subject and its verb, at most."""
MIN_COPIED, MAX_COPIED = 3, 7
"""Letters in a sequence to copy."""


def only(token: str) -> Choice:
    """A certain token."""
    return {token: 1.0}


def uniform(tokens: Sequence[str]) -> Choice:
    """Equal probability for every token."""
    return dict.fromkeys(tokens, 1 / len(tokens))


def zipf(tokens: Sequence[str]) -> Choice:
    """Probability proportional to 1 / rank, as word frequencies roughly go (Zipf 1949)."""
    total = sum(1 / rank for rank in range(1, len(tokens) + 1))
    return {token: 1 / rank / total for rank, token in enumerate(tokens, start=1)}


def without(choice: Choice, *excluded: str) -> Choice:
    """The distribution given that the token is none of the excluded ones."""
    remaining = {token: p for token, p in choice.items() if token not in excluded}
    total = sum(remaining.values())
    return {token: p / total for token, p in remaining.items()}


def mix(*weighted: tuple[float, Choice]) -> Choice:
    """Mixture of choices over disjoint tokens."""
    return {token: weight * p for weight, choice in weighted for token, p in choice.items()}


def entropy(choice: Choice) -> float:
    """Entropy of a distribution, in nats."""
    return -sum(p * math.log(p) for p in choice.values() if p > 0)


def phrase(*parts: str | Choice) -> Generator[Choice, str, list[str]]:
    """A sequence of fixed words and choices; returns the tokens that were sent."""
    tokens = []
    for part in parts:
        tokens.append((yield only(part) if isinstance(part, str) else part))
    return tokens


ANY_NAME, ANY_PLACE, ANY_THING, ANY_GAVE = zipf(NAMES), zipf(PLACES), zipf(THINGS), zipf(GAVE)
ANY_NOUN = mix((0.5, zipf(NOUNS)), (0.5, zipf(PLURALS)))
ONE_NOUN, ANY_ADJECTIVE, ANY_SAW, ANY_EVENT = zipf(NOUNS), zipf(ADJECTIVES), zipf(SAW), zipf(EVENTS)
ANY_VERB, ANY_PLURAL_VERB, ANY_PREPOSITION = zipf(VERBS), zipf(PLURAL_VERBS), uniform(PREPOSITIONS)
SECOND_NAME = {name: without(ANY_NAME, name) for name in NAMES}
LATER_YEARS = {year: uniform(YEARS[i + 1 :]) for i, year in enumerate(YEARS[:-1])}


def names() -> Sentence:
    """Two names; one of them gives something, and the other is the indirect object."""
    first, _ = yield from phrase(ANY_NAME, "and")
    (second,) = yield from phrase(SECOND_NAME[first])
    yield from phrase("went", "to", "the", ANY_PLACE, ".")
    giver = yield uniform((first, second))
    yield from phrase(ANY_GAVE, "a", ANY_THING, "to", second if giver == first else first, ".")


def agreement() -> Sentence:
    """A subject, up to two distractor nouns of either number, and a verb that agrees with the subject."""
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
    """An event that ends in the century in which it starts, in a later year."""
    *_, century, start = yield from phrase(ANY_EVENT, "lasted", "from", uniform(CENTURIES), uniform(YEARS[:-1]))
    yield from phrase("to", century, LATER_YEARS[start], ".")


def copy() -> Sentence:
    """A sequence of distinct letters, then the same sequence again."""
    yield only("copy")
    letters: list[str] = []
    while len(letters) < MAX_COPIED:
        new_letter = without(uniform(LETTERS), *letters)
        token = yield new_letter if len(letters) < MIN_COPIED else mix((0.7, new_letter), (0.3, only(":")))
        if token == ":":
            break
        letters.append(token)
    else:
        yield only(":")
    yield from phrase(*letters, ".")


def select() -> Sentence:
    """A choice among as many options as the text says: its entropy is log 1, 2, 4, 8 or 16."""
    _, word, _ = yield from phrase("pick", uniform(BRANCHINGS), "of")
    yield from phrase(uniform(OPTIONS[: 2 ** BRANCHINGS.index(word)]), ".")


def story() -> Sentence:
    """Words with Zipf frequencies in a fixed grammatical pattern."""
    yield from phrase("a", ANY_ADJECTIVE, ONE_NOUN, ANY_SAW, "a", ANY_ADJECTIVE, ANY_THING, ".")


SENTENCES: dict[Callable[[], Sentence], float] = {
    names: 0.2, agreement: 0.25, years: 0.15, copy: 0.2, select: 0.1, story: 0.1,
}  # fmt: skip
"""Kinds of sentence and their probabilities."""
STOP_PROBABILITY = 0.2
"""Probability that a text ends after a sentence."""
MAX_SENTENCES = 5
"""Sentences after which a text always ends."""


def _resume(sentence: Sentence, token: str) -> Sentence:
    """Continue a sentence that has yielded its first distribution, with its first token."""
    try:
        while True:
            token = yield sentence.send(token)
    except StopIteration:
        return


def text() -> Sentence:
    """One to five sentences, then `END`. The first token of a sentence determines its kind."""
    for stop in (0.0, *[STOP_PROBABILITY] * (MAX_SENTENCES - 1)):
        candidates = [(weight, start()) for start, weight in SENTENCES.items()]
        openings = [next(sentence) for _, sentence in candidates]
        weighted = [((1 - stop) * weight, opening) for (weight, _), opening in zip(candidates, openings, strict=True)]
        token = yield mix(*weighted, (stop, only(END))) if stop else mix(*weighted)
        if token == END:
            return
        (sentence,) = (s for (_, s), opening in zip(candidates, openings, strict=True) if token in opening)
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
    """Draw the tokens of one text (with `END`), or of one sentence of the given kind."""
    generator, tokens = sentence(), []
    try:
        choice = next(generator)
        while True:
            (token,) = rng.choices(list(choice), weights=list(choice.values()))
            tokens.append(token)
            choice = generator.send(token)
    except StopIteration:
        return tokens


def truth(tokens: Iterable[str]) -> Iterator[Choice]:
    """Yield the true distribution of every token of a text, and last that of the token after it.

    Raises:
        ValueError: At a token that the language does not allow there.
    """
    generator = text()
    choice = next(generator)
    yield choice
    for i, token in enumerate(tokens):
        if token not in choice:
            raise ValueError(f"token {i}, {token!r}, is not in the language here; possible: {', '.join(choice)}")
        try:
            choice = generator.send(token)
        except StopIteration:
            return
        yield choice
