"""The first text as the model reads it: its tokens, the scored positions, and the answers."""

from collections.abc import Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from masklearn.data.batching import Batch

MAX_BEGIN_TOKENS, MAX_END_TOKENS = 8, 24
"""Tokens of a long text that are shown."""
MAX_ANSWERS = 5
"""Answers that are shown."""


def preview(tokenizer: PreTrainedTokenizerBase, batch: Batch) -> str:
    """The first text of a batch in tokens, those after which the next token is scored in brackets; and its answers.

    Args:
        tokenizer: The tokenizer of the texts.
        batch: Texts.
    """
    ids = batch.input_ids[0][batch.real[0]].tolist()
    scored = batch.scored[0].tolist()
    tokens = [text.replace("\n", "\\n").replace("\r", "\\r") for text in token_texts(tokenizer, ids)]
    every = all(scored[: len(ids)])
    marked = [f"[{token}]" if s and not every else token for token, s in zip(tokens, scored, strict=False)]
    if len(marked) > MAX_BEGIN_TOKENS + MAX_END_TOKENS:
        left_out = len(marked) - MAX_BEGIN_TOKENS - MAX_END_TOKENS
        marked = [*marked[:MAX_BEGIN_TOKENS], f"... {left_out} more ...", *marked[-MAX_END_TOKENS:]]
    legend = "every next token is scored" if every else "the next token is scored after those in [ ]"
    lines = [f"First text in tokens, {legend}: {'|'.join(marked)}"]
    if batch.answers is not None:
        right, wrong = (
            _listed(tokenizer, ids[-1], [] if rows is None else rows[0].tolist())
            for rows in (batch.answers, batch.wrong)
        )
        lines.append(f"Its right answers: {right}; wrong answers: {wrong}")
    return "\n".join(lines)


def token_text(tokenizer: PreTrainedTokenizerBase, previous: int, token: int) -> str:
    """A token's text after another token: many tokenizers drop the leading space of a token decoded alone."""
    alone, both = str(tokenizer.decode([previous])), str(tokenizer.decode([previous, token]))
    return both.removeprefix(alone) if both.startswith(alone) else str(tokenizer.decode([token]))


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of every token of a text."""
    first = [str(tokenizer.decode([ids[0]]))] if len(ids) else []
    return first + [token_text(tokenizer, *pair) for pair in pairwise(ids)]


def _listed(tokenizer: PreTrainedTokenizerBase, last: int, answers: Sequence[int]) -> str:
    words = [repr(token_text(tokenizer, last, answer)) for answer in answers if answer >= 0]
    more = f" and {len(words) - MAX_ANSWERS} more" if len(words) > MAX_ANSWERS else ""
    return ", ".join(words[:MAX_ANSWERS]) + more if words else "none"
