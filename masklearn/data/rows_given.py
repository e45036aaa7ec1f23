"""Texts that are given as Python objects: lists of strings or of rows, and datasets."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from masklearn.data.readers import Row
from masklearn.errors import UserError

RowsOrTexts = Sequence[str] | Sequence[dict[str, Any]]
"""Strings, or rows: mappings from the names of columns to values. A `datasets.Dataset` is a sequence of rows."""


def rows_given(texts: RowsOrTexts, limit: int | None) -> tuple[list[str], list[Row]]:
    """The names of all columns, and the rows; strings are rows of the column `text`.

    Raises:
        UserError: If a text is neither a string nor a row, or has no content.
    """
    if isinstance(texts, str):
        raise UserError("texts is one string. Give a list of strings, or a file with path=")
    rows: list[Row] = []
    for index, text in enumerate(islice(texts, limit)):
        row = {"text": text} if isinstance(text, str) else text
        if not isinstance(row, Mapping):
            raise UserError(
                f"text {index + 1} of those given is of type {type(text).__name__}. Give strings, or rows such as "
                '{"text": "..."}'
            )
        rows.append(dict(row))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, rows
