"""Rivals that learn node scores by gradient descent, as published, on the same texts and for the same scored tokens."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import cycle
from typing import Literal, Protocol

import torch
from torch import Tensor

from masklearn.selection.attribution import integrated_gradients, single_ablation
from masklearn.selection.scorer import MaskScorer
from masklearn.training.budget import Projected

Operator = Projected().adjust_log_odds
"""Shifts log-odds so that their sigmoids sum to a size: the sigmoid top-k of MAttr (arXiv 2609.25518)."""
MATTR_SHARPNESS, MATTR_ADAM_LR = 2.0, 0.05
"""Inverse temperature of MAttr's sigmoid, and the learning rate of its Adam."""
MATTR_SGD_LR = {"uniform": 3.0, "log": 1.0}
"""Learning rates of its SGD, by how it draws sizes; the authors find that no rate carries over between settings."""
UGS_LR, UGS_BETAS = 0.1, (0.9, 0.995)
"""Adam of uniform gradient sampling: Li and Janson 2024 (arXiv:2409.09951); a rate in the published range."""
GRADIENT_TOKENS = 3
"""Tokens that a step counts for each of a text: a forward, and a backward at twice its cost."""

RivalName = Literal[
    "mattr, uniform sizes",
    "mattr, log sizes",
    "mattr, uniform sizes, SGD",
    "mattr, log sizes, SGD",
    "ugs",
    "integrated gradients",
    "single ablation",
    "random",
]


class Gradients(Protocol):
    """What a rival needs of a `MaskScorer`."""

    n_groups: int

    def gradient(self, masks: Tensor) -> Tensor:
        """The gradient of the KL with respect to every gate, of masks (groups, nodes)."""
        ...


class MiniBatches:
    """Stands in for a scorer: every gradient is of the next batch of texts, each with a scorer of its own."""

    n_groups = 1

    def __init__(self, scorers: Sequence[MaskScorer]) -> None:
        self._scorers, self._next = scorers, cycle(scorers)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step scores, forward and backward, in the mean."""
        n_tokens = [scored.n_tokens for scorer in self._scorers for scored in scorer.batches]
        return GRADIENT_TOKENS * sum(n_tokens) / len(n_tokens)

    def steps(self, tokens: float) -> int:
        """Steps that score so many tokens."""
        return max(1, int(tokens / self.tokens_per_step))

    @property
    def spent(self) -> float:
        """Tokens that all steps have scored."""
        return sum(scorer.tokens.spent for scorer in self._scorers)

    def gradient(self, masks: Tensor) -> Tensor:
        """The gradient of the KL on the next batch, of a mask (1, nodes)."""
        return next(self._next).gradient(masks)


def rivals(
    scorer: MaskScorer, gradients: Gradients, n_nodes: int, names: Collection[RivalName] | None = None
) -> dict[RivalName, Callable[[int], Tensor]]:
    """Scores of all nodes after a number of steps, shape (groups, nodes), by name; the last three need no steps.

    Args:
        scorer: Scores the groups' masks.
        gradients: What the rivals that descend take their gradients from.
        n_nodes: Nodes of the model.
        names: Which of them; all by default.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[RivalName, Callable[[int], Tensor]] = {
        "mattr, uniform sizes": lambda n: mattr(gradients, n_nodes, n, "uniform"),
        "mattr, log sizes": lambda n: mattr(gradients, n_nodes, n, "log"),
        "mattr, uniform sizes, SGD": lambda n: mattr(gradients, n_nodes, n, "uniform", adam=False),
        "mattr, log sizes, SGD": lambda n: mattr(gradients, n_nodes, n, "log", adam=False),
        "ugs": partial(uniform_gradient_sampling, gradients, n_nodes),
        "integrated gradients": lambda n: integrated_gradients(scorer),
        "single ablation": lambda n: single_ablation(scorer, n_nodes),
        "random": lambda n: torch.rand(scorer.n_groups, n_nodes, generator=generator),
    }
    return found if names is None else {name: found[name] for name in found if name in names}


def mattr(scorer: Gradients, n_nodes: int, n_steps: int, sizes: Literal["uniform", "log"], adam: bool = True) -> Tensor:
    """MAttr: one score for every node; every step draws a size and descends on the KL of a sigmoid top-k mask.

    Args:
        scorer: Scores the groups' masks.
        n_nodes: Nodes of the model.
        n_steps: Steps.
        sizes: Whether sizes are drawn uniformly on a linear axis or on a logarithmic one.
        adam: Whether Adam descends, or plain SGD.

    Returns:
        Scores, shape (groups, nodes).
    """
    scores, generator = torch.zeros(scorer.n_groups, n_nodes, requires_grad=True), torch.Generator().manual_seed(0)
    optimizer = (
        torch.optim.Adam([scores], lr=MATTR_ADAM_LR) if adam else torch.optim.SGD([scores], lr=MATTR_SGD_LR[sizes])
    )
    for _ in range(n_steps):
        share = torch.rand(scorer.n_groups, generator=generator)
        size = n_nodes**share if sizes == "log" else 1 + (n_nodes - 1) * share
        gates = Operator(MATTR_SHARPNESS * scores, size).sigmoid()
        _descend(optimizer, gates, scorer.gradient(gates.detach()))
    return scores.detach()


def uniform_gradient_sampling(scorer: Gradients, n_nodes: int, n_steps: int) -> Tensor:
    """Gates are 0, 1 or uniform between them, with a learned mean; only uniform gates have a gradient.

    One score serves every size, as in the other methods here: each step draws a size and shifts the means to it.

    Args:
        scorer: Scores the groups' masks.
        n_nodes: Nodes of the model.
        n_steps: Steps.

    Returns:
        Scores, shape (groups, nodes).
    """
    scores, generator = torch.zeros(scorer.n_groups, n_nodes, requires_grad=True), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([scores], lr=UGS_LR, betas=UGS_BETAS)
    for _ in range(n_steps):
        size = 1 + (n_nodes - 1) * torch.rand(scorer.n_groups, generator=generator)
        mean = Operator(scores, size).sigmoid()
        uniform_share = (mean * (1 - mean)).detach()
        noise, value = torch.rand((2, *mean.shape), generator=generator)
        is_uniform = noise < uniform_share
        is_one = noise > 1 - (mean.detach() - uniform_share / 2)
        gradient = scorer.gradient(torch.where(is_uniform, value, is_one.float()))
        _descend(optimizer, mean, gradient * is_uniform / uniform_share.clamp_min(0.01))
    return scores.detach()


def _descend(optimizer: torch.optim.Optimizer, gates: Tensor, gradient: Tensor) -> None:
    """A step of the optimiser, from the gradient with respect to the gates."""
    optimizer.zero_grad()
    gates.backward(gradient)
    optimizer.step()
