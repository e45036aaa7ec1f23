"""The data module: reads texts, tokenises and splits them, and makes batches of them."""

from collections import Counter
from collections.abc import Collection
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, RandomSampler, Subset
from transformers import PreTrainedTokenizerBase

from masklearn.choices import require_choices
from masklearn.data.answer_tokens import AnswerIds
from masklearn.data.batching import Batch, Item, SplitDataset, StepLoader, StepSampler, collate, evenly_spaced
from masklearn.data.block_plan import BlockPlan
from masklearn.data.columns import RequestedColumns
from masklearn.data.encoding import Encoding
from masklearn.data.positions import Positions, expand_positions
from masklearn.data.preview import preview
from masklearn.data.resampling import add_resample_texts
from masklearn.data.rows_given import RowsOrTexts, as_sequence
from masklearn.data.sources import Source, TaskName, chosen_task
from masklearn.data.splits import DATASET, INPUT, Groups, group_column
from masklearn.data.text_tokenizer import BosRule
from masklearn.data.tokenization import Truncation
from masklearn.errors import UserError
from masklearn.models import EMBEDDED, TokenizerOrName, load_tokenizer

SplitName = Literal["train", "validation", "selection", "test", "all"]
"""The splits, and two sets drawn from them: the texts on which discrete masks are selected, and all texts."""
MIN_SELECTION_INPUTS: dict[Positions, int] = {"all": 64, "last": 256, "random": 256, "each": 256, "completion": 128}
"""Inputs of each group on which discrete masks are selected, at least; fewer only where the group has fewer."""


class MaskData(LightningDataModule):
    """Texts from a file, the hub or the embedded generator, tokenised for a model and split by content.

    Args:
        path: Text file: .jsonl, .json, .csv, .tsv or .parquet with a text column, or .txt with one text per line, also
            with .gz or .zst; or a folder that datasets' save_to_disk has written.
        dataset: Hugging Face hub id of a dataset, in place of a file.
        subset: Configuration of the hub dataset, if it has several.
        split: Split to read, or a part of it such as train[:50%]; a file is its train split. masklearn makes its own
            train, validation and test splits within it.
        task: Task of the embedded generator, in place of a file; mixed if no source is given.
        text_column: Column with the texts; by default text, clean, messages (a chat, through the tokenizer's chat
            template), prompt (if there is a completion), or tokens or input_ids (token ids, used as they are). A path
            such as pair.prompt leads into nested columns.
        corrupted_column: Column with the corrupted text of every pair, from which closed nodes are resampled; by
            default corrupted or corrupt, if there is one. Pairs of unequal token length are left out.
        answer_column: Column with the correct continuation of the text: one text, several, or token ids in a column
            named ..._idx. By default the names of several circuit tools, if the texts come in pairs.
        wrong_answer_column: Column with wrong continuations, in the same form.
        completion_column: Column with the answer to the prompt, for positions completion; by default completion.
        answer_ids: What token ids among the answers are: auto (checked against the texts, and refused if nothing
            shows that they are of this tokenizer), this-tokenizer, or ignore.
        max_length: Longest text, in tokens; longer texts are truncated.
        truncation: Where longer texts are cut: right (refused where their end counts) or left.
        bos: Begin token of every text: auto (one if the tokenizer puts one there), always, or never (chats included).
        chat: Make plain texts the message of a user, in the tokenizer's chat template.
        pack: Concatenate the texts and split the result into chunks of max_length tokens, instead of truncating texts.
        positions: Next-token distributions that count: the last one of every text, all, random (one of every text,
            drawn with the seed; the text is truncated there), each (every token of a text makes one input), or
            completion (every token of the answer to a prompt, and none of the prompt).
        batch_size: Texts of each group in a step; every text is run under several masks.
        limit: Use only this many texts, from the start; by default all of a file, and 1000 of the embedded generator.
        max_test: Texts of the validation split, and of the test split, at most, and one of each group at least.
        skip_short: Leave out texts of fewer than two tokens, instead of stopping at the first.
        seed: Seed of the embedded generator, of random positions and of the order of the training texts.
        lm: Model whose tokenizer is used.
        revision: Revision of that model.
        scope: Which texts share masks: see the model's scope.
        max_groups: Most groups that a column may make: see the model's max_groups.
        trust_remote_code: Run the code that comes with the tokenizer: see the model's trust_remote_code.
        workers: Processes that prepare batches ahead of time; their number changes the time and nothing else.
        texts: The texts themselves, in place of a file: strings, rows with the columns of a file, or a table of pandas.
        tokenizer: Hub id or folder of a tokenizer, for a model that comes without one; by default the model's own. From
            Python also a tokenizer that is loaded already.
    """

    def __init__(
        self, path: str | Path | None = None, dataset: str | None = None, subset: str | None = None,
        split: str = "train", task: TaskName | None = None,
        text_column: str | None = None, corrupted_column: str | None = None, answer_column: str | None = None,
        wrong_answer_column: str | None = None, completion_column: str | None = None, answer_ids: AnswerIds = "auto",
        max_length: int = 128, truncation: Truncation = "right", bos: BosRule = "auto", chat: bool = False,
        pack: bool = False, positions: Positions = "all", batch_size: int = 16, limit: int | None = None,
        max_test: int = 512, skip_short: bool = False, seed: int = 0,
        lm: str = EMBEDDED, revision: str | None = None, scope: str = DATASET, max_groups: int | None = None,
        trust_remote_code: bool = False, workers: int = 0,
        texts: RowsOrTexts | None = None, tokenizer: TokenizerOrName | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        path, texts = None if path is None else str(path), None if texts is None else as_sequence(texts, limit)
        in_memory = ["texts"] if isinstance(tokenizer, str | None) else ["texts", "tokenizer"]
        self.save_hyperparameters(ignore=in_memory, logger=False)
        require_choices("data", self.hparams, get_type_hints(MaskData.__init__))
        self.encoding = Encoding(max_length, truncation, positions, bos, chat, pack, answer_ids, skip_short)
        self.positions: Positions = positions
        self.batch_size, self.max_test, self.seed, self.workers = batch_size, max_test, seed, workers
        self.lm, self.revision, self.trust_remote_code = lm, revision, trust_remote_code
        self.tokenizer, self.scope, self.max_groups = tokenizer, scope, max_groups
        if pack and scope == INPUT:
            raise UserError(
                "data.pack joins the texts and splits them into chunks, so with --model.scope input no given text has "
                "masks of its own. Leave out --data.pack"
            )
        columns = RequestedColumns(
            text_column, corrupted_column, answer_column, wrong_answer_column, group_column(scope), completion_column
        )
        task, known = chosen_task(path, dataset, task, texts, lm), answer_ids == "this-tokenizer"
        self.source = Source(path, dataset, subset, split, task, columns, limit, seed, known, texts, chat)
        self.plan: BlockPlan | None = None
        """Which groups are learned together; without a plan all of them are."""
        self.token_counts: Counter[int] = Counter()
        """Occurrences of every token in the texts. First tokens are not counted, since nothing predicts them."""
        self.parts: dict[str, SplitDataset] = {}
        """The texts by `SplitName`; empty before `setup`."""
        self.pad_id, self.preview = 0, ""
        self.notices: list[str] = []
        """Remarks for the user on the texts that were read."""
        minimums = {"batch_size": (batch_size, 1), "max_length": (max_length, 2), "limit": (limit, 1)}
        for flag, (value, minimum) in (minimums | {"workers": (workers, 0), "max_test": (max_test, 1)}).items():
            if value is not None and value < minimum:
                raise UserError(f"data.{flag} is {value}; it must be at least {minimum}")

    def prepare_data(self) -> None:
        """Download the hub dataset, if there is one: Lightning calls this in one process only."""
        if self.source.hub_id:
            self.source.read()

    def setup(self, stage: str | None = None) -> None:
        """Read, tokenise, group and split the texts, once.

        Raises:
            UserError: If the texts cannot be used, or at stage "fit" if a group has no text in one of the splits.
        """
        if not self.parts:
            self._read()
        if stage == "fit" and self._shortage:
            raise UserError(self._shortage)

    def _read(self) -> None:
        """Fill `parts`."""
        tokenizer = self.load_tokenizer()
        self.pad_id = cast(int, tokenizer.pad_token_id or 0)
        texts, self.notices = self.source.read()
        name = self.tokenizer if isinstance(self.tokenizer, str) else self.lm
        whole, notices = self.encoding.encode(texts, tokenizer, str(self.source), name)
        self.notices += notices
        self.token_counts = Counter(token for text in whole for token in text.ids[1:])
        texts = expand_positions(self.positions, whole, self.seed)
        self.groups = Groups.of_scope(self.scope, texts, self.max_groups)
        # the split depends on the whole texts: different ones may be equal once truncated at a scored position
        content = {text.row: " ".join(map(str, text.ids)) for text in whole}
        contents = [content[text.row] for text in texts]
        indices = self.groups.split(contents)
        self._shortage = self.groups.shortage(indices, contents, str(self.source))
        everything = list(range(len(texts)))
        n_held_out = len(indices["validation"]) + len(indices["test"])
        indices = self.groups.capped(indices, self.max_test)
        if n_left_out := n_held_out - len(indices["validation"]) - len(indices["test"]):
            self.notices.append(
                f"{n_left_out} of {n_held_out} held-out inputs are not used, so that evaluation takes no longer than "
                f"learning: --data.max_test {self.max_test}"
            )
        texts = add_resample_texts(texts, indices["train"] or everything, self.seed)
        indices["selection"] = self.groups.selection(indices, MIN_SELECTION_INPUTS[self.positions])
        indices["all"] = everything
        self.parts = {
            name: SplitDataset([texts[i] for i in chosen], [self.groups.of_text[i] for i in chosen])
            for name, chosen in indices.items()
        }
        self.preview = preview(tokenizer, self.collate([self.parts["all"][0]]))

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the texts: the one given, or that of the model. It is loaded once."""
        return self._loaded_tokenizer

    @cached_property
    def _loaded_tokenizer(self) -> PreTrainedTokenizerBase:
        revision = None if self.tokenizer else self.revision
        flag = "data.tokenizer" if self.tokenizer else "model.lm"
        return load_tokenizer(self.tokenizer or self.lm, revision, self.trust_remote_code, flag)

    @property
    def learned_texts(self) -> list[int]:
        """Hashes of the texts that masks are learned and selected on, ascending."""
        return sorted({h for name in ("train", "validation") for text in self.parts[name].encoded for h in text.hashes})

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.parts["all"].ids))

    def require_context(self, context: int | None) -> None:
        """Refuse texts that are longer than a model's context.

        Args:
            context: Tokens that the model reads at most; None if unknown.

        Raises:
            UserError: If a text is longer; names both lengths.
        """
        if context is not None and self.longest_text > context:
            raise UserError(
                f"data.max_length admits a text of {self.longest_text} tokens, but {self.lm} reads at most {context}. "
                f"Lower it: --data.max_length {context}"
            )

    @property
    def texts_per_group(self) -> int:
        """Texts of each group in a step, at most: `batch_size`, or fewer if no group has as many."""
        return min(self.batch_size, max(map(len, self.train_indices_by_group)))

    @property
    def train_indices_by_group(self) -> list[list[int]]:
        """Indices in the training split of every group's texts."""
        return self.parts["train"].indices_by_group(len(self.groups.names))

    def block_plan(self, groups_per_block: int, steps: int, batch_size: int | None = None) -> BlockPlan:
        """Plan blocks of equal size as far as possible.

        Groups of texts of similar length share a block, to save padding. The longest come first: a block that does not
        fit into memory then fails at once, and the time left is over- rather than underestimated.

        Args:
            groups_per_block: Groups in a block, at most.
            steps: Optimiser steps of every block.
            batch_size: Texts of each group in a step; by default `batch_size` of this module.
        """
        ids = self.parts["train"].ids
        longest = {g: max(len(ids[i]) for i in texts) for g, texts in enumerate(self.train_indices_by_group)}
        order = sorted(longest, key=lambda group: -longest[group])
        n_blocks = -(-len(order) // groups_per_block)
        bounds = [len(order) * i // n_blocks for i in range(n_blocks + 1)]
        return BlockPlan([order[start:end] for start, end in pairwise(bounds)], steps, batch_size or self.batch_size)

    def use_plan(self, plan: BlockPlan | None) -> None:
        """Serve the training texts by a plan, and as many texts at a time as it says; without one, as requested."""
        self.plan, self.batch_size = plan, plan.batch_size if plan else self.hparams["batch_size"]

    def loader(
        self,
        split: SplitName,
        groups: Collection[int] | None = None,
        batch_size: int | None = None,
        max_texts: int | None = None,
        by_length: bool = False,
        shuffled: bool = False,
    ) -> DataLoader[Any]:
        """The texts of a split, in order.

        Args:
            split: The split.
            groups: Only the texts of these groups; by default of all.
            batch_size: Texts in a batch; by default `batch_size` of this module.
            max_texts: Texts of each group, at most; evenly spread over the group, since files are often sorted.
            by_length: Sort the texts by length, shortest first, to save padding.
            shuffled: Shuffle the texts, the same way every time.

        Raises:
            UserError: If the split has no texts.
        """
        texts = self.parts[split]
        if not len(texts):
            raise UserError(f"{self.source} holds too few texts for a {split} split")
        by_group = texts.indices_by_group(len(self.groups.names))
        chosen = by_group if groups is None else [by_group[group] for group in set(groups)]
        indices = sorted(index for of_group in chosen for index in evenly_spaced(of_group, max_texts))
        if by_length:
            lengths = [len(ids) for ids in texts.ids]
            indices.sort(key=lengths.__getitem__)
        order = RandomSampler(indices, generator=torch.Generator().manual_seed(self.seed)) if shuffled else None
        return DataLoader(Subset(texts, indices), batch_size or self.batch_size, sampler=order, collate_fn=self.collate)

    def train_dataloader(self) -> DataLoader[Any]:
        """The texts of every step from the trainer's step on."""
        assert self.trainer is not None
        texts = self.parts["train"]
        plan = self.plan or self.block_plan(len(self.groups.names), self.trainer.max_steps)
        lengths = [len(ids) for ids in texts.ids]
        sampler = StepSampler(self.train_indices_by_group, lengths, plan, self.seed, self.trainer.global_step)
        n_workers = 0 if plan.queue else self.workers  # they read ahead, and would take a block before its time
        return StepLoader(texts, batch_sampler=sampler, collate_fn=self.collate, num_workers=n_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation split."""
        return self.loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test split."""
        return self.loader("test")

    def collate(self, items: list[Item]) -> Batch:
        """Pad some texts to one length, and mark the scored positions."""
        return collate(items, self.positions, self.pad_id)
