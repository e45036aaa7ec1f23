"""The LightningModule that learns masks, by gradient descent on the log-odds of gates."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from masklearn import ranks
from masklearn.ablation import AblationName
from masklearn.data import Batch
from masklearn.errors import UserError
from masklearn.gates import GateName, open_probability, sample
from masklearn.masking import CompileMode
from masklearn.models import EMBEDDED, DTypeName, ModelOrName, QuantizationName
from masklearn.objective import ObjectiveName, chunked_kl
from masklearn.selection.losses import losses
from masklearn.training.block_learner import BlockLearner
from masklearn.training.budget import Lagrangian
from masklearn.training.learned_ablation import CONSTANTS_LR, LOG_KL_EPS
from masklearn.training.rows import draw_rows, sum_by_mask
from masklearn.training.settings import BudgetName, FamilyName, GraphName, LearnerSettings, MethodName
from masklearn.training.step_log import StepResult, metrics_by_size, progress_bar_metrics


class MaskLearner(BlockLearner):
    """Learns a mask for every group and size: that many nodes whose predictions are close to the full model's.

    It is a heuristic; a smaller KL may be possible at the same size.

    Args:
        lm: Model: a folder, a hub id, a GGUF file, the folder of a PEFT adapter, or embedded. From Python also a model
            that is loaded already, which is frozen in place.
        revision: Branch, tag or commit of the model on the hub.
        dtype: Precision of the frozen weights; gates and divergences are always float32.
        allow_pickle: Also read weights that are not safetensors; such a file can run code when it is read.
        trust_remote_code: Run the Python files that come with the model, which some models on the hub need. They can do
            anything that you may do on this machine; name a revision that you have read.
        sizes: Nodes to keep: counts, or fractions of all nodes below 1; log:12 for 12 log-spaced sizes; or mib for
            those of the MIB benchmark (mib-input if the embedding counts as a node there). Each size gets a mask; all
            are learned together.
        scope: Which texts share masks: dataset (all), input (none: each text has its own), or column:NAME (the texts
            with the same value in a column).
        max_groups: Most groups that a column may make; needed for more than 64, or if every text has its own value.
        ablation: Output of a closed node: zero; its mean over the training split; its mean-positional, one mean for
            every position; resample, its output at the same position of the corrupted text of the pair (or of another
            text if there are no pairs); or learned, a constant that is trained along with the gates.
        family: Whether sizes share gates: nested (one score vector for every size, so that smaller subgraphs lie inside
            larger ones), or independent (every size has its own gates).
        budget: How the expected size is driven to the requested one: projected (all log-odds of a mask are shifted by
            the same amount, so that it holds at every step), or lagrangian (a penalty with a multiplier; independent
            sizes only).
        steps: Optimiser steps of every block of groups; by default 300, or 1200 if the model has 60 nodes or more; with
            scope input 80, or 240.
        draws: Gate vectors drawn for each text and step, spread over the sizes; by default 4; 1 from 60 nodes on, or
            with scope input.
        restarts: Times to learn every mask, in parallel with different noise (mean-field has none); the best is kept.
        block: Groups learned together; by default as many as make 64 texts a step, fewer if memory requires it.
        polish: Most rounds of node swaps after discretisation. A swap is accepted if it lowers the KL on the validation
            split, to which training texts are added if it is small (with scope input: on the text itself). Every size
            is polished separately, so nested masks may cease to be nested. 0 for no polish.
        polish_budget: Most tokens that polish may score, as a multiple of those that learning scores (a forward counts
            one for each token, a backward two); null for no limit. Polish tries what gains most first, and keeps the
            masks found so far when the budget is used up.
        gates: hard-concrete (drawn with noise), or mean-field (each gate at its probability of being open, without
            noise); by default hard-concrete, and mean-field with scope input.
        lr: Learning rate: how far log-odds move in a step, at most; by default 0.4, and 0.8 with gates mean-field.
        temperature: Softness of hard-concrete gates at the first and at the last step (dimensionless).
        compile: Whether a GPU runs compiled training steps, masks that polish scores, and KLs of many logits: auto
            (steps and masks as CUDA graphs, if the model is so small that launching operations takes the time), true
            (steps also on a CPU), or false. Results change by rounding only. What cannot be compiled runs as it is.
        seed: Seed of the gates' noise.
        sampled_kl_draws: Gate vectors drawn of every mask for the sampled KL in the table of stages, a diagnostic that
            no mask depends on; every draw costs as much as scoring the masks once.
        graph: What a subgraph is made of: nodes (heads and MLPs), or of every text by itself edges (one for every head,
            target and source, and those of MLPs and residual stream) or positions (nodes at single tokens), in shares.
        objective: What masks minimise: kl (from the full model's distribution); logit-diff (-log sigmoid of the logit
            difference between right and wrong answers); or cross-entropy (of right answers). The last two need answers.
        method: How subgraphs are found: learned, or with graph edges s-trace (grown backward from the output, the edge
            of largest norm first). Learned edges start from s-trace, positions from attribution or norm; of the
            flags of learning both follow steps (by default 120, positions 180), lr (0.4) and temperature.
        device_map: Spreads a model that does not fit on one GPU: auto (over GPUs, then main memory, then the disk),
            balanced (as much on each GPU), or a JSON file from module names to GPU numbers, cpu or disk. Weights in
            main memory or on the disk are read in every pass, which is slow.
        quantization: Weights in 8bit or 4bit, through bitsandbytes; dtype is then the precision of activations.
    """

    def __init__(
        self,
        lm: ModelOrName = EMBEDDED,
        revision: str | None = None,
        dtype: DTypeName = "float32",
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
        sizes: Sequence[int | float] | str = (0.1, 0.2, 0.35, 0.5, 0.75),
        scope: str = "dataset",
        max_groups: int | None = None,
        ablation: AblationName = "zero",
        family: FamilyName = "nested",
        budget: BudgetName = "projected",
        steps: int | None = None,
        draws: int | None = None,
        restarts: int = 1,
        block: int | None = None,
        polish: int = 4,
        polish_budget: float | None = 2.0,
        gates: GateName | None = None,
        lr: float | None = None,
        temperature: tuple[float, float] = (1.0, 0.5),
        compile: CompileMode = "auto",
        seed: int = 0,
        sampled_kl_draws: int = 1,
        graph: GraphName = "nodes",
        method: MethodName = "learned",
        objective: ObjectiveName = "kl",
        device_map: str | None = None,
        quantization: QuantizationName | None = None,
    ) -> None:
        settings = LearnerSettings(
            lm, revision, dtype, allow_pickle, trust_remote_code, sizes, scope, max_groups, ablation, family, budget,
            steps, draws, restarts, block, polish, polish_budget, gates, lr, temperature, compile, seed,
            sampled_kl_draws, graph, method, objective, device_map, quantization,
        )  # fmt: skip
        super().__init__(settings)
        self._summed_in_step = -1, torch.empty(0)
        """A step, and what the ranks that share its rows have exchanged in it."""
        self.save_hyperparameters(ignore=[] if isinstance(lm, str) else ["lm"])

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a checkpoint holds the gates of a run under way, without the model and the texts.

        Raises:
            UserError: How to load masks, and how to resume a run.
        """
        raise UserError(
            "a checkpoint holds a run under way, without its model and texts. Load finished masks with "
            'masklearn.Mask.load("runs/my-run/mask.safetensors"); resume a run with trainer.fit(learner, '
            "datamodule=data, ckpt_path=checkpoint)"
        )

    @property
    def temperature(self) -> float:
        """Softness of the gates at the current step (dimensionless)."""
        return self.schedule.temperature_at(self.block_step)

    def target_sizes(self) -> Tensor:
        """Expected open gates that every mask should have at the current step, shape (sizes,)."""
        return self.schedule.target_at(self.block_step, self.size_counts, self.graph.n_nodes)

    def log_odds(self) -> Tensor:
        """Log-odds of the gates, adjusted to the current target sizes, shape (groups x restarts, sizes, nodes)."""
        return self._adjusted(self.target_sizes())

    @torch.no_grad()
    def open_probabilities(self) -> Tensor:
        """P(open) of every gate, shape (groups x restarts, sizes, nodes); sums over nodes are the expected sizes."""
        return open_probability(self.log_odds())

    def expected_sizes(self) -> dict[int, float]:
        """The expected number of open gates of every size, mean over the groups of the current block."""
        return dict(zip(self.sizes, self.open_probabilities().sum(-1).mean(0).tolist(), strict=True))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a step: the log KL (or loss of answers) of every sampled mask plus its penalty, in nats."""
        log_odds = self.log_odds()
        mask_ids, noise = self._draw_rows(batch)
        weight = 1.0
        if self.n_sharing > 1:
            kept, weight = batch.own_inputs()
            batch, mask_ids, noise = batch.select(kept), mask_ids[:, kept], noise[:, kept]
        gates = self._gates(log_odds.flatten(0, 1)[mask_ids], noise)  # (rows, inputs, nodes)
        if self.constants is not None:
            self.masked_lm.ablation = self.constants()
        masked = self.run_rows(batch.input_ids, batch.positions, gates, batch.corrupted)  # (rows, positions, width)
        found, inputs = losses(self.settings.objective, self.masked_lm, batch, self._targets(batch), masked)
        of_masks = sum_by_mask(found, mask_ids.index_select(1, inputs), log_odds[..., 0].numel())
        total, count = self._of_all_ranks(weight * of_masks).view(2, *log_odds.shape[:2])  # (groups x restarts, sizes)
        kl, sampled = total / count.clamp_min(1), (count > 0).float()
        error = self._size_error(log_odds) if self.budget.has_penalty else torch.zeros_like(kl)
        penalty = self.budget(error, self.schedule.penalty_scale_at(self.block_step))
        # The KLs of different sizes differ by orders of magnitude; the gradient of the log is relative to the KL.
        loss = (((kl + LOG_KL_EPS).log() + penalty / self.n_sharing) * sampled).sum()
        self._loss, self._error = loss.detach(), error.detach()
        self._to_log = kl.detach(), sampled, log_odds.detach()
        return loss

    def _of_all_ranks(self, sums: Tensor) -> Tensor:
        """The sums over the ranks that share a step, exchanged once, as one may repeat it; the gradient of own rows."""
        if self.n_sharing == 1:
            return sums
        step, total = self._summed_in_step
        if step != self.global_step:
            total = ranks.summed(sums)
            self._summed_in_step = self.global_step, total
        return sums + (total - sums).detach()

    def _size_error(self, log_odds: Tensor) -> Tensor:
        """Expected minus target number of open gates, shape (groups x restarts, sizes)."""
        return open_probability(log_odds).sum(-1) - self.target_sizes()

    def _draw_rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mask ids and noise of a step, see `draw_rows`: functions of seed and step alone, so that a run can resume."""
        seed = (self.settings.seed * 1_000_003 + self.plan.number(self.global_step)) % 2**63
        shape = self.settings.restarts, len(self.sizes), self.settings.draws_per_text, self.graph.n_nodes
        return draw_rows(self._index_in_block[batch.group], *shape, seed)

    def _gates(self, log_odds: Tensor, noise: Tensor) -> Tensor:
        """Gates of the rows, shape (rows, inputs, nodes): drawn with the noise, or without it if mean-field."""
        if self.settings.gate_kind == "mean-field":
            return open_probability(log_odds)
        return sample(log_odds, self.temperature, noise)

    def _targets(self, batch: Batch) -> Tensor | None:
        """The full model's hidden states at the batch's scored positions, shape (positions, width); for the KL only."""
        if not self.settings.by_kl:
            return None
        if self._full_targets:
            return self._full_targets.of(batch)
        return self.masked_lm.full(batch.input_ids, batch.positions, check=False)  # the guard checks the loss

    def _is_logged(self, step: int) -> bool:
        """Whether Lightning logs at a step of the run."""
        every: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  (set at run time)
        return (step + 1) % every == 0

    def _log_step(self, kl: Tensor, sampled: Tensor, log_odds: Tensor) -> None:
        """Take the KL of the sampled masks into the means, and log these if it is time to."""
        self.step_log.add(kl, sampled)
        if not self._is_logged(self.global_step):
            return
        result = StepResult(self.step_log.mean_kl(), self._size_error(log_odds), self.target_sizes())
        multiplier = self.budget.multiplier if isinstance(self.budget, Lagrangian) else None
        self.log_dict(
            progress_bar_metrics(result, self.temperature, self.settings.loss_name), prog_bar=True, logger=False
        )
        self.log_dict(metrics_by_size(result, self.sizes, multiplier, loss=self.settings.loss_name))
        lr = self.settings.learning_rate * self._lr_factor(self.global_step)
        self.log_dict({"train/temperature": self.temperature, "train/lr": lr})

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimiser skip a step whose loss or gradient is not finite, and stop the run.

        On the CPU the run stops at once. Elsewhere it stops at the next step that is logged, or at the end of a block,
        as reading the flag any earlier would wait for the device; until then all updates are skipped.
        """
        learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.n_sharing > 1:
            ranks.sum_gradients(learned)
        self._log_step(*self._to_log)  # not in the training step, which is repeated if memory runs out
        step = self.global_step
        skips = self.guard.note(self._loss, learned, step)
        optimizer.found_inf = skips  # pyright: ignore[reportAttributeAccessIssue]  (read by fused optimisers)
        if self.budget.has_penalty:
            self._error = self._error * (1 - skips)
        if self.device.type == "cpu" or self._is_logged(step) or (step + 1) % self.plan.steps == 0:
            self.guard.check()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Descend on the gates, then update the budget. If memory runs out, forward and backward begin again."""
        step, retry = self.block_step, self.masked_lm.row_limit.retry
        assert optimizer_closure is not None
        super().optimizer_step(epoch, batch_idx, optimizer, lambda: retry(optimizer_closure))
        self._detach_ablation()
        penalty_scale = self.schedule.penalty_scale_at(step)
        logit_clip = self.schedule.logit_clip_at(step, self.graph.n_nodes)
        self.budget.after_step(self.bank.log_odds.data, self._error, penalty_scale, logit_clip)

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the KL of the masks that the gates would give now, where all texts share them."""
        if self.plan.n_groups > 1:
            return
        masks, n_positions = self.bank.discretize(self.size_counts)[0].float(), int(batch.scored.sum())
        kept, weight = batch.own_inputs()
        batch = batch.select(kept)
        masked = self.masked_lm(
            batch.input_ids, batch.scored, masks[:, None].expand(-1, len(batch.input_ids), -1), batch.corrupted
        )
        kl = chunked_kl(self.masked_lm.full(batch.input_ids, batch.scored), masked, self.masked_lm.unembed).sum(-1)
        kl = ranks.summed(weight * kl) / n_positions
        metrics = {f"val/kl/s={size}": value for size, value in zip(self.sizes, kl, strict=True)}
        self.log_dict(metrics, batch_size=n_positions)

    def configure_optimizers(self) -> Any:
        """Adam on the log-odds, and on the learned constants at their own rate."""
        # No weight decay: it would pull log-odds to 0, where a gate is open in half of all draws. The moments average
        # over few steps: gradients shrink by orders of magnitude as gates settle, and momentum overshoots the budget.
        params: list[dict[str, Any]] = [{"params": self.bank.parameters(), "lr": self.settings.learning_rate}]
        if self.constants is not None:
            params.append({"params": self.constants.parameters(), "lr": CONSTANTS_LR})
        optimizer = torch.optim.Adam(params, betas=(0.8, 0.95), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lr_factor(self, step: int) -> float:
        """Factor on the learning rate at a step of the run."""
        return self.schedule.lr_factor_at(step % self.schedule.steps)
