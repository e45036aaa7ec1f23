"""Learn the few nodes that reproduce a frozen model's own predictions: the loop, told step by step."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor

from masklearn.ablation import Ablation, AblationName
from masklearn.data import Batch, MaskData, Plan
from masklearn.errors import UserError, require_finite
from masklearn.gates import GateBank, GateName, open_probability, sample
from masklearn.graph import NodeGraph
from masklearn.mask_file import Mask, ModelId
from masklearn.masking import MaskedLM
from masklearn.models import EMBEDDED, DTypeName, load_lm
from masklearn.objective import chunked_kl
from masklearn.selection.discretization import STAGES, DiscretizedMasks, discretize, repolish
from masklearn.selection.polish import LARGE_GRAPH_NODES, StepTracker
from masklearn.selection.scorer import MaskScorer
from masklearn.sizes import resolve_sizes
from masklearn.training.block_store import BlockStore, ProgressBar
from masklearn.training.budget import Lagrangian, Projected
from masklearn.training.learned_ablation import CONSTANTS_LR, LOG_KL_EPS, LearnedConstants, means
from masklearn.training.memory import fit_to_memory
from masklearn.training.rows import assign_masks, mean_by_mask
from masklearn.training.schedule import Schedule

MOST = 10**9
"""The largest count that makes sense for a flag."""
MOST_TEXTS = 256
"""Texts of a group by which discrete masks are selected, at most."""
CACHE_BYTES = 2**30
"""Full targets are kept for a whole block if they take no more than this."""
TEXTS_AT_ONCE = 64
"""Texts whose groups are learned together, where nothing else is asked for."""
SHARED_STEPS, OWN_STEPS = (300, 4), (40, 1)
"""Steps and draws where texts share masks, and where every text has its own and polish does more than steps do."""
OWN_STEPS_OF_MANY = 80
"""Steps in the latter case where there are many nodes, see `search.MANY`."""
USUAL_LR: dict[GateName, float] = {"hard-concrete": 0.4, "mean-field": 0.8}


class MaskLearner(LightningModule):
    """Learns one mask for every group and size: which nodes to keep so that the model's predictions stay what they are.

    Args:
        lm: Model: a folder, a hub id, or embedded.
        revision: Branch, tag or commit of the model on the hub.
        dtype: Precision of the frozen weights; gates and divergences are always float32.
        allow_pickle: Read weights that are no safetensors as well; such a file can run code as it is read.
        trust_remote_code: Run the Python files that come with the model, as some on the hub need it: with all that you
            may do on this machine. Name a revision that you have read.
        sizes: Nodes to keep: counts, or fractions of all nodes below 1; log:12 for 12 log-spaced sizes; or mib for
            those of the MIB benchmark. One mask each, learned side by side.
        scope: What shares its masks: dataset (all texts), input (each text has its own), or column:NAME (the texts that
            hold the same value in a column).
        max_groups: Groups that a column may make; needed above 64, or where every text has a value of its own.
        ablation: What a closed node emits: zero; its mean over the training split; its mean-positional, of every
            position by itself; resample, what it emits at the same position of the corrupted text of the pair (where
            there are no pairs, of another text); or learned, a constant that is trained along.
        family: Gates in common or apart: nested (one score vector serves every size, so smaller subgraphs lie inside
            larger ones), or independent (every size has gates of its own).
        budget: How the expected size is driven to the one asked for: projected (all gates of a mask are shifted alike,
            so that it holds at every step), or lagrangian (a penalty with a multiplier; independent sizes only).
        steps: Optimiser steps of every block of groups; by default 300, and with scope input 40, or 80 if there are 100
            nodes or more.
        draws: Gate vectors drawn for each text and step, spread over the sizes; by default 4, and 1 with scope input.
        restarts: Times to learn every mask, side by side from different noise; the best one stays.
        block: Groups learned together; by default as many as make 64 texts a step, fewer if memory asks for it.
        polish: Rounds of swaps after the masks are cut, at most, accepted on the validation split and, where that is
            small, training texts beside it (with scope input: on the text itself); each size on its own, so nested
            masks may cease to be nested. 0 for none.
        gates: hard-concrete (drawn with noise), or mean-field (each at its probability of being open, without noise);
            by default hard-concrete, and mean-field with scope input.
        lr: Learning rate: by how much, at most, a gate's log-odds of being open move in a step; by default 0.4, and 0.8
            with gates mean-field.
        temperature: Softness of the gates at the first and at the last step (dimensionless).
        seed: Seed of the gates' noise.
    """

    def __init__(
        self,
        lm: str = EMBEDDED,
        revision: str | None = None,
        dtype: DTypeName = "float32",
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
        sizes: Sequence[int | float] | str = (0.1, 0.2, 0.35, 0.5, 0.75),
        scope: str = "dataset",
        max_groups: int | None = None,
        ablation: AblationName = "zero",
        family: Literal["nested", "independent"] = "nested",
        budget: Literal["projected", "lagrangian"] = "projected",
        steps: int | None = None,
        draws: int | None = None,
        restarts: int = 1,
        block: int | None = None,
        polish: int = 4,
        gates: GateName | None = None,
        lr: float | None = None,
        temperature: tuple[float, float] = (1.0, 0.5),
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"steps": (steps, 1), "draws": (draws, 1), "restarts": (restarts, 1), "block": (block, 1)}
        for flag, (value, least) in (counts | {"polish": (polish, 0), "max_groups": (max_groups, 1)}).items():
            if value is not None and not least <= value <= MOST:
                raise UserError(f"model.{flag} is {value}; it must be at least {least} and at most {MOST}")
        for flag, value in {"lr": lr, "temperature": min(temperature)}.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"model.{flag} is {value}; it must be positive")
        if budget == "lagrangian" and family == "nested":
            raise UserError(
                "model.budget lagrangian gives every size gates of its own. Add --model.family independent, "
                "or choose --model.budget projected"
            )
        self.save_hyperparameters()
        self.lm, self.revision, self.seed = lm, revision, seed
        self.dtype_name: DTypeName = dtype
        self.trusted: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
        self.requested_sizes = sizes
        self.scope, self.max_groups = scope, max_groups
        self.ablation_name: AblationName = ablation
        self.family, self.budget_name = family, budget
        self.gates: GateName = gates or ("mean-field" if scope == "input" else "hard-concrete")
        self.lr = lr or USUAL_LR[self.gates]
        usual_steps, usual_draws = OWN_STEPS if scope == "input" else SHARED_STEPS
        self.draws, self.restarts = draws or usual_draws, restarts
        self.requested_block, self.polish_rounds = block, polish
        self.requested_steps, self.schedule = steps, Schedule(steps or usual_steps, temperature)
        self.strict_loading = False  # checkpoints leave the language model out
        self.store = BlockStore()
        """Where the masks of finished blocks go: into memory, unless it is given a folder."""
        self.bar: ProgressBar = iter
        """Shows how far the polish of the last masks has come."""
        self._targets: dict[int, Tensor] = {}
        self.size_counts: Tensor
        self._block_at_hand: int | None = None
        self.constants: LearnedConstants | None = None
        """What closed nodes emit, where that is learned."""
        self.stages: list[dict[str, float]] = []
        """For every size the KL on the way from soft gates to a discrete mask, mean over groups, on validation text."""

    # --- what is learned on -------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load the model; whatever can be wrong with it or with the sizes shows here.

        Raises:
            UserError: If the model cannot be loaded or gated, or a size does not fit it.
        """
        resampled = Ablation("resample") if self.ablation_name == "resample" else Ablation()
        self.masked_lm = MaskedLM(load_lm(self.lm, self.revision, self.dtype_name, **self.trusted), resampled)
        self.sizes = resolve_sizes(self.requested_sizes, self.graph.n_nodes)
        if self.requested_steps is None and self.scope == "input" and self.graph.n_nodes >= LARGE_GRAPH_NODES:
            self.schedule = replace(self.schedule, steps=OWN_STEPS_OF_MANY)
        self.register_buffer("size_counts", torch.tensor(self.sizes), persistent=False)

    def setup(self, stage: str) -> None:
        if not hasattr(self, "masked_lm"):
            self.load()
        if not hasattr(self, "bank"):
            self.plan_blocks(self._data)
        self._fit_ablation()

    def plan_blocks(self, data: MaskData, room: tuple[int, int] | None = None) -> str:
        """Plan which groups are learned together, and make room for the gates of one block.

        Args:
            data: The texts, set up.
            room: Groups learned together and texts of each in a step; by default what was asked for, or what fits.

        Returns:
            What there is to say about it, if anything.

        Raises:
            UserError: If the texts do not fit the model or the scope.
        """
        if data.scope != self.scope:
            raise UserError(f"the learner's scope is {self.scope}, but the data's is {data.scope}. Give both the same")
        data.require_context(self.masked_lm.context)
        remark = ""
        if room is None:
            texts, rows = data.texts_per_step(), self.draws * self.restarts
            wanted = min(self.requested_block or max(1, TEXTS_AT_ONCE // texts), len(data.groups.names))
            block, fit, remark = fit_to_memory(self.masked_lm, data.longest, texts, rows, wanted)
            room = block, fit if fit < texts else data.batch_size
        block, data.batch_size = room
        data.plan = data.planned(block, self.schedule.steps)
        self.block = max(map(len, data.plan.blocks))
        n_banks, n_sizes, n_nodes = self.block * self.restarts, len(self.sizes), self.graph.n_nodes
        self.bank = GateBank(n_banks, 1 if self.family == "nested" else n_sizes, n_nodes)
        self.budget = Projected() if self.budget_name == "projected" else Lagrangian(n_banks, n_sizes, n_nodes)
        return remark

    @property
    def _data(self) -> MaskData:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, MaskData):
            raise UserError("a MaskLearner learns on a MaskData: trainer.fit(learner, datamodule=MaskData(...))")
        return data

    @property
    def plan(self) -> Plan:
        plan = self._data.plan
        assert plan is not None, "lay_out comes first"
        return plan

    @property
    def graph(self) -> NodeGraph:
        return self.masked_lm.graph

    @property
    def ablation(self) -> Ablation:
        return self.masked_lm.ablation

    @property
    def model_id(self) -> ModelId:
        return ModelId(self.lm, self.revision, self.masked_lm.layout.fingerprint)

    def _fit_ablation(self) -> None:
        """Run the full model over the training split for what closed nodes emit, as far as that can be known."""
        batches = (batch.to(self.masked_lm.device) for batch in self._data.loader("train"))
        if self.ablation_name == "learned":
            self.constants = LearnedConstants(self.masked_lm, batches)
        elif self.ablation_name.startswith("mean"):
            self.masked_lm.ablation = means(self.masked_lm, batches, self.ablation_name == "mean-positional")

    def on_fit_start(self) -> None:
        self._detach_ablation()

    def _detach_ablation(self) -> None:
        """Let closed nodes emit what was learned up to here."""
        if self.constants is not None:
            self.masked_lm.ablation = self.constants().detach()

    def _target(self, batch: Batch) -> Tensor:
        """The full model's hidden states at the batch's scored positions, shape (positions, width)."""
        return (
            torch.cat([self._targets[i] for i in batch.text_index.tolist()])
            if self._targets
            else self.masked_lm.full(batch.input_ids, batch.scored)
        )

    # --- block after block --------------------------------------------------------------------------------------------

    @property
    def block_step(self) -> int:
        """How many steps the block at hand has had."""
        return self.plan.at(self.global_step)[1]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        block, step = self.plan.at(self.global_step)
        if block and not step and block - 1 not in self.store:
            self._discretize_block(block - 1)
        if block != self._block_at_hand:
            self._prepare_block(block)
        if not step:
            self._reset()

    def _prepare_block(self, block: int) -> None:
        """What can be known of a block before it is learned: what the full model says."""
        self._block_at_hand = block
        groups = self.plan.blocks[block]
        self._targets = self._full_targets(groups)

    def _scorer(self, groups: Sequence[int]) -> MaskScorer:
        """Who selects masks of some groups, with as many rows at a time as a training step has."""
        rows = self._data.texts_per_step() * self.draws * self.restarts * self.block
        return MaskScorer(self.masked_lm, self._data.loader("selection", groups, rows, MOST_TEXTS), groups)

    def _full_targets(self, groups: Collection[int]) -> dict[int, Tensor]:
        """The full model's hidden states at the scored positions of every text, if that is not too much to keep."""
        targets: dict[int, Tensor] = {}
        for batch in self._data.loader("train", groups):
            batch = batch.to(self.device)
            full = self.masked_lm.full(batch.input_ids, batch.scored)
            targets |= dict(zip(batch.text_index.tolist(), full.split(batch.scored.sum(1).tolist()), strict=True))
            if len(targets) * full.nbytes / len(batch.text_index) > CACHE_BYTES:
                return {}
        return targets

    def _reset(self) -> None:
        """New gates in the place of finished ones; nothing is left of what the optimiser knew of those."""
        self.bank.reset()
        self.budget.reset()
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()

    def _discretize_block(self, block: int, bar: ProgressBar = iter) -> None:
        """Cut the block's masks and store them."""
        if block != self._block_at_hand:
            self._prepare_block(block)  # a run that goes on just here
        groups = self.plan.blocks[block]
        scorer = self._scorer(groups)
        log_odds = self._settled(self.size_counts).detach()
        settings = self.restarts, self.schedule.temperature[1], self.polish_rounds, self._thorough
        found = discretize(
            self.bank, log_odds, self.size_counts, scorer, *settings, self._step_tracker(f"polish-{block}", bar)
        )
        self.store.put(block, groups, vars(found))

    def _step_tracker(self, polish: str, bar: ProgressBar) -> StepTracker:
        """Follows a polish, and keeps what it comes to on the way where that takes long."""
        return partial(self.store.resume_polish, polish, bar=bar) if self._thorough else lambda steps, *_: bar(steps)

    @property
    def _thorough(self) -> bool:
        """What is found for many texts may cost more than what is found for one."""
        return self.scope != "input"

    # --- the loop -----------------------------------------------------------------------------------------------------

    @property
    def temperature(self) -> float:
        return self.schedule.temperature_at(self.block_step)

    def target_sizes(self) -> Tensor:
        """How many gates every mask should expect to have open at this step, shape (sizes,)."""
        return self.schedule.target_at(self.block_step, self.size_counts, self.graph.n_nodes)

    def log_odds(self) -> Tensor:
        """Log-odds of every mask's gates as its budget has them now, shape (groups, sizes, nodes)."""
        return self._settled(self.target_sizes())

    def _settled(self, sizes: Tensor) -> Tensor:
        return self.budget.adjust_log_odds(self.bank.log_odds.expand(-1, len(self.sizes), -1), sizes)

    @torch.no_grad()
    def open_probabilities(self) -> Tensor:
        """P(open) of every gate, shape (groups, sizes, nodes); sums over nodes are the expected sizes."""
        return open_probability(self.log_odds())

    def expected_sizes(self) -> dict[int, float]:
        """The expected number of open gates that every size has come to, mean over the groups at hand."""
        return dict(zip(self.sizes, self.open_probabilities().sum(-1).mean(0).tolist(), strict=True))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        log_odds = self.log_odds()
        masks, noise = self._draw(batch)
        gates = log_odds.flatten(0, 1)[masks]  # (rows, inputs, nodes)
        gates = open_probability(gates) if self.gates == "mean-field" else sample(gates, self.temperature, noise)
        if self.constants is not None:
            self.masked_lm.ablation = self.constants()
        masked = self.masked_lm(batch.input_ids, batch.scored, gates, batch.corrupted)  # (rows, positions, width)
        kl = chunked_kl(self._target(batch), masked, self.masked_lm.unembed)  # (rows, positions)
        whose = masks.repeat_interleave(batch.scored.sum(1), dim=1)
        kl, count = mean_by_mask(kl, whose, log_odds[..., 0].numel())
        kl, drawn = (t.view(log_odds.shape[:2]) for t in (kl, count > 0))  # (groups, sizes)
        error = open_probability(log_odds).sum(-1) - self.target_sizes()
        price = self.budget(error, self.schedule.penalty_scale_at(self.block_step))
        # KLs of different sizes lie two orders of magnitude apart; the logarithm makes each pull by its relative change
        loss = (kl[drawn] + LOG_KL_EPS).log().sum() + price[drawn].sum()
        require_finite("loss", loss, self.global_step)
        self._error = error.detach()
        self._log_step(kl.detach(), drawn, self._error)
        return loss

    def _draw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Whose every row is, shape (rows, inputs), and its noise, shape (rows, inputs, nodes).

        A function of seed and step alone, so that a resumed run draws what it would have drawn.
        """
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.global_step) % 2**63)
        place = {group: i for i, group in enumerate(self.plan.blocks[self.plan.at(self.global_step)[0]])}
        slots = torch.tensor([place[group] for group in batch.group.tolist()])
        slots = slots * self.restarts + torch.arange(self.restarts)[:, None]  # (restarts, inputs)
        masks = assign_masks(slots, len(self.sizes), self.draws, torch.rand(slots.shape, generator=generator)).flatten(
            0, 1
        )
        noise = torch.rand((*masks.shape, self.graph.n_nodes), generator=generator)
        return masks.to(self.device), noise.to(self.device)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The gates descend, and then the budget follows."""
        step = self.block_step
        super().optimizer_step(*args, **kwargs)
        self._detach_ablation()
        penalty_scale, bound = (
            self.schedule.penalty_scale_at(step),
            self.schedule.logit_clip_at(step, self.graph.n_nodes),
        )
        self.budget.after_step(self.bank.log_odds.data, self._error, penalty_scale, bound)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.bank.log_odds.grad is not None
        require_finite("gradient", self.bank.log_odds.grad, self.global_step)

    def _log_step(self, kl: Tensor, drawn: Tensor, error: Tensor) -> None:
        """Means over the groups at hand; sizes that were not drawn this time are left out."""
        wanted, error = self.target_sizes(), error.mean(0)
        kl, drawn = (kl * drawn).sum(0) / drawn.sum(0), drawn.any(0)
        bar = {"kl": kl[drawn].mean(), "open": (wanted + error).mean(), "wanted": wanted.mean()}
        self.log_dict(bar | {"temp": self.temperature}, prog_bar=True, logger=False)
        rows = {"kl": kl, "open": wanted + error, "budget_error": error}
        if isinstance(self.budget, Lagrangian):
            rows["multiplier"] = self.budget.multiplier.mean(0)
        for name, values in rows.items():
            self.log_dict(
                {f"train/{name}/s={s}": v for s, v, d in zip(self.sizes, values, drawn.tolist(), strict=True) if d}
            )
        self.log_dict({"train/temperature": self.temperature, "train/lr": self.lr * self._rate(self.global_step)})

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """KL of the masks as they would be cut now."""
        masks = self.bank.discretize(self.size_counts)[0].float()
        gates = masks[:, None].expand(-1, len(batch.input_ids), -1)
        masked = self.masked_lm(batch.input_ids, batch.scored, gates, batch.corrupted)
        kl = chunked_kl(self.masked_lm.full(batch.input_ids, batch.scored), masked, self.masked_lm.unembed).mean(-1)
        named = {f"val/kl/s={s}": value for s, value in zip(self.sizes, kl, strict=True)}
        self.log_dict(named, batch_size=int(batch.scored.sum()))

    def configure_optimizers(self) -> Any:
        # No weight decay: it would pull log-odds to 0, where a gate is open in half of all draws. Short memories, since
        # gradients shrink by orders of magnitude as gates make up their minds, and momentum overshoots the budget.
        learned: list[dict[str, Any]] = [{"params": self.bank.parameters(), "lr": self.lr}]
        if self.constants is not None:
            learned.append({"params": self.constants.parameters(), "lr": CONSTANTS_LR})
        optimizer = torch.optim.Adam(learned, betas=(0.8, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        return self.schedule.lr_factor_at(step % self.schedule.steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the frozen weights out."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith("masked_lm.")}
        checkpoint["room"] = self.block, self._data.batch_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run goes on with the blocks and steps that it was begun with, whatever memory there is now."""
        if checkpoint["room"] != (self.block, self._data.batch_size):
            self.plan_blocks(self._data, checkpoint["room"])
        block, step = self.plan.at(checkpoint["global_step"])
        self.store.require(block if step or block - 1 in self.store else block - 1)  # cut when the next one begins

    # --- what was learned ---------------------------------------------------------------------------------------------

    def discretize(self) -> Mask:
        """The masks learned: exactly `s` nodes each. What it cost to get there is in `stages`, see `STAGES`.

        Learned constants are trained on for them, and they are polished once more under those.
        """
        self.to(self.trainer.strategy.root_device)  # Lightning leaves models on the CPU when a fit is over
        last = len(self.plan.blocks) - 1
        if last not in self.store:
            self._discretize_block(last, self.bar)
        found = DiscretizedMasks(**self.store.gather(len(self.plan.blocks)))
        if self.constants is not None:
            train, selection = (partial(self._data.loader, part) for part in ("train", "selection"))
            self.constants.refit(self.masked_lm, found.mask, train, selection)
            if self.polish_rounds:
                scorer = self._scorer(range(len(found.mask)))
                found = repolish(
                    found, scorer, self.polish_rounds, self._thorough, self._step_tracker("polish-again", self.bar)
                )
        by_size = zip(self.sizes, found.kl.mean(0).tolist(), strict=True)
        self.stages = [{"s": s, **dict(zip(STAGES, kl, strict=True))} for s, kl in by_size]
        return Mask(
            mask=found.mask,
            scores=found.scores,
            sizes=torch.tensor(self.sizes),
            graph=self.graph,
            model=self.model_id,
            groups=self._data.groups.names,
            ablation=self.ablation,
            positions=self._data.positions,
        )
