"""The base of the learner: groups are learned in blocks, one after the other, and a stopped run can resume in any."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from masklearn import ranks
from masklearn.ablation import Ablation
from masklearn.data import Batch, BlockPlan, MaskData
from masklearn.errors import UserError
from masklearn.gates import GateBank
from masklearn.graph import NodeGraph
from masklearn.mask_file import Mask
from masklearn.masking import MaskedLM, fused_kl, scoring_forward, step_forward
from masklearn.models import load_lm
from masklearn.progress import ProgressBar, no_bar
from masklearn.selection.discretization import STAGES
from masklearn.sizes import resolve_sizes
from masklearn.training.block_store import BlockStore
from masklearn.training.blocks import BlockFinisher, choose_step_shape, require_fit
from masklearn.training.budget import Lagrangian, Projected
from masklearn.training.cost import PhaseClock
from masklearn.training.dealing import deal, learned_before, resumed, step_shape_of
from masklearn.training.full_targets import FullTargets, index_in_block
from masklearn.training.learned_ablation import LearnedConstants, begin_ablation
from masklearn.training.settings import LearnerSettings
from masklearn.training.staying import StaysOnDevice
from masklearn.training.step_guard import StepGuard
from masklearn.training.step_log import StepLog
from masklearn.training.trainer import require_plain_trainer


class BlockLearner(StaysOnDevice):
    """Loads the model, plans the blocks, begins and finishes each, and gathers the masks; subclasses learn the gates.

    Args:
        settings: All settings of the run.
    """

    def __init__(self, settings: LearnerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.schedule = settings.schedule()
        self.strict_loading = False  # checkpoints leave the language model out
        self.size_counts: Tensor
        """The sizes in nodes, ascending, shape (sizes,)."""
        self.constants: LearnedConstants | None = None
        """Outputs of closed nodes, if the ablation is learned."""
        self.store = BlockStore()
        """Holds the masks of finished blocks: in memory, unless it is replaced by one with a folder."""
        self.bar: ProgressBar = no_bar
        """Shows the progress of everything but the steps themselves, which the trainer shows."""
        self.clock = PhaseClock()  # of polish; whoever calls the trainer times learning
        self.notices: list[str] = []
        """What the user should know about the masks, once they are discrete."""
        self.untried_steps: list[int] = []  # for which the budget of each polish of this process left no tokens
        self.stages: list[dict[str, float]] = []
        """For every size the KL at each of the `STAGES`: in nats, mean over groups, on the texts that select masks."""
        self.measures_gates = True  # otherwise the KL of gates that are not yet discrete is NaN in `stages`
        self._loaded = False
        self._bank: Mask | None = None  # once the gates are discrete
        self._plan: BlockPlan | None = None
        self._prepared_block: int | None = None
        self._full_targets: FullTargets | None = None  # of the prepared block, if they are kept
        self._index_in_block: Tensor  # of every group of the run, on the device; shape (groups,)
        self.guard = StepGuard()
        self.run_rows: Callable[..., Tensor]  # as `MaskedLM.forward`, compiled or not; set when training starts
        self.score_rows: Callable[..., Tensor] | None = None  # likewise for masks that are scored

    # --- before training ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Prepare for the texts of the trainer's data module."""
        require_plain_trainer(self.trainer)
        if not self._loaded:
            self.load()
            self.masked_lm.move(self.trainer.strategy.root_device)  # blocks are planned for the memory there
        self.prepare(self._data)

    def prepare(self, data: MaskData) -> None:
        """Load the model and plan the blocks, if that is still to do, and fit the ablation to training texts.

        Raises:
            UserError: If the model cannot be loaded, or the texts do not fit it.
        """
        if not self._loaded:
            self.load()
        if self._plan is None or data.plan is not self._plan:
            self.plan_blocks(data)
            self.store.forget()  # masks of other texts that this learner was fitted to
        self.constants = begin_ablation(self.settings.ablation, self.masked_lm, data, self.bar, self.settings.gate_kind)

    def load(self) -> None:
        """Load the model and resolve the sizes.

        Raises:
            UserError: If the model cannot be loaded or masked, or a size does not fit it.
        """
        lm = load_lm(self.settings.lm, self.settings.revision, self.settings.dtype, **self.settings.loading)
        self.use(MaskedLM(lm, Ablation("resample") if self.settings.ablation == "resample" else Ablation()))

    def use(self, masked_lm: MaskedLM) -> None:
        """Learn masks of this model instead of loading the one that the settings name; resolves the sizes.

        Raises:
            UserError: If a size does not fit the model, or if the graph is of edges.
        """
        self.settings.require_nodes()
        self.masked_lm, self.settings = masked_lm, self.settings.of_graph(masked_lm.graph.n_nodes)
        self.sizes = resolve_sizes(self.settings.sizes, self.graph.n_nodes)
        self.schedule = self.settings.schedule()
        self.register_buffer("size_counts", torch.tensor(self.sizes), persistent=False)
        self._loaded = True

    def plan_blocks(self, data: MaskData, step_shape: tuple[int, int] | None = None) -> str:
        """Plan which groups are learned together, hand the plan to the data, and create the gates of one block.

        Args:
            data: The texts, set up.
            step_shape: Groups of a block, and texts of each in a step; by default as requested, or what memory fits.

        Returns:
            A notice for the user if memory limits the blocks, otherwise an empty string.

        Raises:
            UserError: If the texts do not fit the model or the scope.
        """
        settings = self.settings
        require_fit(self.masked_lm, data, settings.scope, settings.objective)
        notice = ""
        if step_shape is None:
            step_shape, notice = choose_step_shape(self.masked_lm, data, settings.rows_per_text, settings.block)
        groups_per_block, batch_size = step_shape
        self._use_plan(data.block_plan(groups_per_block, self.schedule.steps, batch_size), data)
        n_groups, n_sizes, n_nodes = self.plan.groups_per_block * settings.restarts, len(self.sizes), self.graph.n_nodes
        self.step_log = StepLog(n_sizes)
        self.bank = GateBank(n_groups, 1 if settings.family == "nested" else n_sizes, n_nodes)
        self.budget = Projected() if settings.budget == "projected" else Lagrangian(n_groups, n_sizes, n_nodes)
        return notice

    def deal_blocks(self, data: MaskData, shard: tuple[int, int] = (0, 1)) -> None:
        """Leave this process its share of the blocks that are to be learned, see `deal`."""
        self._use_plan(deal(self.plan, self.store, shard), data)

    def _use_plan(self, plan: BlockPlan, data: MaskData) -> None:
        self._plan, self._prepared_block = plan, None
        data.use_plan(plan)

    @property
    def _data(self) -> MaskData:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, MaskData):
            raise UserError("a MaskLearner learns on a MaskData: trainer.fit(learner, datamodule=MaskData(...))")
        return data

    @property
    def plan(self) -> BlockPlan:
        """The blocks of the run."""
        assert self._plan is not None, "plan_blocks has not been called"
        return self._plan

    @property
    def n_sharing(self) -> int:
        """Processes that share the rows of a step: all if there is one group; otherwise each learns its own blocks."""
        return ranks.count() if ranks.count() > 1 and self.plan.n_groups == 1 else 1

    @property
    def graph(self) -> NodeGraph:
        """The nodes of the model."""
        return self.masked_lm.graph

    def on_train_epoch_end(self) -> None:
        """Stop at the end of the plan, whatever number of epochs the trainer was given."""
        self.trainer.should_stop = self.trainer.should_stop or not self.plan.goes_on(self.global_step)

    # --- one block after the other ------------------------------------------------------------------------------------

    @property
    def block_step(self) -> int:
        """Number of the current step in its block."""
        return self.plan.at(self.global_step)[1]

    def on_fit_start(self) -> None:
        """Start from the constants that a checkpoint may have restored, and compile steps if that pays."""
        self._bank, self.guard = None, StepGuard().to(self.device)
        self._detach_ablation()
        self.masked_lm.ablation = self.masked_lm.ablation.to(self.masked_lm.device)  # Lightning has moved the model
        rows = self.plan.groups_per_block * self._data.texts_per_group * self.settings.rows_per_text
        self.run_rows = step_forward(self.masked_lm, self.settings.compile, rows * self._data.longest_text)
        self.score_rows = scoring_forward(self.masked_lm, self.settings.compile)
        self.masked_lm.unembed.fused_kl = fused_kl(self.masked_lm, self.settings.compile)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Finish the previous block at the first step of a block, and prepare the block of this step."""
        block, step = self.plan.at(self.global_step)
        if step == 0:
            self._finish_learned_block()
            self._reset()
        if block != self._prepared_block:  # a new block, or a run that resumes within one
            groups = self.plan.blocks[block]
            how = self.masked_lm, self._data, groups, self.plan.steps, self.bar
            self._full_targets = FullTargets.of_block(*how) if self.settings.by_kl else None
            self._index_in_block = index_in_block(groups, self.plan.n_groups).to(self.device)
            self._prepared_block = block

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Finish a block of a queue before the next one is taken: while this rank polishes, others may take it."""
        if self.plan.queue and self.global_step % self.plan.steps == 0:
            self._finish_learned_block()

    def _finish_learned_block(self) -> None:
        """Store the masks of the block learned last, whose gates the bank still holds, unless they are stored.

        The block's checkpoint is saved before, so that a run killed during the polish resumes with the same gates here.
        """
        n_learned = self.global_step // self.plan.steps
        if n_learned and (block := self.plan.own[n_learned - 1]) not in self.store:
            log_odds = self._adjusted(self.size_counts).detach()
            bar = self.bar if n_learned == len(self.plan.expected) else partial(self.bar, brief=True)
            with self.clock.time("polish"):
                self.finisher.finish(block, self.bank, log_odds, self.size_counts, bar)

    @property
    def finisher(self) -> BlockFinisher:
        """Makes discrete masks of the gates of this run's blocks."""
        how = self.settings, self.untried_steps, self.measures_gates, self.score_rows
        return BlockFinisher(self.masked_lm, self._data, self.plan, self.store, *how)

    def _adjusted(self, sizes: Tensor) -> Tensor:
        """The bank's log-odds, adjusted to expect these sizes, shape (groups x restarts, sizes, nodes)."""
        return self.budget.adjust_log_odds(self.bank.log_odds.expand(-1, len(self.sizes), -1), sizes)

    def _reset(self) -> None:
        """Start a block with new gates; nothing is left of the optimiser's state."""
        self.bank.reset()
        self.step_log.reset()
        self.budget.reset()
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()

    def _detach_ablation(self) -> None:
        """Let closed nodes emit the constants learned so far, without gradients."""
        if self.constants is not None:
            self.masked_lm.ablation = self.constants().detach()

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the frozen weights; add the step shape, which depends on the memory at the start of the run.

        Raises:
            NonFiniteLoss: If updates have been skipped, so that the state is that of an earlier step.
        """
        self.guard.check(before=self.global_step)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith("masked_lm.")}
        checkpoint["step_shape"], checkpoint["blocks"] = self.plan.step_shape, list(self.plan.own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Plan the blocks as they were when the run began, and check that the finished ones are there.

        Raises:
            UserError: If another version wrote the checkpoint, or a finished block is missing or damaged.
        """
        if (step_shape := step_shape_of(checkpoint)) != self.plan.step_shape:
            self.plan_blocks(self._data, step_shape)
        self._use_plan(resumed(self.plan, checkpoint.get("blocks")), self._data)
        self.store.require(learned_before(self.plan, self.store, checkpoint["global_step"]))

    # --- the result ---------------------------------------------------------------------------------------------------

    def finish_blocks(self) -> None:
        """Store the masks of the last block, and wait until other processes have stored theirs."""
        self.to(self.trainer.strategy.root_device)  # where it is, unless a caller or an error has moved it
        self._finish_learned_block()
        ranks.gathered(None)

    def discretize(self) -> Mask:
        """The learned masks, with exactly `s` nodes each; also sets `stages`. They are made once.

        Learned constants are trained further for these masks, and the masks polished once more under the new constants.

        Raises:
            UserError: If the masks of a block are missing or damaged.
        """
        if self._bank is not None:
            return self._bank
        self.finish_blocks()
        found = self.finisher.gather()
        if self.constants is not None:
            with self.clock.time("polish"):
                found = self.finisher.refit(found, self.constants, self.bar)
        self.notices = self.finisher.notices
        by_size = zip(self.sizes, found.kl.mean(0).tolist(), strict=True)
        self.stages = [{"s": size, **dict(zip(STAGES, kl, strict=True))} for size, kl in by_size]
        self._bank = self.finisher.bank(found, self.sizes)
        return self._bank
