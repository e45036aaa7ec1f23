"""Rows of tables."""

from typing import Any, cast

import pandas as pd


def select_rows(table: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """The rows in which columns hold given values; a column that the table has not is passed over."""
    for column, value in equal.items():
        if column in table:
            table = cast(pd.DataFrame, table[table[column] == value])  # by pandas' own annotations, anything
    return table
