"""Batches, and which texts every training step uses: a function of seed and step alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from masklearn import ranks
from masklearn.data.block_plan import BlockPlan
from masklearn.data.encoded import Encoded
from masklearn.data.positions import TRUNCATING, Positions


class Batch(NamedTuple):
    """Some inputs, padded on the right to one length."""

    input_ids: Tensor
    """Token ids, shape (inputs, tokens)."""
    real: Tensor
    """False at padding. Boolean, shape (inputs, tokens)."""
    scored: Tensor
    """Which next-token distributions count. Boolean, shape (inputs, tokens)."""
    text_index: Tensor
    """Index of every input in its split, shape (inputs,)."""
    group: Tensor
    """Index of the group whose masks apply to every input, shape (inputs,)."""
    corrupted: Tensor | None = None
    """Token ids of the texts from which closed nodes are resampled, if there are any. Shape (inputs, tokens)."""
    answers: Tensor | None = None
    """Correct next tokens of every input, filled up with -1. Shape (inputs, answers)."""
    wrong: Tensor | None = None
    """Wrong next tokens of every input, filled up with -1. Shape (inputs, answers)."""
    completion_lengths: Tensor | None = None
    """Tokens of every input's completion, if these are what is scored. Shape (inputs,)."""
    flat_positions: Tensor | None = None
    """See `positions`; found on the CPU, as are the next two, so that no step waits for a GPU. Shape (positions,)."""
    answered: Tensor | None = None
    """Indices of the inputs that have correct answers, shape (answered inputs,)."""
    contrasted: Tensor | None = None
    """Indices of the inputs that have both correct and wrong answers, shape (contrasted inputs,)."""

    @property
    def positions(self) -> Tensor:
        """Indices of the scored positions in the flattened tokens, ascending, shape (positions,)."""
        found = self.flat_positions
        return self.scored.flatten().nonzero()[:, 0] if found is None else found

    @property
    def before_answers(self) -> Tensor:
        """Index among the scored positions of the one that every input's answer follows, shape (inputs,)."""
        last = self.scored.sum(1).cumsum(0) - 1
        return last if self.completion_lengths is None else last + 1 - self.completion_lengths

    @property
    def input_of_positions(self) -> Tensor:
        """Index of the input of every scored position, shape (positions,)."""
        return self.positions // self.input_ids.shape[1]

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; a GPU need not be waited for."""
        on_gpu = device.type == "cuda"
        return self._make(tensor if tensor is None else tensor.to(device, non_blocking=on_gpu) for tensor in self)

    def select(self, kept: Tensor) -> "Batch":
        """The inputs for which a boolean mask of shape (inputs,) is true."""
        whole = self._replace(flat_positions=None, answered=None, contrasted=None)  # they count among other inputs
        return self._make(tensor if tensor is None else tensor[kept] for tensor in whole)

    def own_inputs(self) -> tuple[Tensor, float]:
        """Which inputs this rank runs if all ranks share the batch, and what they count: see `ranks.part`."""
        kept, weight = ranks.part(len(self.input_ids))
        return kept.to(self.input_ids.device), weight


class Item(NamedTuple):
    """One text of a split."""

    text_index: int
    """Index in the split."""
    text: Encoded
    group: int
    """Index of its group."""


def collate(items: Sequence[Item], positions: Positions, pad_id: int) -> Batch:
    """Pad some texts to one length, and mark the positions that are scored."""
    indices, texts, groups = zip(*items, strict=True)
    input_ids = _padded([text.ids for text in texts], pad_id)
    lengths = torch.tensor([len(text.ids) for text in texts])
    prompts = torch.tensor([text.prompt_length for text in texts])
    position = torch.arange(input_ids.shape[1]).expand(len(texts), -1)
    real = position < lengths[:, None]
    last = lengths[:, None] - (2 if positions in TRUNCATING else 1)  # truncated inputs end with the token to predict
    corrupted = [text.corrupted for text in texts]
    answers, wrong = (
        _padded(rows, -1) if any(rows) else None
        for rows in ([text.answers for text in texts], [text.wrong for text in texts])
    )
    if positions == "completion":
        scored = (position >= prompts[:, None] - 1) & (position < lengths[:, None] - 1)
    else:
        scored = real if positions == "all" else position == last
    return Batch(
        input_ids,
        real,
        scored,
        text_index=torch.tensor(indices),
        group=torch.tensor(groups),
        corrupted=None if None in corrupted else _padded(corrupted, pad_id),
        answers=answers,
        wrong=wrong,
        completion_lengths=lengths - prompts if positions == "completion" else None,
        flat_positions=scored.flatten().nonzero()[:, 0],
        answered=_where(bool(text.answers) for text in texts),
        contrasted=_where(bool(text.answers and text.wrong) for text in texts),
    )


def _where(flags: Iterable[bool]) -> Tensor:
    """Indices of the flags that are true."""
    return torch.tensor([index for index, flag in enumerate(flags) if flag], dtype=torch.int64)


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of integers, filled up on the right to the longest: shape (rows, longest)."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=fill)


@dataclass(frozen=True)
class SplitDataset(Dataset[Item]):
    """The tokenised texts of one split, and the group of each."""

    encoded: Sequence[Encoded]
    groups: Sequence[int]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Item:
        return Item(index, self.encoded[index], self.groups[index])

    @property
    def ids(self) -> list[list[int]]:
        """Token ids of every text."""
        return [text.ids for text in self.encoded]

    @property
    def names(self) -> list[str]:
        """Name of every input in its source."""
        return [text.name for text in self.encoded]

    @property
    def text_names(self) -> list[str]:
        """Name of the text of every input; of equal texts that of the first."""
        first: dict[tuple[int, ...], int] = {}
        return [f"{first.setdefault(text.hashes or (text.row,), text.row)}" for text in self.encoded]

    def without(self, hashes: frozenset[int]) -> "SplitDataset":
        """The texts that have none of these hashes."""
        return self._some(i for i, text in enumerate(self.encoded) if hashes.isdisjoint(text.hashes))

    def distinct(self) -> "SplitDataset":
        """The first of equal texts of a group."""
        first: dict[tuple[int, str], int] = {}
        for i, of in enumerate(zip(self.groups, self.text_names, strict=True)):
            first.setdefault(of, i)
        return self._some(first.values())

    def _some(self, indices: Iterable[int]) -> "SplitDataset":
        kept = list(indices)
        return SplitDataset([self.encoded[i] for i in kept], [self.groups[i] for i in kept])

    def of_groups(self, number: Mapping[int, int]) -> "SplitDataset":
        """The texts of some groups, whose new numbers these are by their old ones."""
        kept = [i for i, group in enumerate(self.groups) if group in number]
        return SplitDataset([self.encoded[i] for i in kept], [number[self.groups[i]] for i in kept])

    def indices_by_group(self, n_groups: int) -> list[list[int]]:
        """Indices of the texts of every group."""
        indices: list[list[int]] = [[] for _ in range(n_groups)]
        for index, group in enumerate(self.groups):
            indices[group].append(index)
        return indices


def evenly_spaced(indices: Sequence[int], n: int | None) -> Sequence[int]:
    """At most `n` of the indices, evenly spread over them; all if `n` is None."""
    if n is None or len(indices) <= n:
        return indices
    return [indices[i * len(indices) // n] for i in range(n)]


class StepSampler(Sampler[list[int]]):
    """The texts of every step of this process: up to `plan.batch_size` of each group of the current block.

    A run that resumes at step n gets the texts that it would have got without the interruption. In every epoch of a
    group each of its texts comes once, except those of a last, smaller batch, which is dropped. Texts of similar length
    share a batch, to save padding.

    Args:
        indices_by_group: Indices of every group's texts.
        lengths: Tokens of every text, by index.
        plan: The blocks and their steps.
        seed: Seed of the order of the texts.
        first_step: The step to begin with.
    """

    WINDOW = 8
    """Texts are sorted by length within windows of this many batches."""

    def __init__(
        self,
        indices_by_group: Sequence[Sequence[int]],
        lengths: Sequence[int],
        plan: BlockPlan,
        seed: int,
        first_step: int = 0,
    ) -> None:
        self.indices_by_group, self.lengths, self.plan = indices_by_group, lengths, plan
        self.seed, self.first_step = seed, first_step
        self._epochs: dict[int, tuple[int, list[list[int]]]] = {}
        """The current epoch of every group: its number and its batches."""

    def __len__(self) -> int:
        """All steps, with those before `first_step`: Lightning counts them as done when it resumes."""
        return self.plan.most_steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self.first_step):
            if not self.plan.goes_on(step):
                return
            block, block_step = self.plan.at(step)
            if block_step == 0:
                self._epochs.clear()
            yield [index for group in self.plan.blocks[block] for index in self._batch(group, block_step)]

    def _batch(self, group: int, block_step: int) -> Sequence[int]:
        """Indices of a group's texts in a step of its block."""
        indices, size = self.indices_by_group[group], self.plan.batch_size
        if len(indices) <= size:
            return indices
        epoch, batch = divmod(block_step, len(indices) // size)
        cached_epoch, batches = self._epochs.get(group, (-1, []))
        if cached_epoch != epoch:
            batches = self._epoch_batches(group, epoch)
            self._epochs[group] = epoch, batches
        return batches[batch]

    def _epoch_batches(self, group: int, epoch: int) -> list[list[int]]:
        """The batches of one epoch of a group, in random order."""
        indices, size = self.indices_by_group[group], self.plan.batch_size
        generator = torch.Generator().manual_seed(((self.seed * 1_000_003 + epoch) * 1_000_003 + group) % 2**63)
        order = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
        end, window = len(order) - len(order) % size, self.WINDOW * size
        by_length = [
            index
            for start in range(0, end, window)
            for index in sorted(order[start : min(start + window, end)], key=self.lengths.__getitem__)
        ]
        batches = [by_length[start : start + size] for start in range(0, end, size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


class StepLoader(DataLoader[Any]):
    """A loader that Lightning may resume in the middle: its state is the trainer's step, which Lightning keeps."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: the trainer's step is all the state there is."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load nothing: the sampler already starts at the step at which the run resumes."""
