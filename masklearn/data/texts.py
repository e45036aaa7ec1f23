"""Readers: a file, the hub or the embedded generator to texts, each with the value that says which group it is of."""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from masklearn.errors import UserError, one_line
from masklearn.tiny import tasks

TaskName = Literal["mixed", "names", "agreement", "years", "copy"]

READERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".csv": "csv", ".parquet": "parquet"}
TASK_LIMIT = 1000
"""Texts drawn from the embedded generator where no limit is given."""


class Text(NamedTuple):
    """One text of a source."""

    row: int
    """Its place in the source, from 0; lines without text are not counted."""
    text: str
    value: str
    """What the group column holds, or an empty string where none was asked for."""
    at: int = 0
    """The token that comes next, where every position of the text gives an input of its own."""

    @property
    def name(self) -> str:
        """What an input is called: the text's place, and the token's where it has one."""
        return f"{self.row}:{self.at}" if self.at else f"{self.row}"


@dataclass(frozen=True)
class Source:
    """Where texts come from: a file, a hub dataset or a task of the embedded generator, exactly one of them."""

    path: str | None
    hub_id: str | None
    subset: str | None
    split: str
    task: TaskName | None
    text_column: str
    group_column: str | None
    limit: int | None
    seed: int

    def __str__(self) -> str:
        return self.path or self.hub_id or f"the embedded {self.task} texts"

    def read(self) -> list[Text]:
        """All texts, in order.

        Raises:
            UserError: If there are none, or if they cannot be read.
        """
        if self.task:
            return self._generate(self.task)
        rows = self._rows_of_file(self.path) if self.path else self._rows_of_hub()
        rows = rows.take(self.limit) if self.limit and isinstance(rows, datasets.IterableDataset) else rows
        columns = rows.column_names or list(next(iter(rows), {}))
        needed = [self.text_column, *([self.group_column] if self.group_column else [])]
        for column, flag in zip(needed, ("--data.text_column", "--model.scope column:..."), strict=False):
            if column not in columns:
                raise UserError(
                    f"{self} has no column {column!r}; it has {', '.join(columns) or 'none'}. Name one with {flag}"
                )
        found: Iterator[dict[str, Any]] = (dict(row) for row in rows.select_columns(needed))
        if self.path and Path(self.path).suffix == ".txt":
            found = (row for row in found if row[self.text_column].strip())  # blank lines separate texts; they are none
        texts = [self._text(i, row) for i, row in enumerate(islice(found, self.limit))]
        if not texts:
            raise UserError(f"{self} holds no text")
        return texts

    def _text(self, i: int, row: dict[str, Any]) -> Text:
        text, value = row[self.text_column], row[self.group_column] if self.group_column else ""
        if not isinstance(text, str):
            raise UserError(
                f"{self}, row {i + 1}: {self.text_column!r} holds {text!r}, which is no text. "
                "Mend the row, or name another column with --data.text_column"
            )
        if not isinstance(value, str | int | float | bool):
            raise UserError(
                f"{self}, row {i + 1}: {self.group_column!r} holds {value!r}, which names no group. "
                "Mend the row, or name another column with --model.scope column:..."
            )
        return Text(i, text, str(value))

    def _generate(self, task: TaskName) -> list[Text]:
        if self.group_column:
            raise UserError(f"{self} have no column {self.group_column!r}. Give texts with columns: --data.path")
        found = tasks.texts(self.seed) if task == tasks.MIXED else (p.text for p in tasks.prompts(task, self.seed))
        return [Text(i, text, "") for i, text in enumerate(islice(found, self.limit or TASK_LIMIT))]

    def _rows_of_file(self, given: str) -> datasets.Dataset:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"data.path: there is no file {given}")
        if path.suffix not in READERS:
            raise UserError(f"data.path: {given} ends in {path.suffix!r}; known are {', '.join(READERS)}")
        if not path.stat().st_size:
            raise UserError(f"data.path: {given} is empty")
        try:
            return datasets.load_dataset(READERS[path.suffix], data_files=glob.escape(str(path)), split="train")
        except (DatasetGenerationError, StopIteration, ValueError, OSError) as error:
            raise UserError(f"data.path: cannot read {given}: {one_line(error.__cause__ or error)}") from error

    def _rows_of_hub(self) -> datasets.Dataset | datasets.IterableDataset:
        assert self.hub_id is not None
        try:  # with a limit, only the rows asked for are fetched
            return datasets.load_dataset(self.hub_id, self.subset, split=self.split, streaming=self.limit is not None)
        except (ValueError, OSError, DatasetNotFoundError) as error:
            raise UserError(
                f"data.dataset: cannot load {self.hub_id!r}, split {self.split!r} ({one_line(error)}). "
                "Give a hub id that this machine can reach, or a file with --data.path"
            ) from error
