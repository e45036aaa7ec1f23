"""One text in tokens, and the hash by which it is recognised under another name."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Encoded:
    """One text in tokens."""

    row: int
    """Its index in the source, from 0."""
    group_value: str
    """The value of the group column."""
    ids: list[int]
    corrupted: list[int] | None = None
    """The other text of its pair, or another text of the source; of as many tokens."""
    answers: tuple[int, ...] = ()
    """Tokens that are right continuations of the text."""
    wrong: tuple[int, ...] = ()
    """Tokens that are wrong continuations."""
    position: int = 0
    """Index of the token to predict, where every position of a text gives an input of its own; 0 otherwise."""
    prompt_length: int = 0
    """Tokens before the completion, where one is scored or every position is an input of its own; 0 otherwise."""
    hashes: tuple[int, ...] = ()
    """Hash of the text, and of prompt and completion joined; of all texts in it if it is packed."""

    @property
    def name(self) -> str:
        """Name of the input: the text's row, and the position where it has one."""
        return f"{self.row}:{self.position}" if self.position else f"{self.row}"


def text_hash(content: str) -> int:
    """A hash of a text, 64 bits with a sign: equal for equal texts, whatever their file and the length limit."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big", signed=True)
