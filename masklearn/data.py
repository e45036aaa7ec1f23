"""Text to batches: readers, tokens, splits by content, and the positions that count."""

import glob
import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import datasets
import torch
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from masklearn.adapter import EMBEDDED, load_tokenizer
from masklearn.errors import UserError, one_line
from masklearn.tiny import tasks

TaskName = Literal["mixed", "names", "agreement", "years", "copy"]
Positions = Literal["last", "all"]
Part = Literal["train", "validation", "test", "all"]

READERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".csv": "csv", ".parquet": "parquet"}
HELD_OUT = 0.1
"""Share of the different texts that goes to the validation split, and again to the test split."""
TASK_LIMIT = 1000
"""Texts drawn from the embedded generator where no limit is given."""


class Batch(NamedTuple):
    """Some inputs, padded on the right to one length."""

    input_ids: Tensor
    """Shape (inputs, tokens)."""
    real: Tensor
    """False at padding. Boolean, shape (inputs, tokens)."""
    scored: Tensor
    """Which next-token distributions count. Boolean, shape (inputs, tokens)."""
    place: Tensor
    """Place of every input in its split. Shape (inputs)."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in self))


class Texts(torch.utils.data.Dataset[tuple[int, list[int]]]):
    """Token ids of the texts of one split, with their places."""

    def __init__(self, ids: Sequence[list[int]]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[int, list[int]]:
        return index, self.ids[index]


class StepSampler(Sampler[list[int]]):
    """The indices of every training step's batch, as a function of seed and step alone.

    So a run that goes on at step n sees what it would have seen. Epoch after epoch each input comes once (but for a
    last, smaller batch, which is dropped), and texts of like length share a batch, so that little of it is padding.
    """

    WINDOW = 8
    """Batches among which texts are sorted by length."""

    def __init__(self, lengths: Sequence[int], batch_size: int, steps: int, seed: int, first_step: int = 0) -> None:
        self.lengths, self.batch_size = lengths, min(len(lengths), batch_size)
        self.steps, self.seed, self.first_step = steps, seed, first_step

    def __len__(self) -> int:
        """All steps of the run, those before the first included: Lightning counts them as done when it resumes."""
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        step, per_epoch = self.first_step, len(self.lengths) // self.batch_size
        while step < self.steps:
            epoch, place = divmod(step, per_epoch)
            batches = self._epoch(epoch)[place : place + self.steps - step]
            yield from batches
            step += len(batches)

    def _epoch(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        whole = len(order) - len(order) % self.batch_size
        window = self.WINDOW * self.batch_size
        by_length = [
            i
            for begin in range(0, whole, window)
            for i in sorted(order[begin : min(begin + window, whole)], key=self.lengths.__getitem__)
        ]
        batches = [by_length[begin : begin + self.batch_size] for begin in range(0, whole, self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


class StepLoader(DataLoader[Any]):
    """A loader that Lightning may resume in the middle: its state is the trainer's step, which Lightning keeps."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load: the sampler was made for the step at which the run goes on."""


class MaskData(LightningDataModule):
    """Texts from a file, the hub or the embedded generator, tokenised for a model and split by content.

    Args:
        path: Text file: .jsonl, .json, .csv or .parquet with a text column, or .txt with a text a line.
        dataset: Hugging Face hub id of a dataset, in place of a file.
        subset: Configuration of the hub dataset, where it has several.
        split: Split of the hub dataset to take texts from; masklearn's own splits are made within it.
        task: Task of the embedded generator, in place of a file; mixed where nothing is given.
        text_column: Column that holds the texts.
        max_length: Tokens after which a text is cut.
        positions: Next-token distributions that count: the last one of every text, or all.
        batch_size: Texts per step; each is run under one mask of every size.
        limit: Texts to use at most, from the start; all of a file by default, 1000 of the embedded generator.
        skip_short: Leave out texts of fewer than two tokens, instead of stopping at the first.
        seed: Seed of the embedded generator and of the order of the training texts.
        lm: Model whose tokenizer is used.
        revision: Revision of that model.
    """

    def __init__(
        self,
        path: str | None = None,
        dataset: str | None = None,
        subset: str | None = None,
        split: str = "train",
        task: TaskName | None = None,
        text_column: str = "text",
        max_length: int = 128,
        positions: Positions = "all",
        batch_size: int = 16,
        limit: int | None = None,
        skip_short: bool = False,
        seed: int = 0,
        lm: str = EMBEDDED,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self.path, self.hub_id, self.subset, self.split = path, dataset, subset, split
        self.task: TaskName | None = task
        self.text_column, self.max_length = text_column, max_length
        self.positions: Positions = positions
        self.batch_size, self.limit, self.skip_short, self.seed = batch_size, limit, skip_short, seed
        self.lm, self.revision = lm, revision
        self.parts: dict[str, Texts] = {}
        self.pad = 0
        self._check()

    def _check(self) -> None:
        given = [flag for flag in ("path", "dataset", "task") if getattr(self, "hub_id" if flag == "dataset" else flag)]
        if len(given) > 1:
            raise UserError(
                f"data.{given[0]} and data.{given[1]} are both given; texts come from one. Drop one of them"
            )
        if not given:
            self.task = "mixed"
            if self.lm != EMBEDDED:
                raise UserError(
                    f"model.lm is {self.lm}, but no text is given for it. Add --data.path or --data.dataset"
                )
        for flag, least in (("batch_size", 1), ("max_length", 2), ("limit", 3)):
            value = getattr(self, flag)
            if value is not None and value < least:
                raise UserError(f"data.{flag} is {value}; it must be at least {least}")

    @property
    def source(self) -> str:
        """Where the texts come from, in words."""
        return self.path or self.hub_id or f"the embedded {self.task} texts"

    def prepare_data(self) -> None:
        if self.hub_id:
            self._read()  # one process fetches; nothing is kept

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        tokenizer = load_tokenizer(self.lm, self.revision)
        self.pad = cast(int, tokenizer.pad_token_id or 0)
        texts = self._read()
        ids = self._tokenize(tokenizer, texts)
        contents = [
            " ".join(map(str, row)) for row in ids
        ]  # of what is learned: texts may be cut to the same beginning
        parts = split_by_content(contents)
        if stage == "fit" and min(map(len, parts.values())) == 0:
            raise UserError(
                f"{self.source} holds {len(set(contents))} different texts; train, validation and test take one each. "
                "Give at least 3"
            )
        self.parts = {name: Texts([ids[i] for i in part]) for name, part in parts.items()}
        self.parts["all"] = Texts(ids)

    def require_context(self, context: int | None) -> None:
        """Refuse texts that are longer than a model can read.

        Raises:
            UserError: If there are any; names both lengths.
        """
        longest = max(map(len, self.parts["all"].ids))
        if context is not None and longest > context:
            raise UserError(
                f"data.max_length lets a text of {longest} tokens through, but {self.lm} reads at most {context}. "
                f"Lower it: --data.max_length {context}"
            )

    def loader(self, part: Part) -> DataLoader[Any]:
        """All texts of a split in order, `batch_size` at a time.

        Raises:
            UserError: If it has none.
        """
        if not len(self.parts[part]):
            raise UserError(f"{self.source} holds too few texts for a {part} split")
        return DataLoader(self.parts[part], batch_size=self.batch_size, collate_fn=self._collate)

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        texts, first = self.parts["train"], self.trainer.global_step
        lengths = [len(row) for row in texts.ids]
        sampler = StepSampler(lengths, self.batch_size, self.trainer.max_steps, self.seed, first)
        return StepLoader(texts, batch_sampler=sampler, collate_fn=self._collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader("test")

    def _read(self) -> list[str]:
        if self.task:
            return self._generate(self.task)
        rows = self._rows_of_file(self.path) if self.path else self._rows_of_hub()
        rows = rows.take(self.limit) if self.limit and isinstance(rows, datasets.IterableDataset) else rows
        columns = rows.column_names or list(next(iter(rows), {}))
        if self.text_column not in columns:
            raise UserError(
                f"{self.source} has no column {self.text_column!r}; it has {', '.join(columns) or 'none'}. "
                f"Name one with --data.text_column"
            )
        found: Iterator[Any] = (dict(row)[self.text_column] for row in rows.select_columns([self.text_column]))
        if self.path and Path(self.path).suffix == ".txt":
            found = (text for text in found if text.strip())  # blank lines separate texts; they are none
        texts = list(islice(found, self.limit))
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(
                    f"{self.source}, row {i + 1}: {self.text_column!r} holds {text!r}, which is no text. "
                    "Mend the row, or name another column with --data.text_column"
                )
        if not texts:
            raise UserError(f"{self.source} holds no text")
        return texts

    def _generate(self, task: TaskName) -> list[str]:
        limit = self.limit or TASK_LIMIT
        if task == tasks.MIXED:
            return list(islice(tasks.texts(self.seed), limit))
        return [prompt.text for prompt in islice(tasks.prompts(task, self.seed), limit)]

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

    def _tokenize(self, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
        try:
            encoded = tokenizer(texts, truncation=True, max_length=self.max_length)
        except Exception as error:  # tokenizers raises nothing more special
            raise UserError(
                f"{self.source}: the tokenizer of {self.lm} cannot read these texts ({one_line(error)}). "
                "Give the model that the texts are for with --model.lm"
            ) from error
        ids = cast(list[list[int]], encoded["input_ids"])
        short = [i for i, row in enumerate(ids) if len(row) < 2]
        if short and not self.skip_short:
            raise UserError(
                f"{self.source}: {len(short)} of {len(ids)} texts are shorter than two tokens, the first is text "
                f"{short[0] + 1}, {texts[short[0]]!r}. Remove them, or leave them out with --data.skip_short true"
            )
        for i in reversed(short):
            del ids[i], texts[i]
        return ids

    def _collate(self, rows: list[tuple[int, list[int]]]) -> Batch:
        index, ids = zip(*rows, strict=True)
        lengths = torch.tensor([len(row) for row in ids])
        place = torch.arange(int(lengths.max())).expand(len(ids), -1)
        input_ids = torch.full(place.shape, self.pad)
        real = place < lengths[:, None]
        input_ids[real] = torch.tensor([token for row in ids for token in row])
        scored = real if self.positions == "all" else place == lengths[:, None] - 1
        return Batch(input_ids, real, scored, torch.tensor(index))


def split_by_content(texts: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the texts of each split, in the order given.

    Equal texts fall into the same split, and neither order nor repetition changes where a text falls: the different
    texts are ranked by a hash, and the first tenth is for testing, the second for validation.
    """
    ranked = sorted({text: hashlib.sha256(text.encode()).digest() for text in texts}.items(), key=lambda pair: pair[1])
    held_out = max(1, round(HELD_OUT * len(ranked)))
    part_of: dict[str, str] = {}
    for rank, (text, _) in enumerate(ranked):
        part_of[text] = "test" if rank < held_out else "validation" if rank < 2 * held_out else "train"
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for i, text in enumerate(texts):
        parts[part_of[text]].append(i)
    return parts
