"""What all evidence on a bank is measured with: its model, its masks, and its held-out texts by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from masklearn.data import Batch, MaskData, SplitName
from masklearn.evidence.kept_parts import KeptParts
from masklearn.evidence.plan import EvidencePlan
from masklearn.evidence.text_scores import TextScores, score_texts
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM
from masklearn.progress import ProgressBar, no_bar
from masklearn.selection.scorer import MaskScorer

MAX_SELECTION_TEXTS = 128
"""Most texts of a group on which controls are searched."""
TEXTS_PER_BATCH = 4
"""Texts that are padded to one length: few, as many subgraphs make up for it."""


@dataclass(frozen=True)
class Bench:
    """A bank of shared masks and what is needed to measure it.

    Args:
        masked_lm: The model, under the ablation of the bank.
        mask: The bank; its groups are those of the data, in the same order.
        data: The texts of its run.
        plan: How much evidence is gathered.
        bar: Shows the progress.
        kept: The parts of the evidence that are finished.
    """

    masked_lm: MaskedLM
    mask: Mask
    data: MaskData
    plan: EvidencePlan
    bar: ProgressBar = no_bar
    kept: KeptParts = KeptParts()

    def texts(self, group: int) -> Sequence[Batch]:
        """Held-out texts of a group, shortest first."""
        return self._batches("test", group, self.plan.texts)

    def scores(self, group: int, masks: Sequence[Tensor], phase: str) -> list[TextScores]:
        """Run subgraphs on the held-out texts of a group.

        Args:
            group: Index of the group.
            masks: Blocks of subgraphs, boolean of shape (K, nodes) each.
            phase: What the progress is called.

        Returns:
            The results of each block.
        """
        found = score_texts(self.masked_lm, torch.cat(list(masks)), self.texts(group), self.bar, phase)
        ends = torch.tensor([0, *map(len, masks)]).cumsum(0).tolist()
        return [found.select(slice(begin, end)) for begin, end in pairwise(ends)]

    def scorer(self, group: int) -> MaskScorer:
        """Scores masks of a group on texts that no result is reported on."""
        index = self.data.groups.names.index(self.mask.groups[group])
        return MaskScorer(
            self.masked_lm, self.data.loader("selection", [index], max_texts=MAX_SELECTION_TEXTS), [index]
        )

    def selection_texts(self, group: int, n: int) -> Sequence[Batch]:
        """Some of the texts of a group that masks are selected on."""
        return self._batches("selection", group, n)

    def _batches(self, split: SplitName, group: int, n: int) -> list[Batch]:
        """Some of the texts of a group, shortest first."""
        index = self.data.groups.names.index(self.mask.groups[group])
        return list(self.data.loader(split, [index], TEXTS_PER_BATCH, n, by_length=True))

    def held_out_tokens(self, group: int) -> int:
        """Tokens of the held-out texts of a group that are used, padding included."""
        return sum(batch.input_ids.numel() for batch in self.texts(group))

    def selection_tokens(self, group: int, n: int) -> int:
        """Tokens of some of the texts of a group that masks are selected on, padding included."""
        return sum(batch.input_ids.numel() for batch in self.selection_texts(group, n))

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Every group, by index, with every size."""
        return [(group, s) for group in range(len(self.mask.groups)) for s in self.mask.sizes.tolist()]

    def mask_of(self, group: int, s: int) -> Tensor:
        """The mask of a cell, shape (nodes,)."""
        return self.mask.mask[group, self.mask.sizes.tolist().index(s)]
