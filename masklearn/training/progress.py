"""The progress bar of training."""

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from masklearn.training.learner import MaskLearner


class Progress(TQDMProgressBar):
    """One line: steps and time left; groups done and their rate; mean KL, expected and target size, temperature."""

    start_time: float | None = None
    """When this process first showed the bar, in seconds; from then on the rate is measured."""
    groups_at_start = 0
    """Groups that were done at that time."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The values shown at the end of the line."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics = {name: value for name, value in metrics.items() if name != "v_num"}
        assert isinstance(pl_module, MaskLearner)
        plan = pl_module.plan
        n_groups = sum(map(len, plan.blocks))
        if n_groups == 1:
            return metrics
        n_done = sum(map(len, plan.blocks[: trainer.global_step // plan.steps]))
        if self.start_time is None:
            self.start_time, self.groups_at_start = time.monotonic(), n_done
        done: dict[str, Any] = {"groups": f"{n_done}/{n_groups}"}
        if n_done > self.groups_at_start:
            rate = (n_done - self.groups_at_start) / (time.monotonic() - self.start_time + 1e-9)
            done["groups/s"] = f"{rate:.2g}"
        return done | metrics

    def init_validation_tqdm(self) -> Tqdm:
        """A disabled bar: a second one would come and go, and disabling it later leaves its line behind."""
        return Tqdm(disable=True)
