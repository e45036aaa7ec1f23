"""How a run is stopped: by Ctrl-C, by SIGTERM, or by a cluster that requeues its job."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from masklearn import ranks
from masklearn.training.block_learner import BlockLearner

REQUEUE_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None)
"""What SLURM sends before the time limit, with `#SBATCH --signal=SIGUSR1@90`; Windows has no such signal."""


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does; a second signal ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)  # the next one ends the process
        raise KeyboardInterrupt

    previous = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


class Stopped(SystemExit):
    """The run was asked to stop, and the step it was in is complete."""


class StopBetweenSteps(Callback):
    """Stops a run only between two steps, so that the saved state is one that an uninterrupted run passes through.

    A second Ctrl-C quits at once. Lightning's own handler of a requeue signal is called after the step.
    """

    def __init__(self) -> None:
        self.stop_signal: str | None = None
        """The name of the signal that asked the run to stop."""
        self.requeue: Callable[[int, FrameType | None], Any] | None = None
        """Lightning's handler of the requeue signal, on a SLURM cluster."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers; Lightning has installed its own before, and removes all of them after the run."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGINT, self._request_stop)
        signal.signal(signal.SIGTERM, self._request_stop)
        handler = signal.getsignal(REQUEUE_SIGNAL) if REQUEUE_SIGNAL else None
        if REQUEUE_SIGNAL and callable(handler):
            self.requeue = handler
            signal.signal(REQUEUE_SIGNAL, self._request_stop)

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        is_first = self.stop_signal is None
        self.stop_signal = self.stop_signal or signal.Signals(signum).name
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
        if self.stop_signal:
            raise Stopped

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Requeue the job if the requeue signal stopped it."""
        if REQUEUE_SIGNAL and self.stop_signal == REQUEUE_SIGNAL.name and self.requeue:
            self.requeue(REQUEUE_SIGNAL, None)
