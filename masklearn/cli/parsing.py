"""Flags that were mistyped, to one clear line."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from jsonargparse import ArgumentError, ArgumentParser

from masklearn.errors import UserError, nearest


@contextmanager
def explained(parser: ArgumentParser) -> Iterator[None]:
    """Turn the parser's complaints into ours."""
    try:
        yield
    except ArgumentError as error:
        raise UserError(explain(str(error), parser.get_defaults(skip_validation=True).keys())) from error


def explain(message: str, known: Iterable[str]) -> str:
    """The parser's complaint in one line, with the nearest known key where a key was not known."""
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip())
    flag = re.search(r"unrecognized arguments: (?:--)?([^\s=]+)", text)
    key = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
    if not flag and not key:
        text = re.sub(r"<class '(\w+)'>|typing\.|^Parser key ", r"\1", text)
        return f"{text.rstrip('. ')}. See --help"
    unknown = flag.group(1) if flag else ".".join(key.groups())  # pyright: ignore[reportOptionalMemberAccess]
    match = nearest(unknown, known)
    return f"there is no flag or key {unknown}. " + (
        f"Did you mean {match}?" if match else "See --help for all of them"
    )
