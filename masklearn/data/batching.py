"""Which texts every training step sees, as a function of seed and step alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from masklearn.data.tokenization import Encoded


class Batch(NamedTuple):
    """Some inputs, padded on the right to one length."""

    input_ids: Tensor
    """Shape (inputs, tokens)."""
    real: Tensor
    """False at padding. Boolean, shape (inputs, tokens)."""
    scored: Tensor
    """Which next-token distributions count. Boolean, shape (inputs, tokens)."""
    text_index: Tensor
    """Place of every input in its split. Shape (inputs)."""
    group: Tensor
    """Place of the group whose masks every input is run under. Shape (inputs)."""
    corrupted: Tensor | None = None
    """What closed nodes are resampled from, if there is anything. Shape (inputs, tokens)."""
    answers: Tensor | None = None
    """Tokens that are right after every input, and -1 where there are no more. Shape (inputs, answers)."""
    wrong: Tensor | None = None
    """Tokens that are wrong there. Shape (inputs, answers)."""

    def to(self, device: torch.device) -> "Batch":
        return self._make(tensor if tensor is None else tensor.to(device) for tensor in self)

    def select(self, kept: Tensor) -> "Batch":
        """Some of the inputs, by a boolean mask of shape (inputs)."""
        return self._make(tensor if tensor is None else tensor[kept] for tensor in self)


class Item(NamedTuple):
    """One text of a split."""

    place: int
    text: Encoded
    group: int


@dataclass(frozen=True)
class SplitDataset(Dataset[Item]):
    """Every text of one split in tokens, and its group."""

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
        """What every input is called in its source."""
        return [text.name for text in self.encoded]

    def members(self, n_groups: int) -> list[list[int]]:
        """Places of the texts of every group."""
        members: list[list[int]] = [[] for _ in range(n_groups)]
        for place, group in enumerate(self.groups):
            members[group].append(place)
        return members


@dataclass(frozen=True)
class Plan:
    """Which groups are learned together: block after block, each for so many steps."""

    blocks: Sequence[Sequence[int]]
    steps: int
    """Optimiser steps of every block."""

    @property
    def total(self) -> int:
        return len(self.blocks) * self.steps

    def at(self, step: int) -> tuple[int, int]:
        """The block that a step of the run falls into, and which of its own steps it is; past the end, the last."""
        return divmod(min(step, self.total - 1), self.steps)


class StepSampler(Sampler[list[int]]):
    """The texts of every training step: of each group of the block at hand, up to `batch_size`.

    So a run that goes on at step n sees what it would have seen. Epoch after epoch each text of a group comes once (but
    for a last, smaller batch, which is dropped), and texts of like length share a batch, so that little is padding.
    """

    WINDOW = 8
    """Batches among which texts are sorted by length."""

    def __init__(
        self,
        members: Sequence[Sequence[int]],
        lengths: Sequence[int],
        plan: Plan,
        batch_size: int,
        seed: int,
        first_step: int = 0,
    ) -> None:
        self.members, self.lengths, self.plan = members, lengths, plan
        self.batch_size, self.seed, self.first_step = batch_size, seed, first_step
        self._epochs: dict[int, tuple[int, list[list[int]]]] = {}

    def __len__(self) -> int:
        """All steps of the run, those before the first included: Lightning counts them as done when it resumes."""
        return self.plan.total

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.plan.total):
            block, inner = self.plan.at(step)
            if not inner:
                self._epochs.clear()
            yield [place for group in self.plan.blocks[block] for place in self._batch(group, inner)]

    def _batch(self, group: int, step: int) -> Sequence[int]:
        places = self.members[group]
        if len(places) <= self.batch_size:
            return places
        epoch, index = divmod(step, len(places) // self.batch_size)
        known, batches = self._epochs.get(group, (-1, []))
        if known != epoch:
            batches = self._epoch(group, epoch)
            self._epochs[group] = epoch, batches
        return batches[index]

    def _epoch(self, group: int, epoch: int) -> list[list[int]]:
        places = self.members[group]
        generator = torch.Generator().manual_seed(((self.seed * 1_000_003 + epoch) * 1_000_003 + group) % 2**63)
        order = [places[i] for i in torch.randperm(len(places), generator=generator).tolist()]
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
