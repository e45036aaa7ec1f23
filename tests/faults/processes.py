"""Runs as processes of their own, forked so that none imports anew."""

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

QUIET = {"NETRC": os.devnull, "WANDB_CONFIG_DIR": os.devnull}
"""Nobody is logged in."""
LONGEST = 1200
"""Seconds after which a run is taken to hang, and killed."""
Door = Callable[[list[str]], int]


@dataclass
class Ended:
    """What has become of a process."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def one_line(self) -> bool:
        """Whether it ended as a mistake does: code 2 and one line, behind what W&B and the progress bar may say."""
        said = [line for line in re.split(r"[\r\n]+", self.err) if line.startswith(("error: ", "Traceback"))]
        return self.code == 2 and len(said) == 1 and said[0].startswith("error: ")


class Process:
    """A run, as a person starts it, but for the imports."""

    def __init__(self, args: list[str], door: Door, environment: dict[str, str]) -> None:
        self.out, self.err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  (they live as long as this does)
        self.code: int | None = None
        self.began = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            for name in [name for name in os.environ if name.startswith(("WANDB", "SLURM"))]:
                del os.environ[name]
            os.environ |= QUIET | environment
            os.dup2(self.out.fileno(), 1)
            os.dup2(self.err.fileno(), 2)
            sys.argv = ["train.py"]
            code = door(args)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> bool:
        """Kill it; whether it was alive."""
        alive = self.poll() is None
        self.send_signal(signal.SIGKILL)
        return alive

    def said(self) -> str:
        return os.pread(self.out.fileno(), 2**24, 0).decode()


def start(args: list[str], door: Door = cli.train, **environment: str) -> Process:
    """Begin a run."""
    return Process(args, door, environment)


def end(process: Process) -> Ended:
    """Wait for its end."""
    while process.poll() is None:
        if time.monotonic() - process.began > LONGEST:
            process.kill()
        time.sleep(0.02)
    assert process.code is not None
    err = os.pread(process.err.fileno(), 2**24, 0).decode()
    return Ended(process.code, process.said(), err, time.monotonic() - process.began)


def whole(args: list[str], door: Door = cli.train, **environment: str) -> Ended:
    """A run from its beginning to its end."""
    return end(start(args, door, **environment))


def wait_for(condition: Callable[[], bool], process: Process) -> bool:
    """Whether a condition came true while a process ran."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def let_run(process: Process, seconds: float) -> None:
    """Wait so long, or until it ends."""
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > until, process)
