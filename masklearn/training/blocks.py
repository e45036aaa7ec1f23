"""Blocks of groups: how many groups share a step, what is computed once for a block, and how its masks are finished."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from masklearn import ranks
from masklearn.data import Batch, BlockPlan, MaskData, require_readable
from masklearn.errors import UserError
from masklearn.gates import GateBank
from masklearn.mask_file import Mask, ModelId
from masklearn.masking import MaskedLM
from masklearn.models import dtype_name, name_of
from masklearn.objective import ObjectiveName
from masklearn.progress import ProgressBar
from masklearn.selection.discretization import DiscretizedMasks, Polish, discretize, repolish
from masklearn.selection.losses import require_answers
from masklearn.selection.polish import StepTracker, polish
from masklearn.selection.scorer import MaskScorer
from masklearn.training.block_store import BlockStore
from masklearn.training.cost import learning_tokens
from masklearn.training.learned_ablation import LearnedConstants
from masklearn.training.memory import fit_to_memory
from masklearn.training.settings import LearnerSettings

DEFAULT_TEXTS_PER_STEP = 64
"""By default so many groups share a step that it has this many texts."""
HALF_PRECISIONS = (torch.bfloat16, torch.float16)
"""Precisions of weights in which rounding can change which of two close masks is better."""
MAX_SELECTION_TEXTS = 256
"""Most texts of a group on which discrete masks are selected."""
UNTRIED = "untried_steps"
"""What a stored block calls the steps that the budget left no tokens for, one number for each of its groups."""


def choose_step_shape(
    masked_lm: MaskedLM, data: MaskData, rows_per_text: int, requested_groups: int | None
) -> tuple[tuple[int, int], str]:
    """Choose how many groups a step learns together, and on how many texts of each: as requested, or what memory fits.

    Args:
        masked_lm: The model.
        data: The texts, set up.
        rows_per_text: Rows of each text in a step.
        requested_groups: Groups to learn together; None for the default.

    Returns:
        The groups and the texts of each, at most; and a notice for the user if memory limits them.
    """
    data.use_plan(None)  # that of another learner may have had less memory
    texts = data.texts_per_group
    requested = min(requested_groups or max(1, DEFAULT_TEXTS_PER_STEP // texts), len(data.groups.names))
    groups, fitting_texts, notice = fit_to_memory(masked_lm, data.longest_text, texts, rows_per_text, requested)
    groups, fitting_texts = map(min, zip(*ranks.gathered((groups, fitting_texts)), strict=True))
    return (groups, fitting_texts if fitting_texts < texts else data.batch_size), notice


def require_fit(masked_lm: MaskedLM, data: MaskData, scope: str, objective: ObjectiveName = "kl") -> None:
    """Check that masks of a model can be learned on texts.

    Args:
        masked_lm: The model.
        data: The texts, set up.
        scope: The learner's scope.
        objective: What masks minimise.

    Raises:
        UserError: If the model cannot read the texts, if their scope is another, or if they lack answers.
    """
    if data.scope != scope:
        raise UserError(f"the learner's scope is {scope}, but the data's is {data.scope}. Give both the same")
    require_readable(data, masked_lm.layout)
    require_answers(objective, data)


@dataclass(frozen=True)
class BlockFinisher:
    """Makes discrete masks of a block's learned gates and stores them; at the end of a run it gathers all blocks."""

    masked_lm: MaskedLM
    data: MaskData
    plan: BlockPlan
    store: BlockStore
    settings: LearnerSettings
    untried_steps: list[int]
    """For every polish, how many of its steps the budget left no tokens for."""
    measures_gates: bool = True
    """Whether the KL of gates that are not yet discrete, a diagnostic, is measured."""
    score_rows: Callable[..., Tensor] | None = None
    """Runs rows of scored masks that share no prefix, as `MaskedLM.forward` does; that itself by default."""

    def finish(self, block: int, bank: GateBank, log_odds: Tensor, sizes: Tensor, bar: ProgressBar) -> None:
        """Discretise and polish the masks of a block, and store them.

        Args:
            block: The block, whose gates the bank holds.
            bank: The gates.
            log_odds: The bank's log-odds, adjusted to every size, shape (groups x restarts, sizes, nodes).
            sizes: Nodes to keep, ascending, shape (sizes,).
            bar: Shows the progress of the polish.
        """
        groups = self.plan.blocks[block]
        restarts, temperature, scorer = self.settings.restarts, self.settings.temperature[1], self._scorer(groups)
        polish_masks = self._polish(f"polish-{block}", groups, bar) if self.settings.polish else None
        draws = self.settings.sampled_kl_draws if self.measures_gates else 0
        found = discretize(bank, log_odds, sizes, scorer, restarts, temperature, polish_masks, bar, draws)
        untried = torch.full((len(groups),), scorer.tokens.untried_steps)
        self.store.put(block, groups, vars(found) | {UNTRIED: untried})

    def gather(self) -> DiscretizedMasks:
        """The masks of all groups.

        Raises:
            UserError: If a block is missing or damaged.
        """
        tensors = self.store.gather(len(self.plan.blocks))
        self.untried_steps[:] = [int(tensors.pop(UNTRIED).max())]
        return DiscretizedMasks(**tensors)

    def bank(self, found: DiscretizedMasks, sizes: Sequence[int]) -> Mask:
        """The masks of all groups as a bank, under the model's ablation."""
        return Mask(
            mask=found.mask,
            scores=found.scores,
            sizes=torch.tensor(sizes),
            graph=self.masked_lm.graph,
            model=ModelId(name_of(self.masked_lm.lm), self.settings.revision, self.masked_lm.layout.fingerprint),
            groups=self.data.groups.names,
            ablation=self.masked_lm.ablation,
            positions=self.data.positions,
            learned_texts=torch.tensor(self.data.learned_texts, dtype=torch.int64),
        )

    def refit(self, found: DiscretizedMasks, constants: LearnedConstants, bar: ProgressBar) -> DiscretizedMasks:
        """Train learned constants further for the masks of all groups, and polish the masks under the new ones."""
        train, selection = partial(self.data.loader, "train", shuffled=True), partial(self.data.loader, "selection")
        objective, rows_per_text = self.settings.objective, self.settings.rows_per_text
        constants.refit(self.masked_lm, found.mask, train, selection, bar, objective, rows_per_text)
        refitted = ranks.from_first(self.masked_lm.ablation.to(torch.device("cpu")))  # devices round differently
        self.masked_lm.ablation = refitted.to(self.masked_lm.device)
        groups = range(len(found.mask))
        scorer = self._scorer(groups)
        polish_masks = self._polish("polish-again", groups, bar) if self.settings.polish else None
        found = repolish(found, scorer, polish_masks)
        self.untried_steps.append(scorer.tokens.untried_steps)
        return found

    @property
    def notices(self) -> list[str]:
        """What the user should know about the polish of this process."""
        notices, untried = list[str](), max(self.untried_steps, default=0)
        if untried:
            notices.append(
                f"Polish used up --model.polish_budget {self.settings.polish_budget:g} with {untried} of its steps "
                "untried; the masks are the best found until then. null is no limit"
            )
        lm = self.masked_lm.lm
        if self.settings.polish and lm.dtype in HALF_PRECISIONS:
            notices.append(
                f"The model runs in {dtype_name(lm)}, whose rounding moves the KL of a mask: polish cannot tell masks "
                "apart that are closer than that. --model.dtype float32 can"
            )
        return notices

    def _polish_budget(self, groups: Sequence[int]) -> float:
        """Tokens that the polish of some groups may score: a multiple of those that learning them scores."""
        if self.settings.polish_budget is None:
            return math.inf
        tokens = learning_tokens(self.data, self.plan, self.settings.rows_per_text, groups)
        return self.settings.polish_budget * tokens

    def _scorer(self, groups: Sequence[int]) -> MaskScorer:
        """Scores masks of some groups on their selection texts, which ranks share if they share the rows of steps."""
        shared = self.plan.n_groups == 1
        texts, objective = self.selection_loader(groups), self.settings.objective
        return MaskScorer(self.masked_lm, texts, groups, objective, shared, self.score_rows)

    def selection_loader(self, groups: Sequence[int]) -> Iterable[Batch]:
        """The selection texts of some groups, as many texts at a time as a training step has rows."""
        n_texts = self.data.texts_per_group * self.settings.rows_per_text * self.plan.groups_per_block
        return self.data.loader("selection", groups, n_texts, MAX_SELECTION_TEXTS)

    def _polish(self, name: str, groups: Sequence[int], bar: ProgressBar) -> Polish:
        """The polish of some groups, followed on the progress bar; its progress is stored if texts share the masks."""
        tracker: StepTracker = lambda steps, *_: bar(steps, "Polish")  # noqa: E731
        if not self.settings.per_input:
            tracker = partial(self.store.resume_polish, name, bar=bar)
        rounds, widths, budget = self.settings.polish, self.settings.search_widths, self._polish_budget(groups)
        return partial(polish, rounds=rounds, widths=widths, tracker=tracker, budget=budget)
