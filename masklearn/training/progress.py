"""Progress bars: of training, and of the phases before, within and after it."""

import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, TextIO

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from masklearn import ranks
from masklearn.progress import Item, ProgressBar
from masklearn.training.learner import MaskLearner

BRIEF_DELAY = 2.0
"""Seconds after which the bar of a part of a phase appears."""


def phase_bars(file: TextIO, disable: bool | None = False) -> ProgressBar:
    """Bars as the trainer's, on a stream; of several ranks the first alone shows them.

    Args:
        file: The stream.
        disable: Whether to show none; None shows them in a terminal only.
    """
    return partial(_phase_bar, file=file, disable=ranks.rank() > 0 or disable)


def _phase_bar(
    items: Iterable[Item],
    phase: str,
    /,
    total: int | None = None,
    brief: bool = False,
    file: TextIO = sys.stdout,
    disable: bool | None = False,
) -> Iterable[Item]:
    delay = BRIEF_DELAY if brief else 0.0
    return Tqdm(
        items, desc=phase, total=total, file=file, disable=disable, leave=not brief, delay=delay, dynamic_ncols=True
    )


class Progress(TQDMProgressBar):
    """One line: steps and time left; groups done and their rate; mean KL, expected and target size, temperature."""

    start_time: float | None = None
    """When this process first showed the bar, in seconds; from then on the rate is measured."""
    groups_at_start = 0
    """Groups that were done at that time."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step, and how many are expected now: ranks that take blocks one by one do not know at the start."""
        assert isinstance(pl_module, MaskLearner)
        if pl_module.plan.queue:
            self.train_progress_bar.total = len(pl_module.plan.expected) * pl_module.plan.steps
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The values shown at the end of the line."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics = {name: value for name, value in metrics.items() if name != "v_num"}
        assert isinstance(pl_module, MaskLearner)
        plan = pl_module.plan
        if plan.n_groups == 1:
            return metrics
        n_groups = sum(len(plan.blocks[block]) for block in plan.expected)
        n_done = sum(len(plan.blocks[block]) for block in plan.own[: trainer.global_step // plan.steps])
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
