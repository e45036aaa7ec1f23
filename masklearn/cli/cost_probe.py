"""What a run will cost: measured in its first steps, printed, and compared with what it took."""

import time
from contextlib import ExitStack
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from masklearn import evaluation, ranks
from masklearn.cli.cost_table import PhaseCost, cost_table, duration
from masklearn.cli.half_precision import half_precision_note
from masklearn.data import Batch, MaskData
from masklearn.masking import CompiledSteps
from masklearn.selection.baselines import random_masks
from masklearn.training.cost import (
    FORWARD_AND_BACKWARD,
    Phase,
    discretization_tokens,
    learning_tokens,
    peak_memory,
    tokens_by_block,
    tokens_per_step,
)
from masklearn.training.dealing import busy_share
from masklearn.training.learner import MaskLearner
from masklearn.training.probe import seconds_per_scored_token

PROBED_STEPS = 3
"""Steps that are timed. The first step of a process is not among them if others follow."""
POLISH_PROBE_STEPS = 6
"""The probe of polish scores about as many tokens as this many steps do."""
UNLIMITED_POLISH = 3.0
"""What polish without a budget usually takes on small models, in multiples of learning."""
UNLIMITED_NOTE = (
    f"Polish has no limit here; it usually takes about {UNLIMITED_POLISH:g} times the forwards of learning. "
    "Set one with --model.polish_budget"
)


class CostProbe(Callback):
    """Times the first steps of a run, then a short polish and the evaluation of one batch, and prints the cost.

    The steps are the run's own, and the rest reads the learner and changes nothing in it, so masks do not depend on it.

    Args:
        stop: Whether to end the run once its cost is printed.
    """

    def __init__(self, stop: bool = False) -> None:
        self.stop = stop
        self.costs: dict[Phase, PhaseCost] = {}
        """The cost that is expected, by phase; empty until it is known."""
        self._memory = ExitStack()
        self._peak: list[int] = []
        self._first_step, self._since, self._tokens = 0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        learner: MaskLearner = pl_module  # pyright: ignore[reportAssignmentType]
        self._first_step, self._since = trainer.global_step, _now_without_compiling(learner)
        self._peak = self._memory.enter_context(peak_memory(pl_module.device))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop looking at the memory, if the run was too short for a probe."""
        self._memory.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop looking at the memory."""
        self._memory.close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the step; after the last one that is probed, measure the rest and print the cost."""
        if self.costs:
            return
        learner: MaskLearner = pl_module  # pyright: ignore[reportAssignmentType]
        n_done = trainer.global_step - self._first_step
        steps_left = learner.plan.steps - self._first_step % learner.plan.steps  # of the block that the probe is in
        n_probed = min(1 + PROBED_STEPS, steps_left)
        rows = FORWARD_AND_BACKWARD * learner.settings.rows_per_text
        if n_done > 1 or n_probed == 1:
            self._tokens += rows * int(batch.real.sum())
        if n_done == 1 < n_probed:
            self._since = _now_without_compiling(learner)
        if n_done == n_probed:
            seconds = _now_without_compiling(learner) - self._since
            self._memory.close()
            with learner.clock.time("probe"):
                self._probe(trainer, learner, seconds / self._tokens)
            trainer.should_stop = trainer.should_stop or self.stop

    def _probe(self, trainer: Trainer, learner: MaskLearner, seconds_per_learning_token: float) -> None:
        """Find the cost of every phase, and print it."""
        start, data = time.monotonic(), learner.finisher.data
        of_blocks, before = self._tokens_of_steps(learner)
        learning = of_blocks - before + self._tokens_of_validation(trainer, learner)
        compiling, seconds = _compile_seconds(learner), seconds_per_learning_token * learning
        self.costs["learning"] = PhaseCost(learning, compiling + seconds, self._peak[0])
        self.costs["polish"] = self._cost_of_polish(learner, of_blocks)
        self.costs["evaluation"] = _cost_of_evaluation(learner, data)
        learned = trainer.global_step - self._first_step
        done = compiling + seconds_per_learning_token * self._tokens * learned / max(1, learned - 1)
        left = sum(cost.seconds for cost in self.costs.values()) - done
        unlimited = learner.settings.polish and learner.settings.polish_budget is None
        notes = (UNLIMITED_NOTE if unlimited else "", self._speed_up(learner))
        note = "\n".join(filter(None, (*notes, half_precision_note(learner.masked_lm.lm, left))))
        source = f"{learned} steps and a probe of {duration(time.monotonic() - start)}"
        Tqdm.write(cost_table(self.costs, left, source, note, bool(unlimited), learner.settings.polish > 0))

    def _speed_up(self, learner: MaskLearner) -> str:
        """One line: how much faster several processes are than one; empty if there is one.

        What every process does by itself is not in the estimate: loading, texts, means, and the full model's outputs.
        """
        n_ranks, plan, data = ranks.count(), learner.plan, learner.finisher.data
        if n_ranks == 1:
            return ""
        own = slowest = 1 / n_ranks  # shares of this process, and of the one that is done last
        if plan.queue:
            of_blocks = tokens_by_block(data, plan)
            to_learn = [of_blocks[block] for block in plan.queue.blocks]
            own = sum(of_blocks[block] for block in plan.expected) / sum(to_learn)
            slowest = 1 / (n_ranks * busy_share(to_learn, n_ranks))
        divided = sum(self.costs[phase].seconds for phase in ("learning", "polish")) / own
        evaluation = self.costs["evaluation"].seconds
        factor = (divided + n_ranks * evaluation) / (slowest * divided + evaluation)
        return f"{n_ranks} processes: up to {factor:.1f} times as fast as one, apart from loading model and texts"

    def _tokens_of_steps(self, learner: MaskLearner) -> tuple[float, float]:
        """Tokens of the steps of all blocks that are not finished, and of those of their steps that came before."""
        data, plan, rows = learner.finisher.data, learner.plan, learner.settings.rows_per_text
        n_learned, step = divmod(self._first_step, plan.steps)
        of_blocks = [learning_tokens(data, plan, rows, plan.blocks[block]) for block in plan.expected[n_learned:]]
        return sum(of_blocks), of_blocks[0] * step / plan.steps

    def _tokens_of_validation(self, trainer: Trainer, learner: MaskLearner) -> float:
        """Tokens that validations score in this process."""
        interval = trainer.val_check_batch
        if not trainer.limit_val_batches or not isinstance(interval, int):
            return 0.0
        n_validations = learner.plan.total_steps // interval - self._first_step // interval
        texts = learner.finisher.data.parts["validation"].ids
        return n_validations * (len(learner.sizes) + 1) * sum(map(len, texts))

    def _cost_of_polish(self, learner: MaskLearner, learning: float) -> PhaseCost:
        """Cost of discretisation and polish of blocks whose learning scores so many tokens."""
        settings, plan, data = learner.settings, learner.plan, learner.finisher.data
        budget = UNLIMITED_POLISH if settings.polish_budget is None else settings.polish_budget
        polishes = 0 if not settings.polish else 2 if settings.ablation == "learned" else 1
        groups = plan.blocks[plan.at(self._first_step)[0]]
        step = FORWARD_AND_BACKWARD * settings.rows_per_text * tokens_per_step(data, plan, groups)
        with peak_memory(learner.device) as peak:
            soft, per_token = seconds_per_scored_token(learner, min(POLISH_PROBE_STEPS * step, 0.1 * learning))
        every_group = [group for block in plan.blocks for group in block]
        share = learning / learning_tokens(data, plan, settings.rows_per_text, every_group)
        discretized = discretization_tokens(data, plan, settings, len(learner.sizes), share)
        polished = polishes * budget * learning
        seconds = (soft * discretized + per_token * polished) / learner.n_sharing
        return PhaseCost(discretized + polished, seconds, peak[0])


def _cost_of_evaluation(learner: MaskLearner, data: MaskData) -> PhaseCost:
    """Cost of the evaluation, from that of a random subgraph of every size on one batch."""
    batch: Batch = next(iter(data.loader("test")))
    n_groups, n_sizes = len(data.groups.names), len(learner.sizes)
    masks = random_masks(1, torch.tensor(learner.sizes), learner.graph.n_nodes)[0][:, None].expand(-1, n_groups, -1)
    with peak_memory(learner.device) as peak:
        if learner.device.type == "cuda":  # the first evaluation loads the operations that it needs
            evaluation.measure(learner.masked_lm, masks, [batch])
        start = time.monotonic()
        evaluation.measure(learner.masked_lm, masks, [batch])
        per_token = (time.monotonic() - start) / ((n_sizes + 1) * batch.input_ids.numel())
    n_subgraphs = evaluation.subgraphs_evaluated(
        n_sizes, batch.answers is not None, learner.settings.ablation == "resample"
    )
    lengths = sorted(map(len, data.parts["test"].ids))  # padded to the longest of each batch
    batches = [lengths[begin : begin + data.batch_size] for begin in range(0, len(lengths), data.batch_size)]
    tokens = n_subgraphs * sum(max(lengths) * len(lengths) for lengths in batches)
    return PhaseCost(tokens, per_token * tokens / ranks.count(), peak[0])


def _now_without_compiling(learner: MaskLearner) -> float:
    """The time when the device has done what it was told, on a clock that stands still while steps are compiled."""
    if learner.device.type == "cuda":
        torch.cuda.synchronize(learner.device)
    return time.monotonic() - _compile_seconds(learner)


def _compile_seconds(learner: MaskLearner) -> float:
    """Seconds that went into compiling steps so far; each shape of a step is compiled once."""
    return learner.run_rows.compile_seconds if isinstance(learner.run_rows, CompiledSteps) else 0.0
