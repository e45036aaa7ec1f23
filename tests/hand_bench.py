"""A bench of evidence on given batches, and banks of given masks."""

from collections.abc import Sequence
from typing import Any

import torch
from test_evidence import GRAPH
from torch import Tensor

import masklearn as ml
from masklearn.data import Batch
from masklearn.evidence.bench import Bench
from masklearn.evidence.text_scores import TextScores
from masklearn.mask_file import ModelId
from masklearn.masking import MaskedLM
from masklearn.selection.scorer import MaskScorer


class HandBench(Bench):
    """A bench with given batches as the texts of every split."""

    def __init__(self, *args: Any, batches: Sequence[Batch], **settings: Any) -> None:
        super().__init__(*args, **settings)
        object.__setattr__(self, "batches", batches)
        object.__setattr__(self, "scored", [])

    batches: Sequence[Batch]
    scored: list[int]
    """Subgraphs that were run, in each call."""

    def texts(self, group: int) -> Sequence[Batch]:
        return self.batches

    def selection_texts(self, group: int, n: int) -> Sequence[Batch]:
        return self.batches

    def scorer(self, group: int) -> MaskScorer:
        return MaskScorer(self.masked_lm, self.batches, [0])

    def scores(self, group: int, masks: Sequence[Tensor], phase: str) -> list[TextScores]:
        self.scored.append(sum(map(len, masks)))
        return super().scores(group, masks, phase)


def bank_of(masked_lm: MaskedLM, *masks: Tensor) -> ml.Mask:
    """A bank of some masks of one group, each of a size of its own."""
    sizes = torch.tensor([int(mask.sum()) for mask in masks])
    model, bits = ModelId("model", None, masked_lm.layout.fingerprint), torch.stack(masks)[None]
    return ml.Mask(bits, bits.float(), sizes, masked_lm.graph, model)


def elsewhere(n_of_plant: int) -> Tensor:
    """A mask of as many heads and MLPs as the plant, with some of its nodes."""
    plant, rest = ("a0.h1", "a0.h3", "a2.h2", "m2"), ("a1.h0", "a1.h1", "a1.h2", "m1")
    return torch.tensor([name in (*plant[:n_of_plant], *rest[n_of_plant:]) for name in GRAPH.names])
