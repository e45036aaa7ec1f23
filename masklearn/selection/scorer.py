"""Mask scorer: the KL (or another loss) of many candidate masks of every group, each on its own group's texts."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from masklearn import ranks
from masklearn.data import Batch
from masklearn.masking import MaskedLM, scored_together
from masklearn.models import Prefix
from masklearn.objective import ObjectiveName
from masklearn.selection.chunks import ForwardCost, plan_batches, whole_batches
from masklearn.selection.known_scores import KnownScores
from masklearn.selection.losses import losses, losses_per_input

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
    n_tokens: int
    """Tokens of the texts, padding included; those of all ranks if they share the texts. What is run together, and what
    it is charged, depends on this number, so that all ranks do the same."""
    weight: float = 1.0
    """What the texts count in a sum over all ranks."""

    def select(self, kept: Tensor) -> "ScoredBatch":
        """The texts that a boolean tensor of shape (texts,) keeps."""
        positions = kept.repeat_interleave(self.batch.scored.sum(1))
        n_tokens = int(kept.sum()) * self.batch.input_ids.shape[1]
        return ScoredBatch(self.batch.select(kept), self.full[positions], self.group_index[kept], n_tokens)

    def own(self) -> "ScoredBatch":
        """The texts that this rank scores if all ranks share them."""
        kept, weight = self.batch.own_inputs()
        return replace(self.select(kept), n_tokens=self.n_tokens, weight=weight)


class MaskScorer:
    """KL(full || subgraph) in nats, averaged over the scored positions of every group's texts; or a loss of answers.

    Args:
        masked_lm: The model, under the ablation that closed nodes get.
        batches: Texts of these groups only.
        groups: Group ids, in the order of the masks' group dimension.
        objective: What masks are scored by; losses of answers take the place of the KL everywhere.
        shared: Whether every rank scores its share of the texts, which are those of a single group. All must then score
            the same masks at the same time.
        forward: Runs rows that share no prefix, as `MaskedLM.forward` does; that itself by default.

    Raises:
        ValueError: If a group is given twice.
    """

    def __init__(
        self,
        masked_lm: MaskedLM,
        batches: Iterable[Batch],
        groups: Iterable[int] = (0,),
        objective: ObjectiveName = "kl",
        shared: bool = False,
        forward: Callable[..., Tensor] | None = None,
    ) -> None:
        self.masked_lm, self.shared = masked_lm, shared and ranks.count() > 1
        self.forward = forward or masked_lm
        self.objective: ObjectiveName = objective
        groups = list(groups)
        index_of = {group: i for i, group in enumerate(groups)}
        if len(index_of) < len(groups):
            repeated = sorted(group for group, times in Counter(groups).items() if times > 1)
            raise ValueError(f"groups {repeated} are given more than once. Name every group once")
        self.n_groups = len(groups)
        self.tokens = TokenBudget()
        """Shared with the subsample."""
        self.known: KnownScores | None = None
        scored: list[ScoredBatch] = []
        for batch in batches:
            group_index = torch.tensor([index_of[group] for group in batch.group.tolist()], device=masked_lm.device)
            batch = batch.to(masked_lm.device)
            full = masked_lm.full(batch.input_ids, batch.scored)
            scored.append(ScoredBatch(batch, full, group_index, batch.input_ids.numel()))
        self._set_batches(scored)

    def _set_batches(self, batches: Sequence[ScoredBatch]) -> None:
        self.batches = batches
        self.own_batches = [scored.own() for scored in batches] if self.shared else batches
        """The texts that this rank scores."""
        self.n_losses = torch.zeros(self.n_groups, dtype=torch.float32, device=self.device)
        for scored in batches:
            self.n_losses.index_add_(0, scored.group_index, losses_per_input(self.objective, scored.batch).float())
        self.lacks_losses = bool((self.n_losses == 0).any())
        self.n_losses.clamp_(min=1)  # without answers to score by, all masks score 0 and none is better

    @property
    def device(self) -> torch.device:
        """Where masks are scored."""
        return self.masked_lm.device

    @cached_property
    def subsample(self) -> "MaskScorer | None":
        """A scorer of the same groups on every fourth of their texts; None if one has fewer than 64, or no answers."""
        group_index = torch.cat([scored.group_index for scored in self.batches])
        if group_index.bincount(minlength=self.n_groups).min() < SUBSAMPLE_MIN_TEXTS:
            return None
        texts_so_far = one_hot(group_index, self.n_groups).cumsum(0)  # of each group, this one included
        rank_in_group = texts_so_far.gather(1, group_index[:, None])[:, 0] - 1
        kept = (rank_in_group % SUBSAMPLE_STRIDE == 0).split([len(scored.group_index) for scored in self.batches])
        scorer = copy(self)
        scorer._set_batches([scored.select(k) for scored, k in zip(self.batches, kept, strict=True) if k.any()])
        return None if scorer.lacks_losses else scorer

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Score no mask twice while the context is open, if all texts share the masks: searches come back to many."""
        scorers = [scorer for scorer in (self, self.subsample) if scorer] if self.n_groups == 1 else []
        for scorer in scorers:
            scorer.known = KnownScores()
        try:
            yield
        finally:
            for scorer in scorers:
                scorer.known = None

    @torch.no_grad()
    def __call__(self, masks: Tensor, groups: Tensor | None = None) -> Tensor:
        """The KL of masks.

        Args:
            masks: Boolean or float, shape (K, groups, nodes).
            groups: Indices of the groups to score, each once, shape (groups,); all groups by default.

        Returns:
            Nats per scored position, shape (K, groups); infinity where that is not a number.
        """
        if self.known is not None and masks.dtype == torch.bool:
            return self.known.kl(masks, self._mean_kl)
        return self._mean_kl(masks, groups)

    def _mean_kl(self, masks: Tensor, groups: Tensor | None = None) -> Tensor:
        """The KL of masks that are not known yet; see `__call__`."""
        masks, groups = masks.float(), self._all_groups if groups is None else groups
        total = torch.zeros(masks.shape[:-1], dtype=torch.float32, device=masks.device)
        for scored in self._batches_of(groups):
            total += self._kl_of_all(scored, masks)
        return (self.of_all_ranks(total) / self.n_losses[groups]).nan_to_num(torch.inf, torch.inf)

    def gradient(self, masks: Tensor, groups: Tensor | None = None, inverse_temperature: float = 1.0) -> Tensor:
        """The gradient of the KL with respect to every gate.

        Args:
            masks: One mask per group, shape (groups, nodes).
            groups: As in `__call__`.
            inverse_temperature: Power to which the full model's probabilities are raised first.

        Returns:
            Shape (groups, nodes); finite, and 0 where it is not a number.
        """
        if self.known is not None and masks.dtype == torch.bool:
            find = partial(self._mean_gradient, masks, groups, inverse_temperature)
            return self.known.gradient(masks, inverse_temperature, find)
        return self._mean_gradient(masks, groups, inverse_temperature)

    def _mean_gradient(self, masks: Tensor, groups: Tensor | None, inverse_temperature: float) -> Tensor:
        """A gradient that is not known yet; see `gradient`."""
        gates, groups = masks.detach().float().clone().requires_grad_(), self._all_groups if groups is None else groups
        gradient = torch.zeros_like(gates)
        for scored in self._batches_of(groups):
            self.tokens.charge(3 * scored.n_tokens)  # once, even if it takes another try
            gradient += self.masked_lm.row_limit.retry(partial(self._gradient, scored, gates, inverse_temperature))
        return (self.of_all_ranks(gradient) / self.n_losses[groups][:, None]).nan_to_num()

    def of_all_ranks(self, total: Tensor) -> Tensor:
        """A sum over the texts of all ranks, from that over `own_batches`, each times its weight."""
        return ranks.summed(total) if self.shared else total

    def _agreed(self, value: int) -> int:
        """The smallest value of all ranks, if they share the texts: all must then spend the same tokens."""
        return ranks.smallest(value) if self.shared else value

    @torch.enable_grad()
    def _gradient(self, scored: ScoredBatch, gates: Tensor, inverse_temperature: float) -> Tensor:
        """The gradient of the KL, summed over positions, with respect to gates (groups, nodes)."""
        kl = self._kl(scored, self._hidden(scored, gates[None]), len(gates), inverse_temperature)
        is_narrow = self.masked_lm.lm.dtype == torch.float16  # the sum over the positions of a text may overflow
        scale = 2.0 ** scored.batch.scored.shape[1].bit_length() if is_narrow else 1.0
        return torch.autograd.grad(kl.sum() / scale, gates)[0] * scale

    @property
    def _all_groups(self) -> Tensor:
        return torch.arange(self.n_groups, device=self.n_losses.device)

    def _batches_of(self, groups: Tensor) -> Iterator[ScoredBatch]:
        """The texts of some groups; `group_index` counts among these groups."""
        index_among = torch.full((self.n_groups,), -1, device=groups.device)
        index_among[groups] = torch.arange(len(groups), device=groups.device)
        for scored in self.own_batches:
            group_index = index_among[scored.group_index]
            kept = group_index >= 0
            if kept.any():
                reindexed = replace(scored, group_index=group_index)
                yield reindexed if kept.all() else reindexed.select(kept)

    def _kl_of_all(self, scored: ScoredBatch, masks: Tensor) -> Tensor:
        """The KL of masks (K, groups, nodes) summed over the positions of every group, shape (K, groups).

        Candidates of a search differ from one mask in a node or two. This mask, the majority of the candidates, runs
        once, and every candidate starts in a layer in which it still agrees with it, if that takes less time.
        """
        batch, majority, prefix = scored.batch, masks.mean(0).round(), None
        n_tokens, cost = scored.n_tokens, ForwardCost.of(self.masked_lm, scored.n_tokens)
        first_layers, order = self._by_first_layer(masks, majority)
        batch_size = self._agreed(max(1, scored_together(self.masked_lm) // n_tokens))
        batches = plan_batches(first_layers, batch_size, cost)
        if cost.favours_sharing(batches, first_layers):
            self.tokens.charge(n_tokens)
            prefix = self.masked_lm.prefix(batch.input_ids, majority[scored.group_index], batch.corrupted)
            prefix = prefix if self._agreed(prefix is not None) else None
        if prefix is None:
            batches = whole_batches(len(masks), batch_size)
        masks, kl = masks.gather(0, order[..., None].expand_as(masks)), list[Tensor]()
        for chunks in batches:
            firsts = [first_layers[chunk.stop - 1] if prefix else 0 for chunk in chunks]
            forwards = zip(chunks, firsts, strict=True)
            masked = torch.cat([self._hidden(scored, masks[chunk], prefix, first) for chunk, first in forwards])
            kl.append(self._kl(scored, masked, masks.shape[1]))
        return torch.empty_like(masks[..., 0]).scatter_(0, order, torch.cat(kl))

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

    def _hidden(self, scored: ScoredBatch, gates: Tensor, prefix: Prefix | None = None, first_layer: int = 0) -> Tensor:
        """Last hidden states (K, positions, width) under gates (K, groups, nodes).

        Layers before `first_layer` are free, whichever streams the prefix keeps: ranks that share texts spend the same.
        """
        batch = scored.batch
        if not gates.requires_grad:  # a gradient has been charged already
            share = 1 - first_layer / self.masked_lm.graph.n_layers
            self.tokens.charge(share * len(gates) * scored.n_tokens)
        gates = gates[:, scored.group_index]
        rows = batch.input_ids, batch.scored, gates, batch.corrupted
        return self.masked_lm(*rows, prefix, prefix.nearest_start(first_layer)) if prefix else self.forward(*rows)

    def _kl(self, scored: ScoredBatch, masked: Tensor, n_groups: int, inverse_temperature: float = 1.0) -> Tensor:
        """KL of last hidden states (K, positions, width), summed over the positions of every group: (K, groups)."""
        values, inputs = losses(self.objective, self.masked_lm, scored.batch, scored.full, masked, inverse_temperature)
        values, total = scored.weight * values, values.new_zeros(len(values), n_groups)
        return total.index_add(1, scored.group_index[inputs], values)
