"""Mask scorer: the KL of many candidate masks of every group, each on its own group's texts."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from masklearn.data import Batch
from masklearn.masking import MaskedLM
from masklearn.models import Prefix
from masklearn.objective import chunked_kl

MIN_FORWARD_TOKENS, MAX_FORWARD_TOKENS = 2**7, 2**15
"""Tokens in one forward, over all of its rows. Masks with different first layers are put together up to the first."""
SUBSAMPLE_STRIDE = 4
"""The subsample keeps every fourth text of a group."""
SUBSAMPLE_MIN_TEXTS = 64
"""Texts that every group needs before a subsample is taken."""


class BudgetSpent(Exception):
    """The tokens that a search may score are used up; masks found so far are valid."""


@dataclass
class TokenBudget:
    """Counts the tokens that are scored: a forward counts one a token, a gradient three, a skipped layer nothing."""

    spent: float = 0.0
    limit: float = math.inf
    untried_steps: int = 0
    """Steps of the last polish that the limit did not leave time for."""

    def charge(self, tokens: float) -> None:
        """Count tokens that are about to be scored.

        Raises:
            BudgetSpent: If the limit is reached already.
        """
        if self.spent >= self.limit:
            raise BudgetSpent
        self.spent += tokens


@dataclass(frozen=True)
class ScoredBatch:
    """Some texts and the full model's output on them."""

    batch: Batch
    full: Tensor
    """The full model's last hidden states at the scored positions, shape (positions, width)."""
    group_index: Tensor
    """Index of every text's group among the masks to score, shape (texts,)."""

    @property
    def group_index_of_positions(self) -> Tensor:
        """Index of the group of every scored position, shape (positions,)."""
        return self.group_index.repeat_interleave(self.batch.scored.sum(1))

    def select(self, kept: Tensor) -> "ScoredBatch":
        """The texts that a boolean tensor of shape (texts,) keeps."""
        positions = kept.repeat_interleave(self.batch.scored.sum(1))
        return ScoredBatch(self.batch.select(kept), self.full[positions], self.group_index[kept])


class MaskScorer:
    """KL(full || subgraph) in nats, averaged over the scored positions of every group's texts.

    Args:
        masked_lm: The model, under the ablation that closed nodes get.
        batches: Texts of these groups only.
        groups: Group ids, in the order of the masks' group dimension.

    Raises:
        ValueError: If a group is given twice.
    """

    def __init__(self, masked_lm: MaskedLM, batches: Iterable[Batch], groups: Iterable[int] = (0,)) -> None:
        self.masked_lm = masked_lm
        groups = list(groups)
        index_of = {group: i for i, group in enumerate(groups)}
        if len(index_of) < len(groups):
            repeated = sorted(group for group, times in Counter(groups).items() if times > 1)
            raise ValueError(f"groups {repeated} are given more than once. Name every group once")
        self.n_groups = len(groups)
        self.tokens = TokenBudget()
        """Shared with the subsample."""
        scored: list[ScoredBatch] = []
        for batch in batches:
            group_index = torch.tensor([index_of[group] for group in batch.group.tolist()], device=masked_lm.device)
            batch = batch.to(masked_lm.device)
            scored.append(ScoredBatch(batch, masked_lm.full(batch.input_ids, batch.scored), group_index))
        self._set_batches(scored)

    def _set_batches(self, batches: Sequence[ScoredBatch]) -> None:
        self.batches = batches
        self.n_positions = torch.zeros(self.n_groups, device=self.device)
        for scored in batches:
            self.n_positions.index_add_(0, scored.group_index, scored.batch.scored.sum(1).float())

    @property
    def device(self) -> torch.device:
        """Where masks are scored."""
        return self.masked_lm.device

    @cached_property
    def subsample(self) -> "MaskScorer | None":
        """A scorer of the same groups on every fourth of their texts; None if a group has fewer than 64."""
        group_index = torch.cat([scored.group_index for scored in self.batches])
        if group_index.bincount(minlength=self.n_groups).min() < SUBSAMPLE_MIN_TEXTS:
            return None
        texts_so_far = one_hot(group_index, self.n_groups).cumsum(0)  # of each group, this one included
        rank_in_group = texts_so_far.gather(1, group_index[:, None])[:, 0] - 1
        kept = (rank_in_group % SUBSAMPLE_STRIDE == 0).split([len(scored.group_index) for scored in self.batches])
        scorer = copy(self)
        scorer._set_batches([scored.select(k) for scored, k in zip(self.batches, kept, strict=True) if k.any()])
        return scorer

    @torch.no_grad()
    def __call__(self, masks: Tensor, groups: Tensor | None = None) -> Tensor:
        """The KL of masks.

        Args:
            masks: Boolean or float, shape (K, groups, nodes).
            groups: Indices of the groups to score, each once, shape (groups,); all groups by default.

        Returns:
            Nats per scored position, shape (K, groups).
        """
        masks, groups = masks.float(), self._all_groups if groups is None else groups
        total = torch.zeros(masks.shape[:-1], device=masks.device)
        for scored in self._batches_of(groups):
            total += self._kl_of_all(scored, masks)
        return total / self.n_positions[groups]

    def gradient(self, masks: Tensor, groups: Tensor | None = None, inverse_temperature: float = 1.0) -> Tensor:
        """The gradient of the KL with respect to every gate.

        Args:
            masks: One mask per group, shape (groups, nodes).
            groups: As in `__call__`.
            inverse_temperature: Power to which the full model's probabilities are raised first.

        Returns:
            Shape (groups, nodes).
        """
        gates, groups = masks.float().requires_grad_(), self._all_groups if groups is None else groups
        gradient = torch.zeros_like(gates)
        for scored in self._batches_of(groups):
            kl = self._kl(scored, gates[None], inverse_temperature)[0]
            gradient += torch.autograd.grad(kl.sum(), gates)[0]
        return gradient / self.n_positions[groups][:, None]

    @property
    def _all_groups(self) -> Tensor:
        return torch.arange(self.n_groups, device=self.n_positions.device)

    def _batches_of(self, groups: Tensor) -> Iterator[ScoredBatch]:
        """The texts of some groups; `group_index` counts among these groups."""
        index_among = torch.full((self.n_groups,), -1, device=groups.device)
        index_among[groups] = torch.arange(len(groups), device=groups.device)
        for scored in self.batches:
            group_index = index_among[scored.group_index]
            kept = group_index >= 0
            if kept.any():
                reindexed = ScoredBatch(scored.batch, scored.full, group_index)
                yield reindexed if kept.all() else reindexed.select(kept)

    def _kl_of_all(self, scored: ScoredBatch, masks: Tensor) -> Tensor:
        """As `_kl`, in chunks of masks; masks that agree in their first layers share these.

        Candidates of a search differ from one mask in a node or two. This mask, the majority of the candidates, runs
        once, and every candidate starts in the first layer in which it differs from it.
        """
        n_tokens = scored.batch.input_ids.numel()
        masks_per_forward = max(1, MAX_FORWARD_TOKENS // n_tokens)
        batch, majority, prefix = scored.batch, masks.mean(0).round(), None
        first_layers, order = self._by_first_layer(masks, majority)
        if sum(first_layers) > self.masked_lm.graph.n_layers:  # it saves more than the majority's forward costs
            self.tokens.charge(n_tokens)
            prefix = self.masked_lm.prefix(batch.input_ids, majority[scored.group_index], batch.corrupted)
        if prefix is None:
            return torch.cat([self._kl(scored, chunk) for chunk in masks.split(masks_per_forward)])
        masks = masks.gather(0, order[..., None].expand_as(masks))
        kl = torch.empty_like(masks[..., 0])
        for chunk in _chunks(first_layers, max(1, MIN_FORWARD_TOKENS // n_tokens), masks_per_forward):
            start = prefix.nearest_start(first_layers[chunk.stop - 1])
            kl[chunk] = self._kl(scored, masks[chunk], prefix=prefix, first_layer=start)
        return torch.empty_like(kl).scatter_(0, order, kl)

    def _by_first_layer(self, masks: Tensor, majority: Tensor) -> tuple[list[int], Tensor]:
        """The order of every group's masks in which the first layers that differ from the majority descend.

        Returns:
            For every place in this order, the first layer in which any group's mask differs; and the order, shape
            (K, groups).
        """
        graph = self.masked_lm.graph
        differs = graph.by_layer(masks != majority).any(-1)  # (K, groups, layers)
        first = torch.where(differs.any(-1), differs.int().argmax(-1), graph.n_layers - 1)
        order = first.argsort(dim=0, descending=True, stable=True)
        return first.gather(0, order).amin(1).tolist(), order

    def _kl(
        self,
        scored: ScoredBatch,
        gates: Tensor,
        inverse_temperature: float = 1.0,
        prefix: Prefix | None = None,
        first_layer: int = 0,
    ) -> Tensor:
        """KL summed over the positions of every group, shape (K, groups), under gates (K, groups, nodes)."""
        batch, gates_of_texts = scored.batch, gates[:, scored.group_index]
        share = 3 if gates.requires_grad else 1 - first_layer / self.masked_lm.graph.n_layers
        self.tokens.charge(share * len(gates) * batch.input_ids.numel())
        masked = self.masked_lm(batch.input_ids, batch.scored, gates_of_texts, batch.corrupted, prefix, first_layer)
        kl = chunked_kl(scored.full, masked, self.masked_lm.unembed, inverse_temperature)
        total = torch.zeros(gates.shape[:-1], device=gates.device)
        return total.index_add(1, scored.group_index_of_positions, kl)


def _chunks(first_layers: Sequence[int], least: int, most: int) -> Iterator[slice]:
    """Cut masks in descending order of their first layers into chunks to run together.

    A chunk starts in the first layer of its last mask. So beyond `least` masks it takes only masks of that layer.
    """
    begin = 0
    while begin < len(first_layers):
        end = min(begin + least, begin + most, len(first_layers))
        while end < min(begin + most, len(first_layers)) and first_layers[end] == first_layers[end - 1]:
            end += 1
        yield slice(begin, end)
        begin = end
