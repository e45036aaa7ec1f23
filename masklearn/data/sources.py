"""Readers: a file, the hub or the embedded generator to texts, each with the value that says which group it is of."""

from dataclasses import dataclass
from itertools import islice
from typing import Literal

import datasets
from datasets.exceptions import DatasetsError

from masklearn.data.columns import Columns, RequestedColumns, Text
from masklearn.data.readers import Row, read_file
from masklearn.errors import UserError, one_line
from masklearn.tiny import tasks

TaskName = Literal["mixed", "names", "agreement", "years", "copy"]

TASK_LIMIT = 1000
"""Texts drawn from the embedded generator where no limit is given."""


@dataclass(frozen=True)
class Source:
    """Where texts come from: a file, a hub dataset or a task of the embedded generator, exactly one of them."""

    path: str | None
    hub_id: str | None
    subset: str | None
    split: str
    task: TaskName | None
    columns: RequestedColumns
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
        names, rows = read_file(self.path, self.columns.possible, self.limit) if self.path else self._rows_of_hub()
        if not rows:
            raise UserError(f"{self} holds no text. Give at least one")
        columns = Columns.of(str(self), names, self.columns)
        return [columns.read(i, row) for i, row in enumerate(rows)]

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

    def _rows_of_hub(self) -> tuple[list[str], list[Row]]:
        assert self.hub_id is not None
        try:  # with a limit, only the rows asked for are fetched
            rows = datasets.load_dataset(self.hub_id, self.subset, split=self.split, streaming=self.limit is not None)
            names = rows.column_names or list(next(iter(rows), {}))
            found = rows.select_columns([name for name in names if name in self.columns.possible])
            return names, [dict(row) for row in islice(found, self.limit)]
        except (ValueError, OSError, RuntimeError, DatasetsError) as error:
            raise UserError(
                f"data.dataset: cannot load {self.hub_id!r}, split {self.split!r} ({one_line(error)}). "
                "Give a hub id that this machine can reach, or a file with --data.path"
            ) from error


def _next(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words as they go on with a text."""
    return tuple(f" {word}" for word in words)
