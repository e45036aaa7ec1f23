"""Readers: a file, the hub or the embedded generator to texts, each with the value that says which group it is of."""

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from masklearn.data.columns import Asked, Columns, Text
from masklearn.errors import UserError, one_line
from masklearn.tiny import tasks

TaskName = Literal["mixed", "names", "agreement", "years", "copy"]

READERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".csv": "csv", ".parquet": "parquet"}
TASK_LIMIT = 1000
"""Texts drawn from the embedded generator where no limit is given."""


PROMPTS = re.compile(rb'\s*\{(?:(?!"prompts").)*"prompts"\s*:\s*\[\s*\{', re.DOTALL)
"""How auto-circuit's files begin: one object, with its texts under `prompts`."""
HEAD = 2**16
"""Bytes of a file that tell how it begins."""


@dataclass(frozen=True)
class Source:
    """Where texts come from: a file, a hub dataset or a task of the embedded generator, exactly one of them."""

    path: str | None
    hub_id: str | None
    subset: str | None
    split: str
    task: TaskName | None
    columns: Asked
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
        columns = Columns.of(str(self), rows.column_names or list(next(iter(rows), {})), self.columns)
        found: Iterator[dict[str, Any]] = (dict(row) for row in rows.select_columns(columns.names))
        if self.path and Path(self.path).suffix == ".txt":
            found = (row for row in found if row[columns.text].strip())  # blank lines separate texts; they are none
        texts = [columns.read(i, row) for i, row in enumerate(islice(found, self.limit))]
        if not texts:
            raise UserError(f"{self} holds no text")
        return texts

    def _generate(self, task: TaskName) -> list[Text]:
        if self.columns.group:
            raise UserError(f"{self} have no column {self.columns.group!r}. Give texts with columns: --data.path")
        most = self.limit or TASK_LIMIT
        if task == tasks.MIXED:
            return [Text(i, text, "") for i, text in enumerate(islice(tasks.texts(self.seed), most))]
        prompts = islice(tasks.prompts(task, self.seed), most)
        return [
            Text(i, p.text, "", p.corrupted, _next(p.answers), _next(p.wrong_answers)) for i, p in enumerate(prompts)
        ]

    def _rows_of_file(self, given: str) -> datasets.Dataset:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"data.path: there is no file {given}")
        if path.suffix not in READERS:
            raise UserError(f"data.path: {given} ends in {path.suffix!r}; known are {', '.join(READERS)}")
        if not path.stat().st_size:
            raise UserError(f"data.path: {given} is empty")
        with path.open("rb") as file:
            of_prompts = path.suffix == ".json" and PROMPTS.match(file.read(HEAD))
        under: dict[str, Any] = {"field": "prompts"} if of_prompts else {}
        try:
            return datasets.load_dataset(
                READERS[path.suffix], data_files=glob.escape(str(path)), split="train", **under
            )
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


def _next(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words as they go on with a text."""
    return tuple(f" {word}" for word in words)
