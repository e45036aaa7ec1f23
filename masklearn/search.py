"""Discrete search among subgraphs: the judge of every candidate, greedy elimination, and the polish of learned masks.

Candidates are of shape (K, groups, nodes): K for each of some groups, each judged on its own group's texts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from masklearn.data import Batch
from masklearn.gates import top
from masklearn.masked_lm import MaskedLM
from masklearn.objective import chunked_kl

TOKENS_AT_ONCE = 2**15
"""Tokens, over all rows, that share a forward."""
ADDITIONS, REMOVALS, MOST_REMOVALS = 3, 4, 12
"""Nodes that polish tries to open at every round; and to close, one more for every three of a mask's, up to a most."""
GAIN = 0.1
"""Share of its KL that a mask must lose in a round to be worth another."""
ENOUGH = 1e-4
"""Nats below which a mask is as good as any and is polished no further."""


@dataclass(frozen=True)
class _Piece:
    """Some texts, what the full model says about them, and the place of every text's group."""

    batch: Batch
    full: Tensor
    slot: Tensor


class Judge:
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
        self.pieces: list[_Piece] = []
        self.positions = torch.zeros(self.n_groups, device=masked_lm.device)
        for batch in batches:
            slot = torch.tensor([place[group] for group in batch.group.tolist()], device=masked_lm.device)
            batch = batch.to(masked_lm.device)
            self.pieces.append(_Piece(batch, masked_lm.full(batch.input_ids, batch.scored), slot))
            self.positions.index_add_(0, slot, batch.scored.sum(1).float())

    @torch.no_grad()
    def __call__(self, masks: Tensor, groups: Tensor | None = None) -> Tensor:
        """The KL of masks.

        Args:
            masks: Boolean or float, shape (K, groups, nodes).
            groups: Places of the groups that are meant, shape (groups); all of them by default.

        Returns:
            Shape (K, groups).
        """
        masks, groups = masks.float(), self._all if groups is None else groups
        total = torch.zeros(masks.shape[:-1], device=masks.device)
        for piece in self._pieces(groups):
            at_once = max(1, TOKENS_AT_ONCE // piece.batch.input_ids.numel())
            total += torch.cat([self._kl(piece, some) for some in masks.split(at_once)])
        return total / self.positions[groups]

    def gradient(self, masks: Tensor, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The KL of one mask per group, and its gradient in every gate: shapes (groups,) and (groups, nodes)."""
        gates, groups = masks.float().requires_grad_(), self._all if groups is None else groups
        total, gradient = torch.zeros(len(gates), device=gates.device), torch.zeros_like(gates)
        for piece in self._pieces(groups):
            kl = self._kl(piece, gates[None])[0]
            gradient += torch.autograd.grad(kl.sum(), gates)[0]
            total += kl.detach()
        positions = self.positions[groups]
        return total / positions, gradient / positions[:, None]

    @property
    def _all(self) -> Tensor:
        return torch.arange(self.n_groups, device=self.positions.device)

    def _pieces(self, groups: Tensor) -> Iterator[_Piece]:
        """The texts of some groups, each with its group's place among them."""
        place = torch.full((self.n_groups,), -1, device=groups.device)
        place[groups] = torch.arange(len(groups), device=groups.device)
        for piece in self.pieces:
            slot = place[piece.slot]
            kept = slot >= 0
            if kept.all():
                yield _Piece(piece.batch, piece.full, slot)
            elif kept.any():
                positions = kept.repeat_interleave(piece.batch.scored.sum(1))
                yield _Piece(Batch(*(tensor[kept] for tensor in piece.batch)), piece.full[positions], slot[kept])

    def _kl(self, piece: _Piece, gates: Tensor) -> Tensor:
        """KL summed over the positions of every group, shape (K, groups), of gates (K, groups, nodes)."""
        input_ids, scored = piece.batch.input_ids, piece.batch.scored
        kl = chunked_kl(piece.full, self.masked_lm(input_ids, scored, gates[:, piece.slot]), self.masked_lm.head)
        whose = piece.slot.repeat_interleave(scored.sum(1))
        return torch.zeros(gates.shape[:-1], device=gates.device).index_add(1, whose, kl)


def greedy(judge: Judge, sizes: Iterable[int], n_nodes: int) -> Tensor:
    """Greedy backward elimination, every group on its own: close, node by node, the one that is missed least.

    The classic and costly baseline: about `n_nodes ** 2 / 2` forwards of every text.

    Returns:
        Boolean masks, shape (sizes, groups, nodes).
    """
    device = judge.masked_lm.device
    groups = torch.arange(judge.n_groups, device=device)
    kept = torch.ones(judge.n_groups, n_nodes, dtype=torch.bool, device=device)
    found: dict[int, Tensor] = {n_nodes: kept}
    for size in range(n_nodes - 1, min(sizes := list(sizes)) - 1, -1):
        open_nodes = kept.nonzero()[:, 1].view(judge.n_groups, size + 1).T
        candidates = kept.repeat(size + 1, 1, 1).scatter(-1, open_nodes[..., None], False)
        kept = candidates[judge(candidates).argmin(0), groups]
        found[size] = kept
    return torch.stack([found[size] for size in sizes])


def single_ablation(judge: Judge, n_nodes: int) -> Tensor:
    """How much every node is missed when it alone is closed: the KL then, shape (groups, nodes)."""
    each = ~torch.eye(n_nodes, dtype=torch.bool, device=judge.masked_lm.device)
    return judge(each[:, None].expand(-1, judge.n_groups, -1)).T


def polish(judge: Judge, masks: Tensor, scores: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Swap nodes of every mask as long as that lowers its KL; sizes stay what they are.

    A mask starts from what was learned, or, if that is better, from the polished mask of the next larger size without
    its weakest nodes. At each round the closed nodes that the gradient would most like to open are tried, and the best
    is opened; then the weakest of the others by score are tried, and the one that is missed least is closed. A mask is
    done when that gains little. Each is polished on its own, so nested masks may cease to be nested.

    Args:
        judge: Says what is better.
        masks: Boolean, shape (sizes, groups, nodes), sizes ascending.
        scores: What nodes are worth, as far as is known; same shape.
        rounds: Swaps to make in a mask at most.

    Returns:
        The masks and their KL, shapes (sizes, groups, nodes) and (sizes, groups).
    """
    masks, kl = masks.clone(), judge(masks)
    for i in reversed(range(len(masks))):
        mask, value, everyone = masks[i], kl[i], torch.arange(judge.n_groups, device=masks.device)
        if i + 1 < len(masks):
            shrunk = top(scores[i].masked_fill(~masks[i + 1], -torch.inf), masks[i].sum(-1) + 1)
            _take(mask, value, everyone, *_close_one(judge, shrunk, scores[i], everyone))
        at_work = everyone[value > ENOUGH]
        for _ in range(rounds if not mask[0].all() else 0):
            if not len(at_work):
                break
            before = value[at_work]
            gradient = judge.gradient(mask[at_work], at_work)[1]
            grown = _open_one(judge, mask[at_work], gradient, at_work)
            _take(mask, value, at_work, *_close_one(judge, grown, scores[i, at_work], at_work))
            now = value[at_work]
            at_work = at_work[(now > ENOUGH) & (now < (1 - GAIN) * before)]
    return masks, kl


def _open_one(judge: Judge, mask: Tensor, gradient: Tensor, groups: Tensor) -> Tensor:
    """The masks with one node more: the best of those that the gradient favours."""
    n = min(ADDITIONS, int((~mask[0]).sum()))
    nodes = gradient.masked_fill(mask, torch.inf).topk(n, largest=False).indices.T
    return _best(judge, torch.stack([mask.scatter(-1, node[:, None], True) for node in nodes]), groups)[0]


def _close_one(judge: Judge, mask: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The masks with one node less, the one among the weakest that is missed least, and their KL."""
    n = min(REMOVALS + int(mask[0].sum()) // 3, MOST_REMOVALS, int(mask[0].sum()))
    nodes = scores.masked_fill(~mask, torch.inf).topk(n, largest=False).indices.T
    return _best(judge, torch.stack([mask.scatter(-1, node[:, None], False) for node in nodes]), groups)


def _best(judge: Judge, candidates: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The best of the candidates (K, groups, nodes) of every group, and its KL."""
    kl, which = judge(candidates, groups).min(0)
    return candidates[which, torch.arange(len(which), device=which.device)], kl


def _take(mask: Tensor, kl: Tensor, groups: Tensor, other: Tensor, other_kl: Tensor) -> None:
    """Put other masks in the place of some groups' where they are better, in place."""
    better = other_kl < kl[groups]
    mask[groups[better]], kl[groups[better]] = other[better], other_kl[better]
