"""The data module: texts to token ids, groups and splits, and those to batches."""

from collections.abc import Collection
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedTokenizerBase

from masklearn.adapter import EMBEDDED, load_tokenizer
from masklearn.data.splits import DATASET, Groups, group_column
from masklearn.data.steps import Batch, Item, Plan, StepLoader, StepSampler, Texts
from masklearn.data.texts import Source, TaskName, Text
from masklearn.errors import UserError, one_line

Positions = Literal["last", "all"]
Part = Literal["train", "validation", "selection", "test", "all"]
SELECT_BY: dict[Positions, int] = {"all": 64, "last": 256}
"""Texts of each group, at least, by which discrete masks are selected, if there are so many."""


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
        batch_size: Texts per step and group; each is run under several masks.
        limit: Texts to use at most, from the start; all of a file by default, 1000 of the embedded generator.
        skip_short: Leave out texts of fewer than two tokens, instead of stopping at the first.
        seed: Seed of the embedded generator and of the order of the training texts.
        lm: Model whose tokenizer is used.
        revision: Revision of that model.
        scope: What shares its masks: see the model's scope.
        max_groups: Groups that a column may make: see the model's max_groups.
        trust_remote_code: Run the code that comes with the tokenizer: see the model's trust_remote_code.
        workers: Processes that put batches together ahead of time; how many changes nothing but the time.
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
        scope: str = DATASET,
        max_groups: int | None = None,
        trust_remote_code: bool = False,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.positions: Positions = positions
        self.batch_size, self.skip_short, self.seed = batch_size, skip_short, seed
        self.lm, self.revision, self.trust_remote_code = lm, revision, trust_remote_code
        self.workers = workers
        self.scope, self.max_groups = scope, max_groups
        self.source = self._source(path, dataset, task, subset, split, text_column, limit)
        self.plan: Plan | None = None
        """What is learned together; everything at once, as long as nobody says otherwise."""
        self.parts: dict[str, Texts] = {}
        self.pad = 0
        for flag, value, least in (
            ("batch_size", batch_size, 1),
            ("max_length", max_length, 2),
            ("limit", limit, 1),
            ("workers", workers, 0),
        ):
            if value is not None and value < least:
                raise UserError(f"data.{flag} is {value}; it must be at least {least}")

    def _source(
        self,
        path: str | None,
        dataset: str | None,
        task: TaskName | None,
        subset: str | None,
        split: str,
        text_column: str,
        limit: int | None,
    ) -> Source:
        given = [name for name, value in {"path": path, "dataset": dataset, "task": task}.items() if value]
        if len(given) > 1:
            raise UserError(
                f"data.{given[0]} and data.{given[1]} are both given; texts come from one. Drop one of them"
            )
        if not given and self.lm != EMBEDDED:
            raise UserError(f"model.lm is {self.lm}, but no text is given for it. Add --data.path or --data.dataset")
        task = task if given else "mixed"
        return Source(path, dataset, subset, split, task, text_column, group_column(self.scope), limit, self.seed)

    def prepare_data(self) -> None:
        if self.source.hub_id:
            self.source.read()  # one process fetches; nothing is kept

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        tokenizer = load_tokenizer(self.lm, self.revision, self.trust_remote_code)
        self.pad = cast(int, tokenizer.pad_token_id or 0)
        texts = self.source.read()
        every_id = self._tokenize(tokenizer, texts)
        kept = [i for i, ids in enumerate(every_id) if len(ids) > 1]
        ids = [every_id[i] for i in kept]
        if not ids:
            raise UserError(f"{self.source} holds no text of two tokens or more")
        groups = Groups.of_scope(self.scope, [texts[i] for i in kept], self.max_groups)
        contents = [" ".join(map(str, row)) for row in ids]  # what is learned: texts may be cut to the same beginning
        parts = groups.split(contents)
        if stage == "fit":
            groups.require_parts(parts, contents, str(self.source))
        self.groups = groups
        parts["selection"] = groups.selection(parts, SELECT_BY[self.positions])
        self.parts = {
            name: Texts([ids[i] for i in part], [groups.of[i] for i in part])
            for name, part in (parts | {"all": list(range(len(ids)))}).items()
        }

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.parts["all"].ids))

    def require_context(self, context: int | None) -> None:
        """Refuse texts that are longer than a model can read.

        Raises:
            UserError: If there are any; names both lengths.
        """
        if context is not None and self.longest > context:
            raise UserError(
                f"data.max_length lets a text of {self.longest} tokens through, but {self.lm} reads at most {context}. "
                f"Lower it: --data.max_length {context}"
            )

    def texts_per_step(self) -> int:
        """Texts that a group gives to a step, at most."""
        return min(self.batch_size, max(map(len, self.members)))

    @property
    def members(self) -> list[list[int]]:
        """Places in the training split of every group's texts."""
        return self.parts["train"].members(len(self.groups.names))

    def planned(self, block: int, steps: int) -> Plan:
        """Blocks of up to so many groups, as even as can be, each learned for so many steps.

        Groups of texts of like length share a block, so that little is padding. The longest come first: what does not
        fit into memory shows at once, and time left is rather over- than underestimated.
        """
        longest = {g: max(len(self.parts["train"].ids[i]) for i in texts) for g, texts in enumerate(self.members)}
        order = sorted(longest, key=lambda group: -longest[group])
        n_blocks = -(-len(order) // block)
        bounds = [len(order) * i // n_blocks for i in range(n_blocks + 1)]
        return Plan([order[begin:end] for begin, end in pairwise(bounds)], steps)

    def loader(
        self,
        part: Part,
        groups: Collection[int] | None = None,
        batch_size: int | None = None,
        most: int | None = None,
    ) -> DataLoader[Any]:
        """The texts of a split in order.

        Args:
            part: The split.
            groups: Groups whose texts are wanted; all by default.
            batch_size: Texts at a time; `data.batch_size` by default.
            most: Texts of a group at most, its first ones.

        Raises:
            UserError: If it has none.
        """
        texts = self.parts[part]
        if not len(texts):
            raise UserError(f"{self.source} holds too few texts for a {part} split")
        members = texts.members(len(self.groups.names))
        chosen = members if groups is None else [members[group] for group in set(groups)]
        wanted = Subset(texts, sorted(place for places in chosen for place in places[:most]))
        return DataLoader(wanted, batch_size=batch_size or self.batch_size, collate_fn=self.collate)

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        texts = self.parts["train"]
        plan = self.plan or self.planned(len(self.groups.names), self.trainer.max_steps)
        lengths = [len(row) for row in texts.ids]
        sampler = StepSampler(self.members, lengths, plan, self.batch_size, self.seed, self.trainer.global_step)
        return StepLoader(texts, batch_sampler=sampler, collate_fn=self.collate, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader("test")

    def _tokenize(self, tokenizer: PreTrainedTokenizerBase, texts: list[Text]) -> list[list[int]]:
        try:
            encoded = tokenizer([text.text for text in texts], truncation=True, max_length=self.max_length)
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
                f"{texts[short[0]].row + 1}, {texts[short[0]].text!r}. Remove them, or leave them out with "
                "--data.skip_short true"
            )
        return ids

    def collate(self, items: list[Item]) -> Batch:
        """Pad some texts to one length."""
        places, ids, groups = zip(*items, strict=True)
        lengths = torch.tensor([len(row) for row in ids])
        index = torch.arange(int(lengths.max())).expand(len(ids), -1)
        input_ids = torch.full(index.shape, self.pad)
        real = index < lengths[:, None]
        input_ids[real] = torch.tensor([token for row in ids for token in row])
        scored = real if self.positions == "all" else index == lengths[:, None] - 1
        return Batch(input_ids, real, scored, torch.tensor(places), torch.tensor(groups))
