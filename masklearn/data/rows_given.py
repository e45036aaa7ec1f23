"""Texts that are given as Python objects: lists of strings or of rows, and datasets."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import datasets
import pandas as pd

from masklearn.data.readers import Row
from masklearn.errors import UserError

RowsOrTexts = Iterable[str | dict[str, Any]] | pd.DataFrame
"""Strings, or rows: mappings from the names of columns to values. A `datasets.Dataset` is a sequence of rows."""
RowSequence = Sequence[str | dict[str, Any]]
"""The same as a sequence."""


def as_sequence(texts: RowsOrTexts, limit: int | None = None) -> RowSequence:
    """Texts as a sequence of strings or of rows: a table of pandas, or anything to iterate over, becomes a list.

    Args:
        texts: The texts.
        limit: How many are read of what can only be iterated over, which may have no end.

    Raises:
        UserError: If they are the splits of a dataset, a mapping, or nothing to iterate over.
    """
    if isinstance(texts, datasets.DatasetDict):
        splits = [f"texts[{name!r}]" for name in texts]
        raise UserError(f"the texts are a dataset of splits. Choose one: {', '.join(splits) or 'it has none'}")
    if isinstance(texts, pd.DataFrame):
        return texts.to_dict("records")
    if isinstance(texts, Sequence | datasets.Dataset):
        return texts
    if isinstance(texts, Mapping):
        raise UserError("the texts are a mapping. Give a list of rows: [{...}, {...}]")
    if isinstance(texts, Iterable):
        return list(islice(texts, None if limit is None else max(limit, 0)))
    raise UserError(
        f"the texts are of type {type(texts).__name__}. Give a list of strings or of rows, a datasets.Dataset, a "
        "table of pandas, or a file; none for the embedded model and its own texts"
    )


def rows_given(texts: RowSequence, limit: int | None) -> tuple[list[str], list[Row]]:
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
