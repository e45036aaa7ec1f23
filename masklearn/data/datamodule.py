"""The data module: texts to token ids, groups and splits, and those to batches."""

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedTokenizerBase

from masklearn.data.batching import Batch, Item, Plan, SplitDataset, StepLoader, StepSampler
from masklearn.data.columns import RequestedColumns
from masklearn.data.positions import TRUNCATING, Positions, expand_positions
from masklearn.data.resampling import add_resample_texts
from masklearn.data.sources import Source, TaskName
from masklearn.data.splits import DATASET, INPUT, Groups, group_column
from masklearn.data.tokenization import Encoded, Encoder
from masklearn.errors import UserError
from masklearn.models import EMBEDDED, load_tokenizer

SplitName = Literal["train", "validation", "selection", "test", "all"]
SELECT_BY: dict[Positions, int] = {"all": 64, "last": 256, "random": 256, "each": 256}
"""Inputs of each group, at least, by which discrete masks are selected, if there are so many."""


class MaskData(LightningDataModule):
    """Texts from a file, the hub or the embedded generator, tokenised for a model and split by content.

    Args:
        path: Text file: .jsonl, .json, .csv or .parquet with a text column, or .txt with a text a line.
        dataset: Hugging Face hub id of a dataset, in place of a file.
        subset: Configuration of the hub dataset, where it has several.
        split: Split of the hub dataset to take texts from; masklearn's own splits are made within it.
        task: Task of the embedded generator, in place of a file; mixed where nothing is given.
        text_column: Column that holds the texts; by default text, or clean.
        corrupted_column: Column that holds the other text of every pair, from which closed nodes are resampled; by
            default corrupted or corrupt, where there is one. Pairs of unequal token length are left out.
        answer_column: Column that holds what is right after the text: a text, several, or ids of tokens in a column
            called ..._idx. By default answer, answers, correct_idx or label, where there are pairs.
        wrong_answer_column: The same for what is wrong there; by default wrong_answer, wrong_answers or incorrect_idx.
        max_length: Tokens after which a text is cut.
        pack: Put the texts in a row and cut that into pieces of max_length tokens, instead of cutting every text.
        positions: Next-token distributions that count: the last one of every text, all, random (one of every text,
            drawn by the seed; the text is cut there), or each (every text gives an input for each of its tokens).
        batch_size: Texts per step and group; each is run under several masks.
        limit: Texts to use at most, from the start; all of a file by default, 1000 of the embedded generator.
        skip_short: Leave out texts of fewer than two tokens, instead of stopping at the first.
        seed: Seed of the embedded generator, of random positions and of the order of the training texts.
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
        text_column: str | None = None,
        corrupted_column: str | None = None,
        answer_column: str | None = None,
        wrong_answer_column: str | None = None,
        max_length: int = 128,
        pack: bool = False,
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
        self.max_length, self.pack = max_length, pack
        self.positions: Positions = positions
        self.batch_size, self.skip_short, self.seed = batch_size, skip_short, seed
        self.lm, self.revision, self.trust_remote_code = lm, revision, trust_remote_code
        self.workers = workers
        self.scope, self.max_groups = scope, max_groups
        columns = RequestedColumns(
            text_column, corrupted_column, answer_column, wrong_answer_column, group_column(scope)
        )
        self.source = self._source(path, dataset, task, subset, split, columns, limit)
        self.plan: Plan | None = None
        """What is learned together; everything at once, as long as nobody says otherwise."""
        self.token_counts: Counter[int] = Counter()
        """How often every token comes in the texts, their first ones left out, as nothing predicts them."""
        self.parts: dict[str, SplitDataset] = {}
        self.pad = 0
        self.notices: list[str] = []
        """What there is to say about the texts, if anything."""
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
        columns: RequestedColumns,
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
        if self.pack and self.scope == INPUT:
            raise UserError("data.pack makes other texts of those given, so none of them has masks of its own. Drop it")
        return Source(path, dataset, subset, split, task, columns, limit, self.seed)

    def prepare_data(self) -> None:
        if self.source.hub_id:
            self.source.read()  # one process fetches; nothing is kept

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        tokenizer = load_tokenizer(self.lm, self.revision, self.trust_remote_code)
        self.pad = cast(int, tokenizer.pad_token_id or 0)
        whole = self._encoded(tokenizer)
        self.token_counts = Counter(token for text in whole for token in text.ids[1:])
        texts = expand_positions(self.positions, whole, self.seed)
        groups = Groups.of_scope(self.scope, texts, self.max_groups)
        content = {text.row: " ".join(map(str, text.ids)) for text in whole}  # as read: texts may be cut to the same
        contents = [content[text.row] for text in texts]
        parts = groups.split(contents)
        if stage == "fit":
            groups.require_texts_in_every_split(parts, contents, str(self.source))
        self.groups = groups
        everything = list(range(len(texts)))
        texts = add_resample_texts(texts, parts["train"] or everything, self.seed)
        parts["selection"] = groups.selection(parts, SELECT_BY[self.positions])
        self.parts = {
            name: SplitDataset([texts[i] for i in part], [groups.of_text[i] for i in part])
            for name, part in (parts | {"all": everything}).items()
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
        part: SplitName,
        groups: Collection[int] | None = None,
        batch_size: int | None = None,
        most: int | None = None,
        by_length: bool = False,
    ) -> DataLoader[Any]:
        """The texts of a split in order.

        Args:
            part: The split.
            groups: Groups whose texts are wanted; all by default.
            batch_size: Texts at a time; `data.batch_size` by default.
            most: Texts of a group at most, evenly spread over its own: files are often sorted.
            by_length: Shorter texts before longer ones, so that little is padding, for whom the order is all one.

        Raises:
            UserError: If it has none.
        """
        texts = self.parts[part]
        if not len(texts):
            raise UserError(f"{self.source} holds too few texts for a {part} split")
        members = texts.members(len(self.groups.names))
        chosen = members if groups is None else [members[group] for group in set(groups)]
        wanted = sorted(place for places in chosen for place in _spread(places, most))
        if by_length:
            lengths = [len(row) for row in texts.ids]
            wanted.sort(key=lambda place: lengths[place])
        return DataLoader(Subset(texts, wanted), batch_size=batch_size or self.batch_size, collate_fn=self.collate)

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

    def _encoded(self, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
        """The texts in tokens, those of fewer than two left out.

        Raises:
            UserError: If there are such and it was not said to leave them out, or if the texts cannot be used.
        """
        texts = self.source.read()
        encoder = Encoder(tokenizer, str(self.source), self.lm, self.max_length)
        encoded, self.notices = (encoder.packed(texts), []) if self.pack else encoder(texts)
        short = [text for text in encoded if len(text.ids) < 2]
        if short and not self.skip_short:
            first = next(text.text for text in texts if text.row == short[0].row)
            raise UserError(
                f"{self.source}: {len(short)} of {len(encoded)} texts are shorter than two tokens, the first is text "
                f"{short[0].row + 1}, {first!r}. Remove them, or leave them out with --data.skip_short true"
            )
        kept = [text for text in encoded if len(text.ids) > 1]
        if not kept:
            raise UserError(f"{self.source} holds no text of two tokens or more")
        return kept

    def collate(self, items: list[Item]) -> Batch:
        """Pad some texts to one length."""
        places, texts, groups = zip(*items, strict=True)
        input_ids = _padded([text.ids for text in texts], self.pad)
        lengths = torch.tensor([len(text.ids) for text in texts])
        index = torch.arange(input_ids.shape[1]).expand(len(texts), -1)
        real = index < lengths[:, None]
        last = lengths[:, None] - (2 if self.positions in TRUNCATING else 1)  # behind a cut stands the token that came
        scored = real if self.positions == "all" else index == last
        others = [text.corrupted for text in texts]
        corrupted = None if None in others else _padded(others, self.pad)
        answers, wrong = (
            _padded(rows, -1) if any(rows) else None
            for rows in ([text.answers for text in texts], [text.wrong for text in texts])
        )
        return Batch(input_ids, real, scored, torch.tensor(places), torch.tensor(groups), corrupted, answers, wrong)


def _spread(places: Sequence[int], most: int | None) -> Sequence[int]:
    if most is None or len(places) <= most:
        return places
    return [places[i * len(places) // most] for i in range(most)]


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of numbers, filled up on the right to the longest: (rows, numbers)."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=fill)
