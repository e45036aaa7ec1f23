"""All ranks of a run stop together: if one fails or dies, the others stop too, and rank 0 says which one and why."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from masklearn import ranks
from masklearn.cli.stopping import is_interrupted
from masklearn.cli.user_messages import user_message
from masklearn.errors import UserError, one_line
from masklearn.training.strategy import RankStrategy

LOOK_SECONDS = 1.0
"""Time between two looks at the other ranks."""
SILENCE_SECONDS = 30.0
"""A rank that has shown no sign of life for so long counts as dead."""
GRACE_SECONDS = 15.0
"""How long a process may take to stop by itself; then it is ended."""
LEAVE_SECONDS = 5.0
"""How long rank 0 waits until the others have stopped."""
FAILURE_KEY, ENDED_KEY = "failure", "ended"
GO_ON = "Go on with: "
"""How messages name the command that goes on."""


class RankWatch(threading.Thread):
    """Tells the other ranks that this one is alive, and stops this process when another one has failed.

    Args:
        store: The store of the process group; rank 0 holds it.
        started: The processes that this one has started, for the next ranks.
        go_on: Says what the user should do after a rank has failed.
    """

    def __init__(
        self, store: ranks.Store, started: Sequence["subprocess.Popen[bytes]"], go_on: Callable[[], str]
    ) -> None:
        super().__init__(daemon=True, name="rank-watch")
        self.store: ranks.Store = store.clone()  # pyright: ignore[reportAttributeAccessIssue]  (torch's stubs lack it)
        self.started, self.go_on = started, go_on
        self.rank, self.n_ranks = ranks.rank(), ranks.count()  # the group is hidden while this process works alone
        self.failure = ""
        """Which rank has failed and why, if another one has."""
        self.has_interrupted = False
        """Whether this process stops because of that."""
        self.noticed, self.stopping, self.closed = threading.Event(), threading.Event(), threading.Event()
        self._beats = [""] * self.n_ranks
        self._seen = [time.monotonic()] * self.n_ranks
        self.rank_name = f"rank {self.rank} ({socket.gethostname()}, process {os.getpid()})"
        self.rank_names = ranks.gathered(self.rank_name)

    def run(self) -> None:
        """Look at the other ranks until this one ends."""
        while not self.closed.wait(LOOK_SECONDS):
            if not _returns(self._look, SILENCE_SECONDS):
                self.failure = f"{_silent(self.rank_names[0])}. {self.go_on()}"  # it holds the store
            if self.failure:
                self.noticed.set()
                self._stop_process()
                return

    def _look(self) -> None:
        """Show a sign of life, and find out which rank has failed, if any."""
        try:
            self.store.set(_alive_key(self.rank), str(time.monotonic()))
            if self.store.check([FAILURE_KEY]):
                self.failure = self.store.get(FAILURE_KEY).decode()
            elif failure := self._dead_rank():
                failure = f"{failure}. {self.go_on()}"
                self.store.set(FAILURE_KEY, failure)
                self.failure = failure
        except RuntimeError:  # of any kind: rank 0 no longer answers
            self.failure = f"{self.rank_names[0]} died. {self.go_on()}"

    def _dead_rank(self) -> str:
        """Which rank is dead; rank 0 watches all, and the others rank 0."""
        for process, name in zip(self.started, self.rank_names[self.rank + 1 :], strict=False):
            if process.poll():
                return f"{name} died with exit code {process.returncode}"
        for other in [0] if self.rank else range(1, self.n_ranks):
            key = _alive_key(other)
            beat = self.store.get(key).decode() if self.store.check([key]) else ""
            if beat != self._beats[other]:
                self._beats[other], self._seen[other] = beat, time.monotonic()
            elif time.monotonic() - self._seen[other] > SILENCE_SECONDS:
                return _silent(self.rank_names[other])
        return ""

    def _stop_process(self) -> None:
        """Stop this process as a scheduler would, unless it is stopping already; end it if that takes too long."""
        if not self.stopping.is_set() and not is_interrupted():
            self.has_interrupted = True
            os.kill(os.getpid(), signal.SIGTERM)
        if not self.closed.wait(GRACE_SECONDS):
            if self.speaks:
                print(f"error: {self.failure}", file=sys.stderr, flush=True)
            os._exit(2)

    @property
    def speaks(self) -> bool:
        """Whether this process tells the user what happened: rank 0 does, and rank 1 if rank 0 is dead or silent."""
        return self.rank == (1 if self.failure.startswith(f"{self.rank_names[0]} ") else 0)

    def report(self, error: BaseException) -> None:
        """Tell the other ranks that this one has failed, unless it has stopped because another one did."""
        self.stopping.set()
        if ranks.is_peer_failure(error):
            self.noticed.wait(SILENCE_SECONDS + 2 * LOOK_SECONDS)
        if not self.failure:
            message = user_message(error) or one_line(error)
            if GO_ON not in message:
                message = f"{message}. {self.go_on()}"
            with suppress(RuntimeError):
                self.store.set(FAILURE_KEY, f"{self.rank_name}: {message}")

    def close(self) -> None:
        """Stop watching, and wait until other ranks have stopped, as they look into the store that rank 0 holds.

        Nothing of this object uses the store afterwards, unless the store hangs: Python ends such threads in a way that
        aborts the process.
        """
        self.closed.set()
        self.join(LEAVE_SECONDS)
        _returns(self._leave, LEAVE_SECONDS + LOOK_SECONDS)
        for process in self.started:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def _leave(self) -> None:
        until = time.monotonic() + LEAVE_SECONDS  # a dead rank never leaves
        with suppress(RuntimeError):
            n_ended = self.store.add(ENDED_KEY, 1)
            while self.rank == 0 and n_ended < self.n_ranks and time.monotonic() < until:
                time.sleep(LOOK_SECONDS / 10)
                n_ended = self.store.add(ENDED_KEY, 0)


def _returns(function: Callable[[], None], seconds: float) -> bool:
    """Whether a function returns within a time; the store waits for ever if rank 0 is stopped, but not dead."""
    call = threading.Thread(target=function, daemon=True)
    call.start()
    call.join(seconds)
    return not call.is_alive()


def _silent(rank_name: str) -> str:
    return f"{rank_name} has shown no sign of life for {SILENCE_SECONDS:.0f} s"


def _alive_key(rank: int) -> str:
    return f"alive/{rank}"


@contextmanager
def stopped_together(strategy: RankStrategy, go_on: Callable[[], str]) -> Iterator[None]:
    """Join the ranks of a run, starting them if need be; only rank 0 prints, and if one fails, all stop.

    Args:
        strategy: Starts and joins them.
        go_on: See `RankWatch`.

    Raises:
        UserError: If they cannot be started; or on rank 0, if another rank has failed, which it names.
    """
    try:
        strategy.join()
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"the processes of the devices did not find each other: {one_line(error)}") from error
    watch = RankWatch(strategy.store, strategy.started, go_on)
    watch.start()
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        redirect_stdout(sys.stdout if ranks.rank() == 0 else nowhere),
    ):
        try:
            yield
            ranks.meet()  # until the last one is done, this one must not seem dead
        except BaseException as error:
            watch.report(error)
            is_follow_up = watch.has_interrupted or ranks.is_peer_failure(error) or not user_message(error)
            if watch.failure and watch.speaks and is_follow_up:
                raise UserError(watch.failure) from error
            if watch.rank and (watch.failure or user_message(error)):
                raise SystemExit(2) from error
            raise
        finally:
            watch.close()
