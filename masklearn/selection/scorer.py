"""The judge of discrete subgraphs: many candidates of every group at once, each on its own group's texts."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from masklearn.data import Batch
from masklearn.masking import MaskedLM
from masklearn.objective import chunked_kl

TOKENS_AT_ONCE = 2**15
"""Tokens, over all rows, that share a forward."""
GLIMPSE, ENOUGH_TEXTS = 4, 64
"""A glimpse takes one text of so many; there is none of a group with fewer than so many texts."""


@dataclass(frozen=True)
class ScoredBatch:
    """Some texts, what the full model says about them, and the place of every text's group."""

    batch: Batch
    full: Tensor
    slot: Tensor

    def select(self, kept: Tensor) -> "ScoredBatch":
        """Some of the texts, by a boolean of shape (texts,)."""
        positions = kept.repeat_interleave(self.batch.scored.sum(1))
        return ScoredBatch(self.batch.select(kept), self.full[positions], self.slot[kept])


class MaskScorer:
    """KL(full || subgraph) in nats, averaged over the scored positions of every group's texts.

    Args:
        masked_lm: The model, with the ablation to judge under.
        batches: Texts of the groups, and of no others.
        groups: The groups, in the order in which masks are given.
    """

    def __init__(self, masked_lm: MaskedLM, batches: Iterable[Batch], groups: Iterable[int] = (0,)) -> None:
        self.masked_lm = masked_lm
        place = {group: i for i, group in enumerate(groups)}
        self.n_groups = len(place)
        pieces: list[ScoredBatch] = []
        for batch in batches:
            slot = torch.tensor([place[group] for group in batch.group.tolist()], device=masked_lm.device)
            batch = batch.to(masked_lm.device)
            pieces.append(ScoredBatch(batch, masked_lm.full(batch.input_ids, batch.scored), slot))
        self._hold(pieces)

    def _hold(self, pieces: Sequence[ScoredBatch]) -> None:
        self.pieces = pieces
        self.positions = torch.zeros(self.n_groups, device=self.device)
        for piece in pieces:
            self.positions.index_add_(0, piece.slot, piece.batch.scored.sum(1).float())

    @property
    def device(self) -> torch.device:
        return self.masked_lm.device

    @cached_property
    def subsample(self) -> "MaskScorer | None":
        """A judge of the same groups by some of their texts, evenly spread; none where a group has few."""
        slots = torch.cat([piece.slot for piece in self.pieces])
        if slots.bincount(minlength=self.n_groups).min() < ENOUGH_TEXTS:
            return None
        rank = one_hot(slots, self.n_groups).cumsum(0).gather(1, slots[:, None])[:, 0] - 1  # of a text, in its group
        kept = (rank % GLIMPSE == 0).split([len(piece.slot) for piece in self.pieces])
        scorer = copy(self)
        scorer._hold([piece.select(some) for piece, some in zip(self.pieces, kept, strict=True) if some.any()])
        return scorer

    @torch.no_grad()
    def __call__(self, masks: Tensor, groups: Tensor | None = None) -> Tensor:
        """The KL of masks.

        Args:
            masks: Boolean or float, shape (K, groups, nodes).
            groups: Places of the groups that are meant, each once, shape (groups); all of them by default.

        Returns:
            Shape (K, groups).
        """
        masks, groups = masks.float(), self._all if groups is None else groups
        total = torch.zeros(masks.shape[:-1], device=masks.device)
        for piece in self._pieces(groups):
            at_once = max(1, TOKENS_AT_ONCE // piece.batch.input_ids.numel())
            total += torch.cat([self._kl(piece, some) for some in masks.split(at_once)])
        return total / self.positions[groups]

    def gradient(self, masks: Tensor, groups: Tensor | None = None, inverse_temperature: float = 1.0) -> Tensor:
        """The gradient in every gate of the KL of one mask per group, shape (groups, nodes).

        With a `sharpness` above 1, the KL from the full model's distribution to that power.
        """
        gates, groups = masks.float().requires_grad_(), self._all if groups is None else groups
        gradient = torch.zeros_like(gates)
        for piece in self._pieces(groups):
            kl = self._kl(piece, gates[None], inverse_temperature)[0]
            gradient += torch.autograd.grad(kl.sum(), gates)[0]
        return gradient / self.positions[groups][:, None]

    @property
    def _all(self) -> Tensor:
        return torch.arange(self.n_groups, device=self.positions.device)

    def _pieces(self, groups: Tensor) -> Iterator[ScoredBatch]:
        """The texts of some groups, each with its group's place among them."""
        place = torch.full((self.n_groups,), -1, device=groups.device)
        place[groups] = torch.arange(len(groups), device=groups.device)
        for piece in self.pieces:
            slot = place[piece.slot]
            kept = slot >= 0
            if kept.any():
                moved = ScoredBatch(piece.batch, piece.full, slot)
                yield moved if kept.all() else moved.select(kept)

    def _kl(self, piece: ScoredBatch, gates: Tensor, inverse_temperature: float = 1.0) -> Tensor:
        """KL summed over the positions of every group, shape (K, groups), of gates (K, groups, nodes)."""
        input_ids, scored, corrupted = piece.batch.input_ids, piece.batch.scored, piece.batch.corrupted
        masked = self.masked_lm(input_ids, scored, gates[:, piece.slot], corrupted)
        kl = chunked_kl(piece.full, masked, self.masked_lm.unembed, inverse_temperature)
        whose = piece.slot.repeat_interleave(scored.sum(1))
        return torch.zeros(gates.shape[:-1], device=gates.device).index_add(1, whose, kl)
