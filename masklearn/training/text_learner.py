"""Learn which units of one text to keep, edges or positions, by gradient descent on gates that start from an order."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masklearn.errors import NonFiniteLoss, UserError
from masklearn.gates import open_probability
from masklearn.shares import share_counts
from masklearn.training.budget import Projected
from masklearn.training.learned_ablation import LOG_KL_EPS

CHECK_EVERY = 10
"""Steps between two evaluations of the discrete subgraphs."""
SHRINKING = 0.4
"""Share of the steps in which the sizes shrink from all units to their targets, by a constant factor a step."""
TEXT_STEPS = {"edges": 120, "positions": 180}
"""Optimiser steps by default. On two real models 60 left 1.5 to 3 times the KL at 1 and 10 % of the edges (two texts
each), and 5 to 33 times at 3 to 30 % of the positions (one text each), which start from worse orders."""
TEXT_LR, TEXT_TEMPERATURE = 0.4, (0.5, 0.05)
"""Defaults of the other settings below, chosen on a few texts of three models."""

LogStep = Callable[[Mapping[str, float]], object]
"""Takes metrics of one step by name."""


@dataclass(frozen=True)
class TextLearnerConfig:
    """Settings of the learner."""

    steps: int = TEXT_STEPS["edges"]
    """Optimiser steps of every text."""
    lr: float = TEXT_LR
    """Learning rate of the scores, which begin as minus the log of the rank in the first order."""
    temperature: tuple[float, float] = TEXT_TEMPERATURE
    """Softness of the gates at the first and at the last step: at the end they are almost discrete."""

    def __post_init__(self) -> None:
        soft = self.temperature
        if self.steps < 0 or self.lr <= 0 or not (isinstance(soft, tuple) and len(soft) == 2 and min(soft) > 0):
            raise UserError(
                f"steps {self.steps}, lr {self.lr} and temperature {soft} do not fit. Give steps of at least 0, a "
                "positive lr, and two positive temperatures, of the first and of the last step"
            )


class SubgraphSearch(ABC):
    """The discrete subgraphs of one text, by size, that have the lowest KL so far.

    Args:
        order: Numbers of all units, best first, to start from.
        shares: Sizes as shares of the units, ascending.
        scored: Numbers of the units that have scores, ascending.
        learned: Indices of the sizes that are learned; the others keep the first subgraphs.
    """

    shared: float = 1.0
    """Share of the steps in which all sizes have the same scores; then each size goes on with its own, and with the
    units that the scored ones bring with them, see `kl_with_others`."""

    def __init__(self, order: Tensor, shares: Sequence[float], scored: Tensor, learned: Sequence[int]) -> None:
        self.order, self.shares, self.scored, self.learned = order, shares, scored, learned
        self.counts = share_counts(shares, len(order))
        self.kept = self.first_subgraphs()
        self.best = self.kl_of(self.kept)
        self.n_open = torch.empty(0)
        """For each learned size, how many of the scored units are kept, shape (learned,)."""

    def first_subgraphs(self) -> list[Tensor]:
        """The subgraphs to start from, size by size: the first units of the order."""
        return [self.order[:n].sort().values for n in self.counts]

    @abstractmethod
    def kl(self, gates: Tensor) -> Tensor:
        """KL(full || masked) in nats, shape (learned,), under gates of the scored units, shape (learned, scored)."""

    def kl_with_others(self, gates: Tensor) -> tuple[Tensor, Tensor | None]:
        """KL as of `kl`, but with those units without scores that the scored ones need, and their expected number.

        Returns:
            The KL, and the number, both of shape (learned,) and differentiable. By default there are no others: the
            KL is that of `kl`, and the number None.
        """
        return self.kl(gates), None

    @abstractmethod
    def kl_of(self, kept: list[Tensor]) -> Tensor:
        """KL(full || subgraph) in nats of subgraphs, shape (subgraphs,), without gradients."""

    @abstractmethod
    def subgraph(self, best_first: Tensor, n_units: int) -> tuple[Tensor, int]:
        """The subgraph of a size from scored units, best first: its units, and how many scored ones fit into it."""

    def consider(self, scores: Tensor) -> None:
        """Take the subgraphs of the highest scores at the sizes at which they are better; count their open units.

        Args:
            scores: One for each learned size and scored unit, shape (learned, scored).
        """
        best_first = self.scored[scores.argsort(descending=True)]
        found = [self.subgraph(order, self.counts[i]) for order, i in zip(best_first, self.learned, strict=True)]
        self.replace_if_better(self.learned, [kept for kept, _ in found])
        self.n_open = torch.tensor([float(max(1, n_fitting)) for _, n_fitting in found])

    def replace_if_better(self, sizes: Sequence[int], candidates: list[Tensor]) -> None:
        """Take the candidates for some sizes, given by their indices, that have a lower KL."""
        for i, candidate, kl in zip(sizes, candidates, self.kl_of(candidates), strict=True):
            if kl < self.best[i] or math.isnan(self.best[i]):
                self.kept[i], self.best[i] = candidate, kl

    def by_size(self, metric: str, values: Sequence[float]) -> dict[str, float]:
        """Values of the learned sizes by the names under which they are logged."""
        return {f"{metric}/s={self.shares[i]:g}": value for i, value in zip(self.learned, values, strict=True)}

    def first_scores(self) -> Tensor:
        """Minus the log of every scored unit's rank in the order, shape (scored,)."""
        rank = torch.empty(int(self.order.max()) + 1)
        rank[self.order] = torch.arange(1, len(self.order) + 1).float()
        return -rank[self.scored].log()


@torch.enable_grad()
def learn(search: SubgraphSearch, config: TextLearnerConfig, log: LogStep | None = None) -> list[Tensor]:
    """Learn the subgraphs of one text for all sizes, with scores that the sizes share, all the way or at first.

    So larger sizes lead the smaller ones, whose gradients say little as long as no path is open. Gates are mean-field:
    each at its probability of being open, under a budget that holds at every step (`Projected`). Every `CHECK_EVERY`
    steps the units of the highest scores make the discrete subgraph of each size, and their number is the target of the
    budget, to which it shrinks from all units. The loss is the sum over sizes of the log of KL(full || masked). For
    each size the discrete subgraph of the lowest KL on the way is kept, from `first_subgraphs` on. Once sizes have
    their own scores, the loss has a price on the units that the scored ones bring with them: what a scored unit is
    worth, as both take the places of one size.

    Args:
        search: The text and its subgraphs; changed in place.
        config: Settings.
        log: Takes the KL of every learned size, with soft gates, after each step.

    Returns:
        The numbers of the units kept, ascending, for every size.

    Raises:
        NonFiniteLoss: If a gradient is not finite.
    """
    if not search.learned:
        return search.kept
    budget, scores = Projected(), search.first_scores().repeat(len(search.learned), 1).requires_grad_()
    search.consider(scores.detach())
    optimizer = torch.optim.Adam([scores], lr=config.lr, betas=(0.8, 0.95))
    first, last = config.temperature
    for step in range(1, config.steps + 1):
        progress = (step - 1) / config.steps
        temperature = first * (last / first) ** ((step - 1) / max(1, config.steps - 1))
        # size by size: the budget's search holds many copies of the log-odds
        sizes = _shrunk(search.n_open, len(search.scored), progress)
        pairs = zip(scores / temperature, sizes, strict=True)
        log_odds = [budget.adjust_log_odds(row[None], n[None]) for row, n in pairs]
        gates, is_shared = open_probability(torch.cat(log_odds)), progress < search.shared
        kl, of_gates = _loss_gradient(search, gates.detach().requires_grad_(), is_shared)
        gradient = torch.autograd.grad(gates, scores, of_gates)[0]
        scores.grad = gradient.sum(0).repeat(len(gradient), 1) if is_shared else gradient
        optimizer.step()
        if step % CHECK_EVERY == 0 or step == config.steps:
            if not scores.isfinite().all():
                raise NonFiniteLoss(
                    f"the gradient of a text's gates is not finite at step {step} or shortly before. "
                    "Try --model.dtype float32, or leave out the texts on which the model itself is not finite"
                )
            search.consider(scores.detach())
        if log:
            log({"temperature": temperature} | search.by_size("kl", kl.tolist()))
    return search.kept


def _loss_gradient(search: SubgraphSearch, gates: Tensor, is_shared: bool) -> tuple[Tensor, Tensor]:
    """KL of every size, shape (learned,), and the gradient of the loss with respect to the gates (learned, scored)."""
    kl, n_others = (search.kl(gates), None) if is_shared else search.kl_with_others(gates)
    gradient = torch.autograd.grad((kl + LOG_KL_EPS).log().sum(), gates, retain_graph=n_others is not None)[0]
    if n_others is None:
        return kl.detach(), gradient
    # by how much the loss falls for each gate that opens, if all log-odds rise alike, as a larger size would let them
    rise = (gates * (1 - gates)).detach()
    gain = -(gradient * rise).sum(1) / rise.sum(1).clamp_min(1e-9)
    priced = (gain.clamp_min(0) * n_others).sum()
    return kl.detach(), gradient + torch.autograd.grad(priced, gates)[0]


def _shrunk(n_open: Tensor, n_scored: int, progress: float) -> Tensor:
    """How many scored units are open in expectation at a share of the steps, of the shape of `n_open`."""
    remaining = max(0.0, 1 - progress / SHRINKING)
    return n_open * (n_scored / n_open) ** remaining
