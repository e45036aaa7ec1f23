"""Sources of texts: a file, a folder of the datasets library, a hub dataset or the embedded generator."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets import config as datasets_config
from datasets.exceptions import DatasetsError
from huggingface_hub import constants

from masklearn.data.answers import answers_in_words, spaced
from masklearn.data.columns import WITHOUT_WORDS, Columns, RequestedColumns
from masklearn.data.mib import MIB_COLUMNS, mib_task, mib_texts
from masklearn.data.opening import existing_path
from masklearn.data.readers import Row, read_file
from masklearn.data.rows_given import RowSequence, rows_given
from masklearn.data.texts import RowReader, Text
from masklearn.errors import UserError, one_line
from masklearn.models import EMBEDDED, why_hub_unreachable
from masklearn.tiny import tasks

TaskName = Literal["mixed", "names", "agreement", "years", "copy"]
"""Tasks of the embedded generator."""

DEFAULT_SPLIT = "train"
SAVED_DATASET = ("dataset_dict.json", "state.json")
"""Files of which one is in every folder that `save_to_disk` has written."""
DEFAULT_TASK_TEXTS = 1000
"""Texts drawn from the embedded generator when no limit is given."""


def chosen_task(
    path: str | None, dataset: str | None, task: TaskName | None, texts: RowSequence | None, lm: str
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
    """A file, or a folder that the datasets library has saved."""
    hub_id: str | None
    """A dataset on the Hugging Face hub."""
    subset: str | None
    """Configuration of the hub dataset."""
    split: str
    """Split of the dataset, or a slice of it such as train[:50%]."""
    task: TaskName | None
    """A task of the embedded generator."""
    columns: RequestedColumns
    limit: int | None
    """Maximum number of texts, taken from the start."""
    seed: int
    """Seed of the embedded generator."""
    ids_are_known: bool = False
    """Whether token ids among the answers are meant as they are, even if the texts are of a known task."""
    given: RowSequence | None = None
    """The texts themselves."""
    chat: bool = False
    """Whether the texts become messages, so that answers begin a message and get no space before them."""

    def __post_init__(self) -> None:
        """Refuse settings that a source of this kind cannot follow."""
        if self.subset is not None and self.hub_id is None:
            raise UserError(f"data.subset is for a dataset of the hub, and texts come from {self}. Leave it out")
        if self.task and self.split != DEFAULT_SPLIT:
            raise UserError(f"data.split is {self.split!r}, but {self} have no splits. Leave it out")
        if self.task and (column := self.columns.named):
            raise UserError(f"{self} have no column {column!r}. Give texts with columns: --data.path")

    def __str__(self) -> str:
        if self.given is not None:
            return f"a list of {len(self.given)}"
        return self.path or self.hub_id or f"the embedded {self.task} texts"

    def read(self) -> tuple[list[Text], list[str]]:
        """All texts, in the order of the source; and notices for the user.

        Raises:
            UserError: If there are none, or if they cannot be read.
        """
        if self.task:
            return self._generate(self.task), []
        names, rows = self._rows()
        if not names:
            raise UserError(f"{self} holds no text. Give at least one")
        task = None if self.columns.named else mib_task(names)
        if task and rows:
            return mib_texts(task, rows, str(self))
        columns = Columns.of(str(self), names, self.columns)
        if not rows:
            raise UserError(f"{self} holds no text. Give at least one")
        read_row = RowReader(columns)
        texts = [read_row(index, row) for index, row in enumerate(rows)]
        notices = [
            f"The column {name!r} is not used: "
            + (
                "it does not hold the words that follow"
                if name in WITHOUT_WORDS
                else f"answers are read beside corrupted texts, or with --data.answer_column {name}"
            )
            for name in columns.unused
        ]
        if columns.answer and not self.ids_are_known:
            texts, found = answers_in_words(texts, columns, self.chat)
            notices += found
        if columns.answer and not self.chat:
            texts, found = spaced(texts)
            notices += found
        return texts, notices

    def column_names(self) -> list[str]:
        """Names of all columns; the embedded generator has none.

        Raises:
            UserError: If the texts cannot be read.
        """
        return [] if self.task else self._rows()[0]

    def _generate(self, task: TaskName) -> list[Text]:
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

    @property
    def _readable(self) -> set[str]:
        """Names of all columns that may be read."""
        return self.columns.readable | MIB_COLUMNS

    def _rows(self) -> tuple[list[str], list[Row]]:
        """Names of all columns, and the rows of the split up to the limit."""
        if self.hub_id:
            return self._rows_of_hub()
        folder = existing_path(self.path) if self.path else None
        if folder and folder.is_dir() and any((folder / name).is_file() for name in SAVED_DATASET):
            return self._rows_of_folder(folder)
        is_slice = self.split != DEFAULT_SPLIT
        limit = None if is_slice else self.limit
        if self.given is not None:
            names, rows = rows_given(self.given, limit)
        else:
            names, rows = read_file(self.path or "", self._readable, limit)
        if is_slice:
            rows = [rows[i] for _, part in self._ranges({DEFAULT_SPLIT: len(rows)}) for i in part][: self.limit]
        return names, rows

    def _rows_of_folder(self, folder: Path) -> tuple[list[str], list[Row]]:
        """Names and rows of a dataset, or of the splits of several, that `save_to_disk` has written."""
        try:
            found = datasets.load_from_disk(str(folder))
        except (ValueError, OSError, RuntimeError, DatasetsError) as error:
            raise UserError(
                f"data.path: cannot read {self.path}: {one_line(error)}. Give an undamaged folder"
            ) from error
        splits = found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict({DEFAULT_SPLIT: found})
        ranges = self._ranges({str(name): len(split) for name, split in splits.items()})
        names, rows = list[str](), list[Row]()
        for name, part in ranges:
            names += [column for column in splits[name].column_names if column not in names]
            rows += _selected(splits[name].select(part), self._readable, None)
        return names, rows[: self.limit]

    def _ranges(self, lengths: dict[str, int]) -> list[tuple[str, range]]:
        """The rows of every split that `split` names.

        Raises:
            UserError: If it names none of the splits, or is not valid.
        """
        try:
            parts = datasets.ReadInstruction.from_spec(self.split).to_absolute(lengths)
        except (ValueError, AssertionError) as error:
            raise UserError(
                f"data.split is {self.split!r} ({one_line(error)}); {self} has {', '.join(lengths)}. Give one, "
                f"or a part such as '{next(iter(lengths))}[:50%]'"
            ) from error
        stops = [lengths[part.splitname] if part.to is None else part.to for part in parts]
        return [(part.splitname, range(part.from_ or 0, stop)) for part, stop in zip(parts, stops, strict=True)]

    def _rows_of_hub(self) -> tuple[list[str], list[Row]]:
        """Names of all columns, and the rows; with a limit, only these rows are downloaded."""
        assert self.hub_id is not None
        if not Path(self.hub_id).expanduser().exists():
            _require_hub(self.hub_id)
        streaming = self.limit is not None and "[" not in self.split  # the library streams whole splits only
        try:
            hub_id = str(Path(self.hub_id).expanduser()) if self.hub_id.startswith("~") else self.hub_id
            rows = datasets.load_dataset(hub_id, self.subset, split=self.split, streaming=streaming)
            names = rows.column_names or list(next(iter(rows), {}))
            return names, _selected(rows, self._readable, self.limit)
        except (ValueError, OSError, RuntimeError, DatasetsError) as error:
            raise UserError(
                f"data.dataset: cannot load {self.hub_id!r}, split {self.split!r} ({one_line(error)}). "
                "Give a hub id that this machine can reach, or a file with --data.path"
            ) from error


def _require_hub(hub_id: str) -> None:
    """Refuse a hub dataset that has not been downloaded if the hub does not answer, which the library finds out late.

    Raises:
        UserError: What was tried.
    """
    downloaded = Path(datasets_config.HF_DATASETS_CACHE) / hub_id.replace("/", "___")
    if not downloaded.is_dir() and (why := why_hub_unreachable()):
        raise UserError(
            f"data.dataset: {hub_id} is no folder here, and the hub, {constants.ENDPOINT}, cannot be reached ({why}). "
            "Give a file with --data.path, or a folder of data files"
        )


def _selected(rows: Any, readable: set[str], limit: int | None) -> list[Row]:
    """The columns of a dataset that may be read, of at most `limit` rows; no rows if it has none of these columns."""
    names = [name for name in rows.column_names or list(next(iter(rows), {})) if name in readable]
    return [dict(row) for row in islice(rows.select_columns(names), limit)] if names else []


def _continuations(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words with the space that separates them from the text before."""
    return tuple(f" {word}" for word in words)
