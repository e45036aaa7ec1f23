"""Tables by name, and the selection of their rows."""

from typing import Any, cast

import pandas as pd

Tables = dict[str, pd.DataFrame]
"""The tables of a study, by name."""


def select_rows(table: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """Return the rows whose columns equal the given values; columns that the table lacks are ignored."""
    for column, value in equal.items():
        if column in table:
            table = cast(pd.DataFrame, table[table[column] == value])  # pandas annotates this as anything
    return table


def concat_tables(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Stack tables with the same columns; if all are empty, return the first."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]
