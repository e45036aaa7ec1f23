"""Runs as forked processes, which need not import anything again."""

import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from masklearn import cli

NO_LOGIN = {"NETRC": os.devnull, "WANDB_CONFIG_DIR": os.devnull}
"""Environment in which W&B finds no login."""
TIMEOUT = 1200
"""Seconds after which a run is killed, as it hangs."""
EntryPoint = Callable[[list[str]], int]


@dataclass
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def one_line(self) -> bool:
        """Whether it ended with code 2 and one error line; W&B and the progress bar may print others."""
        errors = [line for line in re.split(r"[\r\n]+", self.err) if line.startswith(("error: ", "Traceback"))]
        return self.code == 2 and len(errors) == 1 and errors[0].startswith("error: ")


class Process:
    """A run as a user starts it, except that nothing is imported again.

    Args:
        args: The command line.
        entry_point: `cli.train` or `cli.evaluate`.
        environment: Environment variables to set.
    """

    def __init__(self, args: list[str], entry_point: EntryPoint, environment: dict[str, str]) -> None:
        self.out, self.err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  (open as long as this object)
        self.code: int | None = None
        self.start_time = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            for name in [name for name in os.environ if name.startswith(("WANDB", "SLURM"))]:
                del os.environ[name]
            os.environ |= NO_LOGIN | environment
            os.dup2(self.out.fileno(), 1)
            os.dup2(self.err.fileno(), 2)
            sys.argv = ["train.py"]
            code = entry_point(args)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended the process; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def send_signal(self, signum: int) -> None:
        """Send a signal, if the process is alive."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> bool:
        """Kill the process; whether it was alive."""
        was_alive = self.poll() is None
        self.send_signal(signal.SIGKILL)
        return was_alive

    def output(self) -> str:
        """What the process has printed so far."""
        return os.pread(self.out.fileno(), 2**24, 0).decode()

    def errors(self) -> str:
        """What the process has printed to the error stream so far."""
        return os.pread(self.err.fileno(), 2**24, 0).decode()


def start(args: list[str], entry_point: EntryPoint = cli.train, **environment: str) -> Process:
    """Start a run."""
    return Process(args, entry_point, environment)


def end(process: Process) -> Ended:
    """Wait until a process ends."""
    while process.poll() is None:
        if time.monotonic() - process.start_time > TIMEOUT:
            process.kill()
        time.sleep(0.02)
    assert process.code is not None
    ended = Ended(process.code, process.output(), process.errors(), time.monotonic() - process.start_time)
    process.out.close()
    process.err.close()
    return ended


def run_to_end(args: list[str], entry_point: EntryPoint = cli.train, **environment: str) -> Ended:
    """Start a run and wait until it ends."""
    return end(start(args, entry_point, **environment))


def wait_for(condition: Callable[[], bool], process: Process) -> bool:
    """Wait until a condition is true or a process ends; whether the condition is true."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def let_run(process: Process, seconds: float) -> None:
    """Wait for a time, or until the process ends."""
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > until, process)
