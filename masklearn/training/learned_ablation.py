"""Learned ablation: a constant for every node, trained where the node is closed, and once more for masks that are cut.

Source: Li and Janson 2024, "Optimal ablation for interpretability" (arXiv:2409.09951).
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from masklearn.ablation import STORED_ABLATIONS, Ablation, AblationName
from masklearn.data import Batch, MaskData, SplitName
from masklearn.masking import MaskedLM, ablation_from_means
from masklearn.objective import chunked_kl
from masklearn.selection.scorer import MaskScorer
from masklearn.training.rows import assign_masks, mean_by_mask

CONSTANTS_LR = 0.02
"""Learning rate of constants, in standard deviations of a node's output a step."""
REFIT_STEPS, REFIT_ROWS = 200, 4
"""Steps for masks that are cut, and rows of a text in each."""
LOG_KL_EPS = 0.003
"""Nats added to a KL before its logarithm is taken, so that a mask that is good enough stops pulling."""

Batches = Callable[[], Iterable[Batch]]
"""The texts of a split, from the start."""


class _Fixed(nn.Module):
    """Tensors that move with a module and are no part of its state."""

    def __init__(self, values: Iterable[Tensor]) -> None:
        super().__init__()
        for i, value in enumerate(values):
            self.register_buffer(str(i), value, persistent=False)


class LearnedConstants(nn.Module):
    """What every node emits when closed: its mean, and from there as many of its standard deviations as are learned.

    Args:
        masked_lm: The model.
        batches: The training split.
    """

    def __init__(self, masked_lm: MaskedLM, batches: Iterable[Batch]) -> None:
        super().__init__()
        heads, mlps = masked_lm.activation_stats((batch.input_ids, batch.real) for batch in batches)
        start = ablation_from_means("learned", heads, mlps)
        self.n_layers = len(start.heads)
        self.start = _Fixed((*start.heads, *start.mlps))
        self.spread = _Fixed(seen.std() for seen in (*heads, *mlps))
        self.shifts = nn.ParameterList(torch.zeros_like(value) for value in self.start.buffers())

    def forward(self) -> Ablation:
        """The ablation as it is now, differentiable in what is learned."""
        each = zip(self.start.buffers(), self.spread.buffers(), self.shifts, strict=True)
        values = [start + spread * shift for start, spread, shift in each]
        return Ablation("learned", tuple(values[: self.n_layers]), tuple(values[self.n_layers :]))

    def refit(self, masked_lm: MaskedLM, masks: Tensor, train: Batches, selection: Batches) -> Ablation:
        """Train the constants on for discrete masks, and keep what is better on the texts that select.

        Args:
            masked_lm: The model; left with the ablation that is returned.
            masks: Boolean, shape (groups, sizes, nodes).
            train: The training split.
            selection: Texts by which discrete masks are selected.
        """
        found: list[tuple[float, Ablation]] = []
        for learn in (False, True):
            if learn:
                self._learn(masked_lm, masks, train)
            masked_lm.ablation = self().detach()
            scorer = MaskScorer(masked_lm, selection(), range(len(masks)))
            kl = scorer(masks.transpose(0, 1).to(masked_lm.device))
            found.append(((kl + LOG_KL_EPS).log().mean().item(), masked_lm.ablation))
        masked_lm.ablation = min(found, key=lambda one: one[0])[1]
        return masked_lm.ablation

    def _learn(self, masked_lm: MaskedLM, masks: Tensor, train: Batches) -> None:
        gates = masks.float().flatten(0, 1).to(masked_lm.device)
        n_sizes, generator = masks.shape[1], torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(self.parameters(), lr=CONSTANTS_LR)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, REFIT_STEPS)
        for batch in islice(_again_and_again(train), REFIT_STEPS):
            offsets = torch.rand(batch.group.shape, generator=generator)
            rows = assign_masks(batch.group.cpu(), n_sizes, min(REFIT_ROWS, n_sizes), offsets).to(masked_lm.device)
            batch = batch.to(masked_lm.device)
            masked_lm.ablation = self()
            masked = masked_lm(batch.input_ids, batch.scored, gates[rows])
            kl = chunked_kl(masked_lm.full(batch.input_ids, batch.scored), masked, masked_lm.unembed)
            whose = rows.repeat_interleave(batch.scored.sum(1), dim=1)
            mean, count = mean_by_mask(kl, whose, len(gates))
            optimizer.zero_grad()
            (mean[count > 0] + LOG_KL_EPS).log().sum().backward()
            optimizer.step()
            schedule.step()


def fit_ablation(name: AblationName, masked_lm: MaskedLM, masks: Tensor, data: MaskData) -> Ablation:
    """What closed nodes emit under an ablation, found on the training split of some texts.

    Args:
        name: The ablation.
        masked_lm: The model; its ablation changes where values are learned.
        masks: For which constants are learned, boolean, shape (groups, sizes, nodes).
        data: The texts, of as many groups, set up.
    """

    def split(part: SplitName) -> Iterable[Batch]:
        return (batch.to(masked_lm.device) for batch in data.loader(part))

    if name not in STORED_ABLATIONS:
        return Ablation(name)
    if name != "learned":
        return means(masked_lm, split("train"), name == "mean-positional")
    constants = LearnedConstants(masked_lm, split("train"))
    return constants.refit(masked_lm, masks, partial(split, "train"), partial(split, "selection"))


def _again_and_again(batches: Batches) -> Iterable[Batch]:
    while True:
        yield from batches()


def means(masked_lm: MaskedLM, batches: Iterable[Batch], positional: bool) -> Ablation:
    """The mean ablation on some texts, see `MaskedLM.observed`."""
    return masked_lm.mean_ablation(((batch.input_ids, batch.real) for batch in batches), positional)
