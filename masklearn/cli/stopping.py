"""How a run is stopped: by Ctrl-C, by SIGTERM, or by a cluster that requeues its job."""

import os
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from masklearn import ranks
from masklearn.errors import one_line
from masklearn.progress import Item, ProgressBar
from masklearn.training.block_learner import BlockLearner

REQUEUE_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None)
"""What SLURM sends before the time limit, with `#SBATCH --signal=SIGUSR1@120`; Windows has no such signal."""


class Requeue:
    """The handler of the requeue signal of a SLURM job: it interrupts, and the job is requeued when all is saved.

    Lightning leaves the signal to a handler that is there before its own, which would act during learning alone.
    """

    is_requested = False
    """Whether the signal has come, or has come to another rank."""

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        is_stopping, self.is_requested = self.is_requested or is_interrupted(), True
        if not is_stopping:
            _interrupt(signum, frame)

    def finish(self) -> str:
        """Requeue the job if that was requested, by its first task.

        Returns:
            What the user should know; empty if there is nothing.
        """
        if not self.is_requested or os.environ.get("SLURM_PROCID", "0") != "0":
            return ""
        array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID", "")
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
        try:
            subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            return f"Job {job} could not be requeued ({one_line(error)}). Submit it again"
        return f"Job {job} is requeued. A run that names its --run.dir goes on when it starts again"


@contextmanager
def interruptible() -> Iterator[Requeue]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does; a second signal ends the process at once.

    Yields:
        The handler of the requeue signal, which raises KeyboardInterrupt, too, in a SLURM job.
    """
    requeue = Requeue()
    if threading.current_thread() is not threading.main_thread():
        yield requeue
        return
    handlers: dict[signal.Signals, Any] = {signal.SIGINT: _interrupt, signal.SIGTERM: _interrupt}
    if REQUEUE_SIGNAL and _is_slurm_job():
        handlers[REQUEUE_SIGNAL] = requeue
    previous = {each: signal.signal(each, handler) for each, handler in handlers.items()}
    try:
        yield requeue
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def is_interrupted() -> bool:
    """Whether this process is stopping, so that the next SIGTERM ends it."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def _interrupt(signum: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)  # the next one ends the process
    raise KeyboardInterrupt


def _is_slurm_job() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends srun on every machine that has it
        return SLURMEnvironment.detect()


class Stopped(SystemExit):
    """The run was asked to stop, and the step it was in is complete."""


class StopBetweenSteps(Callback):
    """Stops a run only between two steps, so that the saved state is one that an uninterrupted run passes through.

    Steps are those of learning, and those of the polish of a block in between. A second Ctrl-C quits at once.
    """

    def __init__(self) -> None:
        self.stop_signal: str | None = None
        """The name of the signal that asked the run to stop."""
        self.requeue: Requeue | None = None
        """The handler of the requeue signal, on a SLURM cluster."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers; Lightning has kept those that were there before, and restores them after the run."""
        if isinstance(pl_module, BlockLearner) and pl_module.n_sharing == 1:
            pl_module.bar = partial(self._until_stopped, pl_module.bar)
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGINT, self._request_stop)
        signal.signal(signal.SIGTERM, self._request_stop)
        handler = signal.getsignal(REQUEUE_SIGNAL) if REQUEUE_SIGNAL else None
        if REQUEUE_SIGNAL and isinstance(handler, Requeue):
            self.requeue = handler
            signal.signal(REQUEUE_SIGNAL, self._request_stop)

    def _until_stopped(self, bar: ProgressBar, items: Iterable[Item], phase: str, /, **kwargs: Any) -> Iterator[Item]:
        """Pass on the items of a learner's bar, such as the steps of a polish, and stop here if a signal asks for it.

        Raises:
            Stopped: If so.
        """
        for item in bar(items, phase, **kwargs):
            if self.stop_signal:
                raise Stopped
            yield item

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        is_first = self.stop_signal is None
        self.stop_signal = self.stop_signal or signal.Signals(signum).name
        if signum == REQUEUE_SIGNAL and self.requeue:
            self.requeue.is_requested = True
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if is_first:
                print("\nStopping after this step; Ctrl-C again quits at once", flush=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop here if a signal has asked for it; ranks that share the steps stop all at the same one.

        Raises:
            Stopped: If so.
        """
        if isinstance(pl_module, BlockLearner) and pl_module.n_sharing > 1:
            self.stop_signal = next(filter(None, ranks.gathered(self.stop_signal)), None)
            if self.requeue and REQUEUE_SIGNAL and self.stop_signal == REQUEUE_SIGNAL.name:
                self.requeue.is_requested = True
        if self.stop_signal:
            raise Stopped
