"""How close a subgraph's next-token distributions are to the full model's, as torchmetrics."""

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


def tv_distance(full: Tensor, masked: Tensor) -> Tensor:
    """Total variation of log-probabilities (..., vocabulary), in [0, 1], of shape (...)."""
    return (full.exp() - masked.exp()).abs().sum(-1) / 2


def js_divergence(full: Tensor, masked: Tensor) -> Tensor:
    """Jensen-Shannon divergence of log-probabilities (..., vocabulary), in nats, of shape (...); at most log 2."""
    full, masked = torch.broadcast_tensors(full, masked)
    middle = torch.logaddexp(full, masked) - torch.tensor(2.0).log()
    return (kl_divergence(full, middle) + kl_divergence(masked, middle)) / 2


def recovered_nucleus(full: Tensor, masked: Tensor) -> Tensor:
    """How much of the head of the distribution is in place: the percentage up to which every nucleus is recovered.

    A nucleus is recovered when the smallest sets of top tokens that hold so much probability are equal, order included.

    Args:
        full: The full model's log-probabilities, shape (positions, vocabulary).
        masked: The subgraphs', shape (K, positions, vocabulary).

    Returns:
        One of `NUCLEI`, or 0 if they share none. Shape (K, positions).
    """
    best = torch.zeros(masked.shape[:-1], device=masked.device)
    begun = full.argmax(-1) == masked.argmax(
        -1
    )  # elsewhere not even the first token agrees, and nothing need be sorted
    pair = full.expand_as(masked)[begun], masked[begun]
    orders = [logp.argsort(dim=-1, descending=True, stable=True) for logp in pair]
    same = (orders[0] == orders[1]).long().cumprod(-1).sum(-1)  # ranks from the top at which the tokens agree
    reached = torch.zeros_like(best[begun])
    intact = torch.ones_like(reached, dtype=torch.bool)
    for percent in NUCLEI:
        needed, found = (_nucleus_size(logp, order, percent) for logp, order in zip(pair, orders, strict=True))
        intact &= (needed == found) & (needed <= same)
        reached[intact] = percent
    best[begun] = reached
    return best


def _nucleus_size(logp: Tensor, order: Tensor, percent: float) -> Tensor:
    """How many of the top tokens it takes to hold a share of the probability."""
    before = logp.gather(-1, order).exp().cumsum(-1)
    return (before < percent / 100 - 1e-6).sum(-1) + 1


@dataclass(frozen=True)
class DistributionPair:
    """Subgraphs' next-token distributions beside the full model's; each comparison is made once, whoever asks."""

    full: Tensor
    """Log-probabilities, shape (positions, vocabulary)."""
    masked: Tensor
    """Those of K subgraphs, shape (K, positions, vocabulary)."""

    @cached_property
    def kl(self) -> Tensor:
        """KL(full || subgraph) in nats, float64, shape (K, positions)."""
        return kl_divergence(self.full, self.masked).double()

    @cached_property
    def tv(self) -> Tensor:
        """Shape (K, positions), float64."""
        return tv_distance(self.full, self.masked).double()

    @cached_property
    def nucleus(self) -> Tensor:
        """See `recovered_nucleus`, which sorts the vocabulary: of a large one, most of the work."""
        return recovered_nucleus(self.full, self.masked)


class SubgraphMetrics(Metric):
    """Means over scored positions, for K subgraphs side by side. All divergences in nats.

    `compute` gives tensors of shape (K,): `kl`, `tv`, `js`, `top1` (share of positions with the same most probable
    token), `nucleus_median` (percent, see `recovered_nucleus`), `cross_entropy` of the subgraphs, and, the same for
    all, `full_cross_entropy`. Cross-entropies are against the tokens that came, where one came. And of shape
    (K, groups): `kl_by_group` and `tv_by_group`.
    """

    full_state_update = False
    kl: Tensor
    tv: Tensor
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

    def update(self, pair: DistributionPair, labels: Tensor, group: Tensor | None = None) -> None:
        """Take in some positions.

        Args:
            pair: The full model's and the subgraphs' distributions there.
            labels: The token that came next, or -1 where the text ended. Shape (positions,).
            group: Place of every position's group, shape (positions,); all are of the first by default.
        """
        group, full, masked = torch.zeros_like(labels) if group is None else group, pair.full, pair.masked
        self.kl.index_add_(1, group, pair.kl)
        self.tv.index_add_(1, group, pair.tv)
        self.js += js_divergence(full, masked).double().sum(-1)
        self.top1 += (full.argmax(-1) == masked.argmax(-1)).double().sum(-1)
        levels = torch.tensor((0, *NUCLEI), device=masked.device)
        self.nuclei += (pair.nucleus[..., None] == levels).sum(1)
        self.positions += torch.bincount(group, minlength=len(self.positions))
        known = labels >= 0
        self.labelled += known.sum()
        at = labels[known, None]
        self.full_cross_entropy -= full[known].gather(-1, at).double().sum()
        self.cross_entropy -= masked[:, known].gather(-1, at.expand(len(masked), -1, -1)).double().sum((-2, -1))

    def compute(self) -> dict[str, Tensor]:
        positions = self.positions.sum()
        means = {name: getattr(self, name).sum(-1) / positions for name in ("kl", "tv")}
        means |= {name: getattr(self, name) / positions for name in ("js", "top1")}
        for name in ("cross_entropy", "full_cross_entropy"):
            means[name] = getattr(self, name) / self.labelled  # NaN where no position has a next token
        nuclei: Tensor = self.nuclei
        median = (nuclei.cumsum(-1) * 2 >= positions).long().argmax(-1)
        means["nucleus_median"] = torch.tensor((0, *NUCLEI), device=median.device)[median]
        return means | {f"{name}_by_group": getattr(self, name) / self.positions for name in ("kl", "tv")}


def unigram(counts: Mapping[int, int], vocabulary: int) -> Tensor:
    """Log-probabilities (vocabulary,) of tokens drawn as often as they were counted, float32.

    Half a count more for every token, so that none is impossible (Krichevsky and Trofimov 1981).
    """
    found = torch.full((vocabulary,), 0.5, dtype=torch.float64)
    known = {token: count for token, count in counts.items() if token < vocabulary}
    found[list(known)] += torch.tensor(list(known.values()), dtype=torch.float64)
    return (found / found.sum()).log().float()


class TextMetrics(Metric):
    """Means over the scored positions of every text by itself, for K subgraphs side by side. In nats, but for `tv`.

    `compute` gives tensors of shape (K, texts): `kl`, `tv`, `unigram_kl` (KL from the unigram distribution to the
    subgraph's, as `kl` is that from the full model's), and `recovered`, of one more dimension: the share of positions
    at which each of `NUCLEI` is recovered. And of shape (texts,), of the full model alone: `entropy` of its
    distributions, `loss` (negative log-probability of the token that came), `next_rarity` and `last_rarity` (negative
    log-probability in the unigram distribution of the token that came, and of the last one that was read). NaN where
    no token came.
    """

    full_state_update = False
    kl: Tensor
    tv: Tensor
    unigram_kl: Tensor
    recovered: Tensor
    entropy: Tensor
    loss: Tensor
    next_rarity: Tensor
    last_rarity: Tensor
    positions: Tensor
    labelled: Tensor

    def __init__(self, n_masks: int, n_texts: int, counts: Mapping[int, int], **kwargs: Any) -> None:
        """For so many subgraphs and texts, of a corpus in which every token comes so often."""
        super().__init__(**kwargs)
        self.counts, self.unigram = counts, torch.empty(0)
        for name in ("kl", "tv", "unigram_kl"):
            self.add_state(name, torch.zeros(n_masks, n_texts, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("recovered", torch.zeros(n_masks, n_texts, len(NUCLEI)), dist_reduce_fx="sum")
        for name in ("entropy", "loss", "next_rarity", "last_rarity", "positions", "labelled"):
            self.add_state(name, torch.zeros(n_texts, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, pair: DistributionPair, labels: Tensor, text: Tensor, read: Tensor, masks: slice = slice(None)
    ) -> None:
        """Take in some positions.

        Args:
            pair: The distributions there of the full model, and of the subgraphs that `masks` says.
            labels: The token that came next, or -1 where the text ended. Shape (positions,).
            text: Place of every position's text, shape (positions,).
            read: The token at every position, shape (positions,).
            masks: Which of the subgraphs these are; the full model is looked at with the first.
        """
        full = pair.full
        if not len(self.unigram):
            self.unigram = unigram(self.counts, full.shape[-1]).to(full.device)
        self.kl[masks] = self.kl[masks].index_add(1, text, pair.kl)
        self.tv[masks] = self.tv[masks].index_add(1, text, pair.tv)
        far = kl_divergence(self.unigram, pair.masked).double()
        self.unigram_kl[masks] = self.unigram_kl[masks].index_add(1, text, far)
        reached = pair.nucleus[..., None] >= torch.tensor(NUCLEI, device=full.device)
        self.recovered[masks] = self.recovered[masks].index_add(1, text, reached.float())
        if masks.start:
            return
        self.positions.index_add_(0, text, torch.ones_like(text, dtype=torch.float64))
        self.entropy.index_add_(0, text, -(full.exp() * full).nan_to_num().sum(-1).double())
        self.last_rarity.index_add_(0, text, -self.unigram[read].double())
        came = labels >= 0
        text, labels = text[came], labels[came]
        self.labelled.index_add_(0, text, torch.ones_like(text, dtype=torch.float64))
        self.loss.index_add_(0, text, -full[came].gather(-1, labels[:, None])[:, 0].double())
        self.next_rarity.index_add_(0, text, -self.unigram[labels].double())

    def compute(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name) / self.positions for name in ("kl", "tv", "unigram_kl")}
        found |= {"recovered": self.recovered / self.positions[:, None]}
        found |= {name: getattr(self, name) / self.positions for name in ("entropy", "last_rarity")}
        return found | {name: getattr(self, name) / self.labelled for name in ("loss", "next_rarity")}
