"""Full targets: the full model's hidden states at the scored positions, computed once for a block of groups."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masklearn.data import Batch, MaskData
from masklearn.masking import MaskedLM
from masklearn.progress import ProgressBar

MAX_TARGET_BYTES = 2**30
"""The full targets of a block are kept if they take no more memory than this."""


@dataclass(frozen=True)
class FullTargets:
    """The full model's hidden states of some texts, on the device."""

    hidden: Tensor
    """At all scored positions of all texts, text after text, shape (positions, width)."""
    first: Tensor
    """Where in `hidden` the positions of a text begin, by its index in the split; shape (texts,)."""

    @classmethod
    def of_block(
        cls, masked_lm: MaskedLM, data: MaskData, groups: Sequence[int], n_steps: int, bar: ProgressBar
    ) -> "FullTargets | None":
        """Run the full model on the training texts of some groups; None if steps are too few to serve them all."""
        most = max(len(data.train_indices_by_group[group]) for group in groups)
        if most > n_steps * data.batch_size:
            return None
        return cls.of_texts(masked_lm, bar(data.loader("train", groups), "Full targets", brief=True))

    @classmethod
    def of_texts(cls, masked_lm: MaskedLM, batches: Iterable[Batch]) -> "FullTargets | None":
        """Run the full model on some texts of a split; None if the targets would exceed `MAX_TARGET_BYTES`."""
        found, n_bytes, n_positions = list[Tensor](), 0, dict[int, int]()
        for batch in batches:
            n_positions |= dict(zip(batch.text_index.tolist(), batch.scored.sum(1).tolist(), strict=True))
            batch = batch.to(masked_lm.device)
            found.append(masked_lm.full(batch.input_ids, batch.positions))
            n_bytes += found[-1].nbytes
            if n_bytes > MAX_TARGET_BYTES:
                return None
        first, total = torch.zeros(max(n_positions) + 1, dtype=torch.long), 0
        for text, n in n_positions.items():
            first[text], total = total, total + n
        return cls(torch.cat(found), first.to(masked_lm.device))

    def of(self, batch: Batch) -> Tensor:
        """The targets of a batch, shape (positions, width)."""
        n_positions = batch.scored.sum(1)
        first_in_batch = n_positions.cumsum(0) - n_positions
        shift = (self.first[batch.text_index] - first_in_batch).index_select(0, batch.input_of_positions)
        return self.hidden.index_select(0, shift + torch.arange(len(shift), device=shift.device))


def index_in_block(groups: Sequence[int], n_groups: int) -> Tensor:
    """Index in a block of every group of the run, -1 for groups of other blocks. Shape (n_groups,)."""
    index = torch.full((n_groups,), -1)
    index[list(groups)] = torch.arange(len(groups))
    return index
