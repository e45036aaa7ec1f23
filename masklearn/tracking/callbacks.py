"""Lightning callbacks that log to W&B during training."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from masklearn.tracking.logger import Tracker
from masklearn.training.learner import MaskLearner

HISTOGRAM_INTERVAL = 50
"""Steps between two histograms of the gates."""
HISTOGRAM_BINS = 64


class RelogCallback(Callback):
    """Saves in checkpoints what W&B may not have on the disk yet; a resumed run logs it again.

    Args:
        tracker: The run's logger.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def state_dict(self) -> dict[str, Any]:
        """Steps and metrics of the last half minute."""
        return {"rows": [(step, metrics) for _, step, metrics in self.tracker.recent]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Log the saved metrics again, at the steps they belong to."""
        for step, metrics in state_dict["rows"]:
            self.tracker.log_metrics(metrics, step)


class GateHistograms(Callback):
    """Logs a histogram of P(open) over the nodes for every size, every `HISTOGRAM_INTERVAL` steps and at the end."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after the first step and at every interval from there."""
        if (trainer.global_step - 1) % HISTOGRAM_INTERVAL == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the final gates."""
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MaskLearner)
        histograms: dict[str, tuple[list[int], list[float]]] = {}
        for s, probability in zip(pl_module.sizes, pl_module.open_probabilities().mean(0), strict=True):
            counts, edges = torch.histogram(probability.cpu(), HISTOGRAM_BINS)
            histograms[f"gates/s={s}"] = counts.long().tolist(), edges.tolist()
        for logger in trainer.loggers:
            if isinstance(logger, Tracker):
                logger.log_metrics(histograms, step=trainer.global_step)
