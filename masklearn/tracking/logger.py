"""The Lightning logger of a run: it passes metrics on to W&B, and no error of W&B stops it."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb import Run

from masklearn.errors import UserError, one_line
from masklearn.files import atomic_write
from masklearn.tracking.wandb_run import (
    StartRun,
    describe_location,
    how_to_sync,
    project_name,
    restart_offline,
    run_starter,
    start_run,
)

RUN_ID_FILE = Path("wandb") / "run-id"
"""Holds the W&B id of the run in a run's folder."""
FLUSH_GRACE = 30.0
"""Seconds after which what W&B was given counts as written to the disk; longer than its flush interval, since W&B
writes in a process of its own, which a busy machine may keep waiting."""


class Tracker(WandbLogger):
    """W&B's logger, except that an error of W&B never stops a run.

    After the first error, one line says so, and a second, offline run continues beside the first. After an error of
    the offline run, nothing more is logged.

    Args:
        run: W&B's run.
        start: How that run was started.
        settings: Arguments of `WandbLogger`.
    """

    def __init__(self, run: Run, start: StartRun, **settings: Any) -> None:
        super().__init__(experiment=run, **settings)
        self.run, self.start = run, start
        self.runs = [run]
        """The W&B run, and the offline one that continues it if there was an error."""
        self.failed = False
        """Whether W&B has been given up."""
        self.recent: deque[tuple[float, int | None, dict[str, Any]]] = deque()
        """Time, step and metrics of the last half minute: W&B may not have written them yet when it is killed."""

    def safely(self, action: Callable[[], object]) -> None:
        """Run an action that uses W&B, unless W&B has been given up; after an error, run it again offline."""
        if self.failed:
            return
        try:
            action()
        except Exception as first:  # of any kind: tracking must not stop a run
            try:
                self._go_offline()
                action()
            except Exception:
                self.failed = True
            outcome = "tracking stops" if self.failed else "tracking continues offline"
            # starts with a newline, since a progress bar leaves its line open
            print(f"\nW&B: {outcome} ({one_line(first)}). {how_to_sync(self.runs)}", flush=True)

    def _go_offline(self) -> None:
        """Start an offline run, and log again what the failed one may have lost."""
        if self.run.offline and len(self.runs) > 1:
            raise RuntimeError("the run is offline already")
        with suppress(Exception):
            self.run.finish()
        with suppress(Exception):
            wandb.teardown()
        self.run = self._experiment = restart_offline(self.start)
        self.runs.append(self.run)
        _use_global_step(self.run)
        for _, step, metrics in self.recent:
            super().log_metrics(_with_histograms(metrics), step)

    @property
    def url(self) -> str | None:
        """The address of the W&B run; None if it is not online."""
        return None if self.failed or self.run.offline or self.run.disabled else self.run.url

    def finish(self) -> None:
        """Send the remaining data; if that fails or takes too long, print how to send it later."""
        if self.failed:
            return
        try:
            self.run.finish()
        except Exception as error:
            self.failed = True
            print(f"W&B: not everything was sent ({one_line(error)}). {how_to_sync(self.runs)}", flush=True)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics of a step.

        Args:
            metrics: Numbers by name; or histograms, each as a pair of lists: counts and bin edges.
            step: The optimiser step.
        """
        now = time.monotonic()
        self.recent.append((now, step, dict(metrics)))
        while now - self.recent[0][0] > FLUSH_GRACE:
            self.recent.popleft()
        self.safely(lambda: super(Tracker, self).log_metrics(_with_histograms(metrics), step))

    def finalize(self, status: str) -> None:
        """Do nothing when training ends: the run continues with its evaluation, and `finish` follows."""


def logger_for(folder: Path, config: dict[str, Any], resume: bool = False) -> tuple[Tracker, str]:
    """Start or resume the W&B run of a run's folder: online with a login, offline without one.

    Args:
        folder: The run's folder, into which W&B writes.
        config: All settings of the run.
        resume: Whether to continue the W&B run that was started in this folder.

    Returns:
        The logger, and one line that says where the W&B run is.
    """
    id_file = folder / RUN_ID_FILE
    run_id = id_file.read_text(encoding="utf-8") if resume and id_file.is_file() else token_hex(4)
    with suppress(UserError):  # a full disk must not stop a run here
        atomic_write(id_file, run_id.encode())
    start = run_starter(folder, config, id=run_id, resume="allow")
    run, reason = start_run(start)
    _use_global_step(run)
    tracker = Tracker(run, start, project=project_name(), save_dir=folder, id=run_id)
    return tracker, describe_location(run, reason)


def _use_global_step(run: Run) -> None:
    """Plot every metric against the optimiser step."""
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)


def _with_histograms(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _histogram(*value) if isinstance(value, tuple) else value for name, value in metrics.items()}


def _histogram(counts: list[int], edges: list[float]) -> wandb.Histogram:
    return wandb.Histogram(np_histogram=(np.array(counts), np.array(edges)))
