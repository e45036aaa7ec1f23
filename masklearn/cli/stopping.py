"""How a run is stopped: by Ctrl-C, by SIGTERM, or by a cluster that puts its job back into the queue."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

REQUEUE = signal.SIGUSR1
"""What SLURM is asked to send ahead of the end: `#SBATCH --signal=SIGUSR1@90`."""


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does; where nothing is at stake, a second Ctrl-C quits at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)  # the next one ends the process
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Stopped(SystemExit):
    """The run was asked to stop, and a whole step is behind it."""


class StopBetweenSteps(Callback):
    """Lets a step be finished before a run stops, so that what is saved is a state that the whole run passes through.

    A second Ctrl-C quits at once. Lightning's own handler of a requeue signal is called when the step is over.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        """What asked the run to stop."""
        self.requeue: Callable[[int, FrameType | None], Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has put its handlers in place by now, and takes away all when the run is over."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        plugin = signal.getsignal(REQUEUE)
        if callable(plugin):
            self.requeue = plugin
            signal.signal(REQUEUE, self._stop)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        first, self.asked = self.asked is None, self.asked or signal.Signals(signum).name
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if first:
                print("\nStopping when this step is done; Ctrl-C again quits at once", flush=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.asked:
            raise Stopped

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.asked == REQUEUE.name and self.requeue:
            self.requeue(REQUEUE, None)
