"""Learn the few nodes that reproduce a frozen model's own predictions: the loop, told step by step."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor

from masklearn.ablation import Ablation, AblationName
from masklearn.adapter import EMBEDDED, DTypeName, load_lm
from masklearn.artifact import Mask, ModelId
from masklearn.budget import Lagrangian, Projected, Schedule, resolve_sizes
from masklearn.data import Batch, MaskData
from masklearn.errors import NonFiniteLoss, UserError
from masklearn.gates import GateBank, open_probability, sample
from masklearn.graph import NodeGraph
from masklearn.masked_lm import MaskedLM
from masklearn.objective import chunked_kl

FLOOR = 0.003
"""Nats added to a KL before its logarithm is taken, so that a mask that is good enough stops pulling."""
CACHE_BYTES = 2**30
"""Full targets are kept for the whole run if they take no more than this."""


class MaskLearner(LightningModule):
    """Learns one mask for every size: which nodes to keep so that the model's predictions stay what they are.

    Args:
        lm: Model: a folder, a hub id, or embedded.
        revision: Branch, tag or commit of the model on the hub.
        dtype: Precision of the frozen weights; gates and divergences are always float32.
        sizes: Nodes to keep: counts, or fractions of all nodes below 1; one mask each, learned side by side.
        ablation: What a closed node emits: zero, or its mean over the training split.
        family: Gates in common or apart: nested (one score vector serves every size, so smaller subgraphs lie inside
            larger ones), or independent (every size has gates of its own).
        budget: How the expected size is driven to the one asked for: projected (all gates of a mask are shifted alike,
            so that it holds at every step), or lagrangian (a penalty with a multiplier; independent sizes only).
        steps: Optimiser steps.
        lr: Learning rate: by how much, at most, a gate's log-odds of being open move in a step.
        temperature: Softness of the gates at the first and at the last step (dimensionless).
        seed: Seed of the gates' noise.
    """

    def __init__(
        self,
        lm: str = EMBEDDED,
        revision: str | None = None,
        dtype: DTypeName = "float32",
        sizes: Sequence[int | float] = (0.1, 0.2, 0.35, 0.5, 0.75),
        ablation: AblationName = "zero",
        family: Literal["nested", "independent"] = "nested",
        budget: Literal["projected", "lagrangian"] = "projected",
        steps: int = 300,
        lr: float = 0.3,
        temperature: tuple[float, float] = (1.0, 0.5),
        seed: int = 0,
    ) -> None:
        super().__init__()
        for flag, value in {"steps": steps, "lr": lr, "temperature": min(temperature)}.items():
            if not 0 < value < math.inf:
                raise UserError(
                    f"model.{flag} is {value}; it must be {'at least 1' if flag == 'steps' else 'positive'}"
                )
        if budget == "lagrangian" and family == "nested":
            raise UserError(
                "model.budget lagrangian gives every size gates of its own. Add --model.family independent, "
                "or choose --model.budget projected"
            )
        self.save_hyperparameters()
        self.lm, self.revision, self.lr, self.seed = lm, revision, lr, seed
        self.dtype_name: DTypeName = dtype
        self.asked_sizes = list(sizes)
        self.ablation_name: AblationName = ablation
        self.family, self.budget_name = family, budget
        self.schedule = Schedule(steps, temperature)
        self.strict_loading = False  # checkpoints leave the language model out
        self._targets: list[Tensor] = []

    # --- what is learned on -------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load the model and lay out the bank; whatever can be wrong with either shows here.

        Raises:
            UserError: If the model cannot be loaded or gated, or a size does not fit it.
        """
        self.masked_lm = MaskedLM(load_lm(self.lm, self.revision, self.dtype_name))
        self.sizes = resolve_sizes(self.asked_sizes, self.graph.n_nodes)
        n_sizes, n_nodes = len(self.sizes), self.graph.n_nodes
        self.bank = GateBank(1, 1 if self.family == "nested" else n_sizes, n_nodes)
        self.budget = Projected() if self.budget_name == "projected" else Lagrangian(1, n_sizes, n_nodes)

    def setup(self, stage: str) -> None:
        if not hasattr(self, "bank"):
            self.load()
        self._data.require_context(self.masked_lm.context)

    @property
    def _data(self) -> MaskData:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, MaskData):
            raise UserError("a MaskLearner learns on a MaskData: trainer.fit(learner, datamodule=MaskData(...))")
        return data

    @property
    def graph(self) -> NodeGraph:
        return self.masked_lm.graph

    @property
    def ablation(self) -> Ablation:
        return self.masked_lm.ablation

    @property
    def model_id(self) -> ModelId:
        return ModelId(self.lm, self.revision, self.masked_lm.layout.fingerprint)

    def on_fit_start(self) -> None:
        """Run the full model over the training split: once for the ablation's values, once to keep what it says."""
        if self.ablation_name == "mean":
            batches = (batch.to(self.device) for batch in self._data.loader("train"))
            self.masked_lm.ablation = self.masked_lm.mean_ablation((b.input_ids, b.real) for b in batches)
        kept = 0
        for batch in self._data.loader("train"):
            full = self._full(batch.to(self.device))
            kept += full.nbytes
            if kept > CACHE_BYTES:
                self._targets = []
                return
            self._targets += full.split(batch.scored.sum(1).tolist())

    def _full(self, batch: Batch) -> Tensor:
        return self.masked_lm.full(batch.input_ids, batch.scored)

    def _target(self, batch: Batch) -> Tensor:
        """The full model's hidden states at the batch's scored positions, shape (positions, width)."""
        return torch.cat([self._targets[i] for i in batch.place.tolist()]) if self._targets else self._full(batch)

    # --- the loop -----------------------------------------------------------------------------------------------------

    @property
    def temperature(self) -> float:
        return self.schedule.temperature_at(self.global_step)

    def wanted_sizes(self) -> Tensor:
        """How many gates every mask should expect to have open at this step, shape (sizes,)."""
        return self.schedule.target_at(self.global_step, self._sizes, self.graph.n_nodes)

    def log_odds(self) -> Tensor:
        """Log-odds of every mask's gates as its budget has them now, shape (groups, sizes, nodes)."""
        return self.budget.settle(self.bank.log_odds.expand(-1, len(self.sizes), -1), self.wanted_sizes())

    @torch.no_grad()
    def open_probabilities(self) -> Tensor:
        """P(open) of every gate, shape (groups, sizes, nodes); sums over nodes are the expected sizes."""
        return open_probability(self.log_odds())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        log_odds = self.log_odds()
        rows = log_odds[0][:, None].expand(-1, len(batch.input_ids), -1)  # (sizes, inputs, nodes)
        gates = sample(rows, self.temperature, self._noise(batch))
        masked = self.masked_lm(batch.input_ids, batch.scored, gates)  # (sizes, positions, width)
        kl = chunked_kl(self._target(batch), masked, self.masked_lm.head).mean(-1)  # (sizes,)
        error = open_probability(log_odds).sum(-1) - self.wanted_sizes()  # (1, sizes)
        price = self.budget(error, self.schedule.stiffness_at(self.global_step))
        # KLs of different sizes lie two orders of magnitude apart; the logarithm makes each pull by its relative change
        loss = (kl + FLOOR).log().sum() + price.sum()
        self._require_finite("loss", loss)
        self._error = error.detach()
        self._log_step(kl.detach(), self._error[0])
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The gates descend, and then the budget follows."""
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        stiffness, bound = self.schedule.stiffness_at(step), self.schedule.bound_at(step, self.graph.n_nodes)
        self.budget.after_step(self.bank.log_odds.data, self._error, stiffness, bound)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.bank.log_odds.grad is not None
        self._require_finite("gradient", self.bank.log_odds.grad)

    def _require_finite(self, what: str, value: Tensor) -> None:
        """Stop before a step that would spoil the gates."""
        if not value.isfinite().all():
            raise NonFiniteLoss(
                f"the {what} at step {self.global_step} is not finite, and nothing of that step was taken. "
                "Try --model.dtype float32, or leave out the texts that the model itself cannot read"
            )

    @property
    def _sizes(self) -> Tensor:
        return torch.tensor(self.sizes, device=self.device)

    def _noise(self, batch: Batch) -> Tensor:
        """Uniform noise as a function of seed and step alone, so that a resumed run draws what it would have drawn."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.global_step)
        shape = (len(self.sizes), len(batch.input_ids), self.graph.n_nodes)
        return torch.rand(shape, generator=generator).to(self.device)

    def _log_step(self, kl: Tensor, error: Tensor) -> None:
        wanted = self.wanted_sizes()
        bar = {"kl": kl.mean(), "open": (wanted + error).mean(), "wanted": wanted.mean(), "temp": self.temperature}
        self.log_dict(bar, prog_bar=True, logger=False)
        rows = {"kl": kl, "open": wanted + error, "budget_error": error}
        if isinstance(self.budget, Lagrangian):
            rows["multiplier"] = self.budget.multiplier[0]
        for name, values in rows.items():
            self.log_dict({f"train/{name}/s={s}": v for s, v in zip(self.sizes, values, strict=True)})
        self.log_dict({"train/temperature": self.temperature, "train/lr": self.lr * self._rate(self.global_step)})

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """KL of the masks as they would be cut now."""
        masks = self.bank.discretize(self._sizes)[0].float()
        gates = masks[:, None].expand(-1, len(batch.input_ids), -1)
        masked = self.masked_lm(batch.input_ids, batch.scored, gates)
        kl = chunked_kl(self._full(batch), masked, self.masked_lm.head).mean(-1)
        named = {f"val/kl/s={s}": value for s, value in zip(self.sizes, kl, strict=True)}
        self.log_dict(named, batch_size=int(batch.scored.sum()))

    def configure_optimizers(self) -> Any:
        # No weight decay: it would pull log-odds to 0, where a gate is open in half of all draws. Short memories, since
        # gradients shrink by orders of magnitude as gates make up their minds, and momentum overshoots the budget.
        optimizer = torch.optim.Adam(self.bank.parameters(), lr=self.lr, betas=(0.8, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        return self.schedule.rate_at(step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the frozen weights out."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith("masked_lm.")}

    # --- what was learned ---------------------------------------------------------------------------------------------

    def discretize(self) -> Mask:
        """The masks learned: exactly `s` nodes each."""
        sizes = torch.tensor(self.sizes)
        return Mask(
            mask=self.bank.discretize(sizes.to(self.device)).cpu(),
            scores=self.bank.log_odds.detach().cpu(),
            sizes=sizes,
            graph=self.graph,
            model=self.model_id,
            ablation=self.ablation,
            positions=self._data.positions,
        )
