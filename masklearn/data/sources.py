"""Sources of texts: a file, a hub dataset or the embedded generator."""

from dataclasses import dataclass
from itertools import islice
from typing import Literal

import datasets
from datasets.exceptions import DatasetsError

from masklearn.data.columns import Columns, RequestedColumns, Text
from masklearn.data.readers import Row, read_file
from masklearn.data.rows_given import RowsOrTexts, rows_given
from masklearn.errors import UserError, one_line
from masklearn.models import EMBEDDED
from masklearn.tiny import tasks

TaskName = Literal["mixed", "names", "agreement", "years", "copy"]
"""Tasks of the embedded generator."""

DEFAULT_TASK_TEXTS = 1000
"""Texts drawn from the embedded generator when no limit is given."""


def chosen_task(
    path: str | None, dataset: str | None, task: TaskName | None, texts: RowsOrTexts | None, lm: str
) -> TaskName | None:
    """The task of the embedded generator: the one given, or mixed if no source of texts is given.

    Raises:
        UserError: If several sources are given, or none for a model that needs one.
    """
    sources = {"path": path, "dataset": dataset, "task": task, "texts": texts}
    given = [name for name, value in sources.items() if value is not None and value != ""]
    if len(given) > 1:
        raise UserError(
            f"data.{given[0]} and data.{given[1]} are both given, but texts come from one source. Remove one"
        )
    if not given and lm != EMBEDDED:
        raise UserError(f"model.lm is {lm}, but no text is given for it. Add --data.path or --data.dataset")
    return task if given else "mixed"


@dataclass(frozen=True)
class Source:
    """Where texts come from. Exactly one of `path`, `hub_id`, `task` and `given` is set."""

    path: str | None
    """A file."""
    hub_id: str | None
    """A dataset on the Hugging Face hub."""
    subset: str | None
    """Configuration of the hub dataset."""
    split: str
    """Split of the hub dataset."""
    task: TaskName | None
    """A task of the embedded generator."""
    columns: RequestedColumns
    limit: int | None
    """Maximum number of texts, taken from the start."""
    seed: int
    """Seed of the embedded generator."""
    given: RowsOrTexts | None = None
    """The texts themselves."""

    def __str__(self) -> str:
        if self.given is not None:
            return f"a list of {len(self.given)}"
        return self.path or self.hub_id or f"the embedded {self.task} texts"

    def read(self) -> list[Text]:
        """All texts, in the order of the source.

        Raises:
            UserError: If there are none, or if they cannot be read.
        """
        if self.task:
            return self._generate(self.task)
        if self.given is not None:
            names, rows = rows_given(self.given, self.limit)
        else:
            names, rows = read_file(self.path, self.columns.readable, self.limit) if self.path else self._rows_of_hub()
        if not rows:
            raise UserError(f"{self} holds no text. Give at least one")
        columns = Columns.of(str(self), names, self.columns)
        return [columns.read(index, row) for index, row in enumerate(rows)]

    def _generate(self, task: TaskName) -> list[Text]:
        if self.columns.group:
            raise UserError(f"{self} have no column {self.columns.group!r}. Give texts with columns: --data.path")
        n = self.limit or DEFAULT_TASK_TEXTS
        if task == tasks.MIXED:
            return [Text(index, text, "") for index, text in enumerate(islice(tasks.texts(self.seed), n))]
        return [
            Text(
                index,
                prompt.text,
                "",
                prompt.corrupted,
                _continuations(prompt.answers),
                _continuations(prompt.wrong_answers),
            )
            for index, prompt in enumerate(islice(tasks.prompts(task, self.seed), n))
        ]

    def _rows_of_hub(self) -> tuple[list[str], list[Row]]:
        """Names of all columns, and the rows; with a limit, only these rows are downloaded."""
        assert self.hub_id is not None
        try:
            rows = datasets.load_dataset(self.hub_id, self.subset, split=self.split, streaming=self.limit is not None)
            names = rows.column_names or list(next(iter(rows), {}))
            selected = rows.select_columns([name for name in names if name in self.columns.readable])
            return names, [dict(row) for row in islice(selected, self.limit)]
        except (ValueError, OSError, RuntimeError, DatasetsError) as error:
            raise UserError(
                f"data.dataset: cannot load {self.hub_id!r}, split {self.split!r} ({one_line(error)}). "
                "Give a hub id that this machine can reach, or a file with --data.path"
            ) from error


def _continuations(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words with the space that separates them from the text before."""
    return tuple(f" {word}" for word in words)
