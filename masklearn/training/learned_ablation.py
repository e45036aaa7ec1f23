"""Learned ablation: a constant for every node, trained along with the gates and refitted for the discrete masks.

Source: Li and Janson 2024, "Optimal ablation for interpretability" (arXiv:2409.09951).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from masklearn.ablation import STORED_ABLATIONS, Ablation, AblationName
from masklearn.data import Batch, MaskData, SplitName
from masklearn.gates import GateName
from masklearn.masking import MaskedLM, ablation_from_means
from masklearn.objective import ObjectiveName
from masklearn.progress import ProgressBar, no_bar
from masklearn.selection.losses import losses
from masklearn.selection.scorer import MaskScorer
from masklearn.training.rows import assign_masks, mean_by_mask

CONSTANTS_LR = 0.02
"""Learning rate of the constants, in standard deviations of a node's output."""
REFIT_STEPS, REFIT_ROWS_PER_TEXT = 200, 4
"""Optimiser steps of the refit for discrete masks, and most rows of a text in each; with fewer rows more steps."""
NEARLY_CLOSED = 0.1
"""Up to this probability of being open a mean-field gate trains the constant of its node. It never closes
altogether, unlike a hard-concrete one."""
LOG_KL_EPS = 0.003
"""Nats added to a KL before taking its logarithm, so that a mask that is good enough stops pulling."""

BatchSource = Callable[[], Iterable[Batch]]
"""Starts a new pass over the texts of a split."""


class BufferList(nn.Module):
    """Tensors that move with a module but are not part of its state."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        for i, tensor in enumerate(tensors):
            self.register_buffer(str(i), tensor, persistent=False)


class LearnedConstants(nn.Module):
    """The constant output of every closed node: its mean plus a learned multiple of its standard deviation.

    Args:
        masked_lm: The model.
        batches: The training split.
        gates: What kind of gates the constants are trained with.
    """

    def __init__(self, masked_lm: MaskedLM, batches: Iterable[Batch], gates: GateName = "hard-concrete") -> None:
        super().__init__()
        self.trained_up_to = NEARLY_CLOSED if gates == "mean-field" else 0.0
        heads, mlps = masked_lm.activation_stats((batch.input_ids, batch.real) for batch in batches)
        means = ablation_from_means("learned", heads, mlps)
        self.n_layers = len(means.heads)
        self.means = BufferList((*means.heads, *means.mlps))
        self.stds = BufferList(stats.std() for stats in (*heads, *mlps))
        self.shifts = nn.ParameterList(torch.zeros_like(mean) for mean in self.means.buffers())

    def forward(self) -> Ablation:
        """The current ablation, differentiable in the learned shifts."""
        per_node_kind = zip(self.means.buffers(), self.stds.buffers(), self.shifts, strict=True)
        values = [mean + std * shift for mean, std, shift in per_node_kind]
        heads, mlps = tuple(values[: self.n_layers]), tuple(values[self.n_layers :])
        return Ablation("learned", heads, mlps, self.trained_up_to)

    def refit(
        self,
        masked_lm: MaskedLM,
        masks: Tensor,
        train: BatchSource,
        selection: BatchSource,
        bar: ProgressBar = no_bar,
        objective: ObjectiveName = "kl",
        rows_per_text: int = REFIT_ROWS_PER_TEXT,
    ) -> Ablation:
        """Train the constants further for discrete masks; keep the better of old and new on the selection texts.

        Args:
            masked_lm: The model; it is left with the ablation that is returned.
            masks: Boolean, shape (groups, sizes, nodes).
            train: The training split.
            selection: The texts on which discrete masks are selected.
            bar: Shows the progress.
            objective: What is minimised.
            rows_per_text: Rows of a text that memory has room for in a step.
        """
        before = self._evaluate(masked_lm, masks, selection, objective)
        self._train(masked_lm, masks, train, bar, objective, min(rows_per_text, REFIT_ROWS_PER_TEXT, masks.shape[1]))
        after = self._evaluate(masked_lm, masks, selection, objective)
        masked_lm.ablation = min(before, after, key=lambda pair: pair[0])[1]
        return masked_lm.ablation

    def _evaluate(
        self, masked_lm: MaskedLM, masks: Tensor, selection: BatchSource, objective: ObjectiveName
    ) -> tuple[float, Ablation]:
        """Mean log KL of the masks under the current constants, and these constants."""
        masked_lm.ablation = self().detach()
        scorer = MaskScorer(masked_lm, selection(), range(len(masks)), objective)
        kl = scorer(masks.transpose(0, 1).to(masked_lm.device))
        return (kl + LOG_KL_EPS).log().mean().item(), masked_lm.ablation

    def _train(
        self,
        masked_lm: MaskedLM,
        masks: Tensor,
        train: BatchSource,
        bar: ProgressBar,
        objective: ObjectiveName,
        rows_per_text: int,
    ) -> None:
        """Minimise the log KL of the masks on the training split."""
        gates = masks.float().flatten(0, 1).to(masked_lm.device)
        n_sizes, generator = masks.shape[1], torch.Generator().manual_seed(0)
        n_steps = REFIT_STEPS * min(REFIT_ROWS_PER_TEXT, n_sizes) // rows_per_text
        optimizer = torch.optim.Adam(self.parameters(), lr=CONSTANTS_LR)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_steps)
        for batch in bar(islice(_cycle(train), n_steps), "Refit of constants", total=n_steps):
            offsets = torch.rand(batch.group.shape, generator=generator)
            mask_ids = assign_masks(batch.group.cpu(), n_sizes, rows_per_text, offsets).to(masked_lm.device)
            step = partial(self._backward, masked_lm, gates, batch.to(masked_lm.device), mask_ids, objective)
            masked_lm.row_limit.retry(step)
            optimizer.step()
            schedule.step()

    @torch.enable_grad()
    def _backward(
        self, masked_lm: MaskedLM, gates: Tensor, batch: Batch, mask_ids: Tensor, objective: ObjectiveName
    ) -> None:
        """Set the gradient of the constants on some texts."""
        self.zero_grad()
        masked_lm.ablation = self()
        masked = masked_lm(batch.input_ids, batch.scored, gates[mask_ids])
        full = masked_lm.full(batch.input_ids, batch.scored) if objective == "kl" else None
        found, inputs = losses(objective, masked_lm, batch, full, masked)
        kl, count = mean_by_mask(found, mask_ids.index_select(1, inputs), len(gates))
        (kl[count > 0] + LOG_KL_EPS).log().sum().backward()


def fit_ablation(
    name: AblationName, masked_lm: MaskedLM, masks: Tensor, data: MaskData, bar: ProgressBar = no_bar
) -> Ablation:
    """Find the values of an ablation on the training split.

    Args:
        name: The ablation.
        masked_lm: The model; its ablation changes if values are learned.
        masks: The masks for which constants are learned, boolean, shape (groups, sizes, nodes).
        data: The texts, set up, with as many groups as there are masks.
        bar: Shows the progress.
    """

    def batches(split: SplitName, loaded: ProgressBar = no_bar, shuffled: bool = False) -> Iterable[Batch]:
        loader = data.loader(split, shuffled=shuffled)
        return (batch.to(masked_lm.device) for batch in loaded(loader, "Mean ablation", brief=True))

    if name not in STORED_ABLATIONS:
        return Ablation(name)
    if name != "learned":
        return mean_ablation(name, masked_lm, batches("train", bar))
    constants = LearnedConstants(masked_lm, batches("train", bar))
    train, selection = partial(batches, "train", shuffled=True), partial(batches, "selection")
    return constants.refit(masked_lm, masks, train, selection, bar)


def begin_ablation(
    name: AblationName, masked_lm: MaskedLM, data: MaskData, bar: ProgressBar, gates: GateName
) -> LearnedConstants | None:
    """Let closed nodes emit their means over the training split, or return the constants that are to be learned.

    Ablations that store no values are left as they are.
    """
    if name not in STORED_ABLATIONS:
        return None
    loader = bar(data.loader("train"), "Mean ablation", brief=True)
    batches = (batch.to(masked_lm.device) for batch in loader)
    if name == "learned":
        return LearnedConstants(masked_lm, batches, gates)
    masked_lm.ablation = mean_ablation(name, masked_lm, batches)
    return None


def mean_ablation(name: AblationName, masked_lm: MaskedLM, batches: Iterable[Batch]) -> Ablation:
    """The ablation `mean` or `mean-positional` on some texts, see `MaskedLM.activation_stats`."""
    return masked_lm.mean_ablation(((batch.input_ids, batch.real) for batch in batches), name == "mean-positional")


def _cycle(batches: BatchSource) -> Iterator[Batch]:
    """Pass over the texts again and again; nothing is kept in between."""
    while True:
        yield from batches()
