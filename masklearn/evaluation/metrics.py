"""Distances between the next-token distributions of subgraphs and of the full model, as torchmetrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from masklearn.objective import kl_divergence

NUCLEI = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
"""Nucleus sizes, in percent of the probability, as in Kervadec et al. 2026 (arXiv 2605.27033)."""

BY_SUBGRAPH = ("kl", "tv", "unigram_kl", "unigram_tv", "top_rarity")
"""Numbers of `TextMetrics` for each subgraph and text."""
LEADING_RANKS = 128
"""Tokens that are sorted to find recovered nuclei; the whole vocabulary only where all of these agree."""


def tv_distance(full: Tensor, masked: Tensor) -> Tensor:
    """Total variation of log-probabilities (..., vocabulary), in [0, 1], of shape (...)."""
    return (full.exp() - masked.exp()).abs().sum(-1) / 2


def js_divergence(full: Tensor, masked: Tensor) -> Tensor:
    """Jensen-Shannon divergence of log-probabilities (..., vocabulary), in nats, of shape (...); at most log 2."""
    full, masked = torch.broadcast_tensors(full, masked)
    middle = torch.logaddexp(full, masked) - torch.tensor(2.0).log()
    return (kl_divergence(full, middle) + kl_divergence(masked, middle)) / 2


def recovered_nucleus(full: Tensor, masked: Tensor) -> Tensor:
    """The largest percentage up to which every nucleus of the distribution is recovered.

    A nucleus is the smallest set of top tokens that holds a percentage of the probability. It is recovered if both
    models' nuclei are equal, order included. Source: Kervadec et al. 2026 (arXiv 2605.27033).

    Args:
        full: The full model's log-probabilities, shape (positions, vocabulary).
        masked: The subgraphs', shape (K, positions, vocabulary).

    Returns:
        One of `NUCLEI`, or 0 if no nucleus is recovered. Shape (K, positions).
    """
    recovered = torch.zeros(masked.shape[:-1], device=masked.device)
    undecided = full.argmax(-1) == masked.argmax(-1)  # elsewhere no nucleus is recovered, and nothing need be sorted
    n_ranks, vocabulary = min(LEADING_RANKS, full.shape[-1]), full.shape[-1]
    while undecided.any():
        orders = [_leading(logp, n_ranks) for logp in (full.expand_as(masked)[undecided], masked[undecided])]
        percentage, n_equal = _recovered_among(*orders)
        recovered[undecided] = percentage
        # A tie with a token beyond the leading ones makes the last ranks uncertain
        certain = torch.stack([(logp > logp[:, -1:]).sum(-1) for _, logp in orders]).amin(0)
        undecided = undecided.masked_scatter(undecided, (n_equal >= certain) & (n_ranks < vocabulary))
        n_ranks = vocabulary
    return recovered


def _leading(logp: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The `n` most probable tokens, the first of equal ones first, and their log-probabilities; both (positions, n)."""
    tokens = logp.topk(n).indices.sort(-1).values if n < logp.shape[-1] else None
    logp = logp if tokens is None else logp.gather(-1, tokens)
    values, order = logp.sort(dim=-1, descending=True, stable=True)
    return order if tokens is None else tokens.gather(-1, order), values


def _recovered_among(full: tuple[Tensor, Tensor], masked: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """See `recovered_nucleus`, from the leading tokens of both; and the leading ranks at which the tokens agree."""
    n_equal = (full[0] == masked[0]).long().cumprod(-1).sum(-1)
    percentage = torch.zeros(len(n_equal), device=n_equal.device)
    all_recovered = torch.ones_like(n_equal, dtype=torch.bool)
    cumulative = [logp.exp().cumsum(-1) for _, logp in (full, masked)]
    for percent in NUCLEI:
        full_size, masked_size = ((values < percent / 100 - 1e-6).sum(-1) + 1 for values in cumulative)
        all_recovered &= (full_size == masked_size) & (full_size <= n_equal)
        percentage[all_recovered] = percent
    return percentage, n_equal


@dataclass(frozen=True)
class DistributionPair:
    """Next-token distributions of the full model and of subgraphs; distances are computed once, when first needed."""

    full: Tensor
    """Log-probabilities, shape (positions, vocabulary)."""
    masked: Tensor
    """Log-probabilities of K subgraphs, shape (K, positions, vocabulary)."""

    @cached_property
    def kl(self) -> Tensor:
        """KL(full || subgraph) in nats, float64, shape (K, positions)."""
        return kl_divergence(self.full, self.masked).double()

    @cached_property
    def tv(self) -> Tensor:
        """Total variation distance, float64, shape (K, positions)."""
        return tv_distance(self.full, self.masked).double()

    @cached_property
    def nucleus(self) -> Tensor:
        """See `recovered_nucleus`."""
        return recovered_nucleus(self.full, self.masked)


class SubgraphMetrics(Metric):
    """Means over scored positions, for K subgraphs side by side. All divergences in nats.

    `compute` returns tensors of shape (K,): `kl`, `tv`, `js`, `top1` (fraction of positions with the same most probable
    token), `nucleus_median` (percent, see `recovered_nucleus`), `cross_entropy` of the subgraphs, and the full model's
    `full_cross_entropy`, repeated K times. Cross-entropies are means over the positions that a token follows. And of
    shape (K, groups): `kl_by_group` and `tv_by_group`.
    """

    full_state_update = False
    kl: Tensor
    tv: Tensor
    js: Tensor
    top1: Tensor
    cross_entropy: Tensor
    nuclei: Tensor
    positions: Tensor

    def __init__(self, n_masks: int, n_groups: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("js", "top1", "cross_entropy", "full_cross_entropy"):
            self.add_state(name, torch.zeros(n_masks, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("kl", "tv"):
            self.add_state(name, torch.zeros(n_masks, n_groups, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("nuclei", torch.zeros(n_masks, len(NUCLEI) + 1, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("positions", torch.zeros(n_groups, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("labelled", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self, pair: DistributionPair, labels: Tensor, group: Tensor | None = None, masks: slice = slice(None)
    ) -> None:
        """Add a batch of positions.

        Args:
            pair: The distributions of the full model, and of the subgraphs in `masks`.
            labels: The token that follows, or -1 where the text ends. Shape (positions,).
            group: Index of every position's group, shape (positions,); 0 by default.
            masks: Which of the K subgraphs these are. The full model is evaluated along with the first of them.
        """
        group, full, masked = torch.zeros_like(labels) if group is None else group, pair.full, pair.masked
        self.kl[masks].index_add_(1, group, pair.kl)
        self.tv[masks].index_add_(1, group, pair.tv)
        self.js[masks] += js_divergence(full, masked).double().sum(-1)
        self.top1[masks] += (full.argmax(-1) == masked.argmax(-1)).double().sum(-1)
        levels = torch.tensor((0, *NUCLEI), device=masked.device)
        self.nuclei[masks] += (pair.nucleus[..., None] == levels).sum(1)
        labelled = labels >= 0
        token = labels[labelled, None]
        entropy = -masked[:, labelled].gather(-1, token.expand(len(masked), -1, -1)).double().sum((-2, -1))
        self.cross_entropy[masks] += entropy
        if not masks.start:
            self.positions += torch.bincount(group, minlength=len(self.positions))
            self.labelled += labelled.sum()
            self.full_cross_entropy -= full[labelled].gather(-1, token).double().sum()

    def compute(self) -> dict[str, Tensor]:
        """The means by name, see the class."""
        positions = self.positions.sum()
        means = {name: getattr(self, name).sum(-1) / positions for name in ("kl", "tv")}
        means |= {name: getattr(self, name) / positions for name in ("js", "top1")}
        for name in ("cross_entropy", "full_cross_entropy"):
            means[name] = getattr(self, name) / self.labelled  # NaN if no token follows any position
        median = (self.nuclei.cumsum(-1) * 2 >= positions).long().argmax(-1)
        means["nucleus_median"] = torch.tensor((0, *NUCLEI), device=median.device)[median]
        return means | {f"{name}_by_group": getattr(self, name) / self.positions for name in ("kl", "tv")}


def unigram(counts: Mapping[int, int], vocabulary: int) -> Tensor:
    """Log-probabilities of the unigram distribution, smoothed, float32, shape (vocabulary,).

    A token of N in the corpus, of D distinct ones, has the probability (count + D / vocabulary) / (N + D): the share of
    tokens that were seen for the first time is left to a uniform distribution, so that none is impossible and a small
    corpus of a large vocabulary is not drowned (Witten and Bell 1991, interpolated). Without a corpus it is uniform.

    Args:
        counts: How often each token occurs in the corpus.
        vocabulary: Number of tokens.
    """
    known = {token: count for token, count in counts.items() if token < vocabulary}
    distinct = max(1, len(known))
    frequency = torch.full((vocabulary,), distinct / vocabulary, dtype=torch.float64)
    frequency[list(known)] += torch.tensor(list(known.values()), dtype=torch.float64)
    return (frequency / frequency.sum()).log().float()


class TextMetrics(Metric):
    """Means over the scored positions of each text, for K subgraphs side by side. In nats, except `tv`.

    `compute` returns tensors of shape (K, texts): `kl`, `tv`, `unigram_kl` and `unigram_tv` (from the unigram
    distribution to the subgraph's, as `kl` and `tv` are from the full model's), `top_rarity` (unigram surprisal of the
    subgraph's most probable token); and `recovered`, shape (K, texts, nuclei): the fraction of positions at which each
    of `NUCLEI` is recovered.

    And of the full model alone, shape (texts,): `entropy` of its distributions, `loss` (negative log-probability of the
    token that follows), `next_rarity` and `last_rarity` (unigram surprisal, the negative log-probability in the unigram
    distribution, of the token that follows and of the last token read). NaN if no token follows.
    """

    full_state_update = False
    kl: Tensor
    tv: Tensor
    unigram_kl: Tensor
    unigram_tv: Tensor
    top_rarity: Tensor
    recovered: Tensor
    entropy: Tensor
    loss: Tensor
    next_unigram_surprisal: Tensor
    last_unigram_surprisal: Tensor
    positions: Tensor
    """Scored positions of each text."""
    labelled: Tensor
    """Scored positions of each text that a token follows."""

    def __init__(self, n_masks: int, n_texts: int, counts: Mapping[int, int], **kwargs: Any) -> None:
        """Start at zero.

        Args:
            n_masks: Number of subgraphs, K.
            n_texts: Number of texts.
            counts: How often each token occurs in the corpus.
            kwargs: Arguments of `torchmetrics.Metric`.
        """
        super().__init__(**kwargs)
        self.counts, self.unigram = counts, torch.empty(0)
        for name in BY_SUBGRAPH:
            self.add_state(name, torch.zeros(n_masks, n_texts, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("recovered", torch.zeros(n_masks, n_texts, len(NUCLEI)), dist_reduce_fx="sum")
        of_text = ("entropy", "loss", "next_unigram_surprisal", "last_unigram_surprisal", "positions", "labelled")
        for name in of_text:
            self.add_state(name, torch.zeros(n_texts, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, pair: DistributionPair, labels: Tensor, text: Tensor, read: Tensor, masks: slice = slice(None)
    ) -> None:
        """Add a batch of positions.

        Args:
            pair: The distributions of the full model, and of the subgraphs in `masks`.
            labels: The token that follows, or -1 where the text ends. Shape (positions,).
            text: Index of every position's text, shape (positions,).
            read: The last token read at every position, shape (positions,).
            masks: Which of the K subgraphs these are. The full model is evaluated along with the first of them.
        """
        if not len(self.unigram):
            self.unigram = unigram(self.counts, pair.full.shape[-1]).to(pair.full.device)
        recovered = pair.nucleus[..., None] >= torch.tensor(NUCLEI, device=pair.full.device)
        self.kl[masks].index_add_(1, text, pair.kl)
        self.tv[masks].index_add_(1, text, pair.tv)
        self.unigram_kl[masks].index_add_(1, text, kl_divergence(self.unigram, pair.masked).double())
        self.unigram_tv[masks].index_add_(1, text, tv_distance(self.unigram, pair.masked).double())
        self.top_rarity[masks].index_add_(1, text, -self.unigram[pair.masked.argmax(-1)].double())
        self.recovered[masks].index_add_(1, text, recovered.float())
        if not masks.start:
            self._update_full(pair.full, labels, text, read)

    def _update_full(self, full: Tensor, labels: Tensor, text: Tensor, read: Tensor) -> None:
        """Add the full model's distributions (positions, vocabulary)."""
        self.positions.index_add_(0, text, torch.ones_like(text, dtype=torch.float64))
        self.entropy.index_add_(0, text, -(full.exp() * full).nan_to_num().sum(-1).double())
        self.last_unigram_surprisal.index_add_(0, text, -self.unigram[read].double())
        labelled = labels >= 0
        text, next_token = text[labelled], labels[labelled]
        self.labelled.index_add_(0, text, torch.ones_like(text, dtype=torch.float64))
        self.loss.index_add_(0, text, -full[labelled].gather(-1, next_token[:, None])[:, 0].double())
        self.next_unigram_surprisal.index_add_(0, text, -self.unigram[next_token].double())

    def compute(self) -> dict[str, Tensor]:
        """The means by name, see the class."""
        means = {name: getattr(self, name) / self.positions for name in BY_SUBGRAPH}
        means["recovered"] = self.recovered / self.positions[:, None]
        means["entropy"] = self.entropy / self.positions
        means["last_rarity"] = self.last_unigram_surprisal / self.positions
        means["loss"] = self.loss / self.labelled
        means["next_rarity"] = self.next_unigram_surprisal / self.labelled
        return means
