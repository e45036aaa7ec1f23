"""Does to runs what happens to runs, and says what was lost: `python tests/faults.py --out faults.md`.

Runs are processes of their own, forked so that none imports anew, on the embedded model. Each is killed, stopped,
starved or lied to, gone on with as a user would, and held against a run that was left alone: masks and scores bit for
bit, metrics.json (but for the seconds) and the W&B history step by step.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file
from wandb_file import OfflineRun

from masklearn import cli

FLAGS = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "40", "--data.batch_size", "4"),
    *("--model.lr", "0.8", "--model.steps", "110", "--model.sizes", "[4, 0.5, 30]", "--model.polish", "1"),
]
QUIET = {"NETRC": os.devnull, "WANDB_CONFIG_DIR": os.devnull}


@dataclass
class Fault:
    """What was done, how often, and what came of it."""

    name: str
    tried: int = 0
    held: int = 0
    lost: str = "nothing"
    wrong: list[str] = field(default_factory=list)

    def judge(self, *troubles: str) -> None:
        """Count one trial; it held if there is no trouble."""
        self.tried += 1
        found = [trouble for trouble in troubles if trouble]
        self.held += not found
        self.wrong += found
        print(f"  {self.name}, {self.tried}: {'; '.join(found) or 'held'}", flush=True)

    def row(self) -> str:
        outcome = f"held {self.held} of {self.tried}" + (
            f" ({'; '.join(sorted(set(self.wrong)))})" if self.wrong else ""
        )
        return f"| {self.name} | {self.tried} | {outcome} | {self.lost} |"


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def one_line(self) -> bool:
        """Whether it ended as a mistake does: code 2 and one line, behind what W&B and the progress bar may say."""
        said = [line for line in re.split(r"[\r\n]+", self.err) if line.startswith(("error: ", "Traceback"))]
        return self.code == 2 and len(said) == 1 and said[0].startswith("error: ")


class Process:
    """A run, as a person starts it, but for the imports."""

    def __init__(self, args: list[str], door: Callable[[list[str]], int], environment: dict[str, str]) -> None:
        self.out, self.err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  (they live as long as this does)
        self.code: int | None = None
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
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def said(self) -> str:
        return os.pread(self.out.fileno(), 2**24, 0).decode()


def start(args: list[str], door: Callable[[list[str]], int] = cli.train, **environment: str) -> Process:
    return Process(args, door, environment)


def end(process: Process, timeout: float = 1200) -> Ended:
    began = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - began > timeout:
            process.kill()
        time.sleep(0.02)
    assert process.code is not None
    return Ended(process.code, process.said(), os.pread(process.err.fileno(), 2**24, 0).decode())


def whole(args: list[str], door: Callable[[list[str]], int] = cli.train, **environment: str) -> Ended:
    return end(start(args, door, **environment))


def again(folder: Path) -> list[str]:
    """How a user goes on with the run in a folder, or begins it."""
    begun = (folder / "config.yaml").is_file()
    return (
        ["--config", str(folder / "config.yaml"), "--run.resume", "true"]
        if begun
        else [*FLAGS, "--run.dir", str(folder)]
    )


# --- what a run has come to -------------------------------------------------------------------------------------------


def history(folder: Path) -> dict[tuple[int, str], Any]:
    """What all parts of a run have told W&B, by step and name; where a file lies in W&B's own folders is left out."""
    told: dict[tuple[int, str], Any] = {}
    for part in sorted((folder / "wandb").glob("offline-run-*")):
        for row in OfflineRun.read(part).history:
            step = row.get("trainer/global_step", -1)
            told |= {(step, k): v for k, v in row.items() if not k.startswith("_") and not k.endswith("path")}
    return told


def differences(folder: Path, reference: Path) -> list[str]:
    """In what a finished run differs from the reference."""
    if not (folder / "metrics.json").is_file():
        return ["no metrics.json"]
    found = []
    ours, theirs = (load_file(path / "mask.safetensors") for path in (folder, reference))
    if any(ours[name].tobytes() != theirs[name].tobytes() for name in theirs):
        found.append("another mask")
    measured = [json.loads((path / "metrics.json").read_text()) | {"seconds": 0} for path in (folder, reference)]
    if measured[0] != measured[1]:
        found.append("other metrics")
    if (reference / "wandb").is_dir() and (folder / "wandb").is_dir() and history(folder) != history(reference):
        found.append("another W&B history")
    left = [path.name for path in folder.rglob("*.part")]
    return found + [f"left {name}" for name in left]


def finish(folder: Path, reference: Path) -> list[str]:
    """Go on with a run to its end, and compare."""
    ended = whole(again(folder))
    return [f"exit code {ended.code}: {ended.err[-300:]}"] if ended.code else differences(folder, reference)


def wait_for(condition: Callable[[], bool], process: Process) -> bool:
    """Whether a condition came true while a process ran."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


# --- the faults -------------------------------------------------------------------------------------------------------


class Faults:
    """All faults against one reference run."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.random = work, random.Random(seed)
        self.reference = work / "reference"
        began = time.monotonic()
        assert whole([*FLAGS, "--run.dir", str(self.reference)]).code == 0
        self.seconds = time.monotonic() - began
        self.n = 0

    def folder(self) -> Path:
        self.n += 1
        return self.work / f"run-{self.n}"

    def kills(self, times: int) -> Fault:
        """SIGKILL at random moments of a run and of what goes on with it, up to five times in a row."""
        fault = Fault("SIGKILL at a random moment of training, evaluation and report")
        while fault.tried < times:
            folder, kills = self.folder(), 0
            for _ in range(self.random.randint(1, 5)):
                process = start(again(folder))
                moment = self.random.uniform(0.05, 1.0) * self.seconds
                wait_for(lambda begun=time.monotonic(), moment=moment: time.monotonic() - begun > moment, process)
                alive = process.poll() is None
                process.kill()
                end(process)
                kills += alive
                if not alive:
                    break
            wrong = finish(folder, self.reference)
            for _ in range(kills):
                fault.judge(*wrong)
            shutil.rmtree(folder)
        return fault

    def late_kills(self, times: int) -> Fault:
        """SIGKILL while a run evaluates, draws and writes."""
        fault = Fault("SIGKILL after training: masks, figures, results, W&B's end")
        for _ in range(times):
            folder = self.folder()
            process = start(again(folder))
            wait_for(lambda process=process: "Evaluating on" in process.said(), process)
            time.sleep(self.random.uniform(0, 0.3 * self.seconds))
            process.kill()
            end(process)
            fault.judge(*finish(folder, self.reference))
            shutil.rmtree(folder)
        return fault

    def evaluation_kills(self, times: int) -> Fault:
        fault = Fault("SIGKILL at a random moment of `evaluate.py`")
        flags = ["--mask", str(self.reference / "mask.safetensors")]
        assert whole([*flags, "--out", str(self.work / "evaluated")], cli.evaluate).code == 0
        expected = (self.work / "evaluated" / "metrics.json").read_text()
        for _ in range(times):
            out = self.folder()
            process = start([*flags, "--out", str(out)], cli.evaluate)
            time.sleep(self.random.uniform(0.2, 0.8) * self.seconds)
            process.kill()
            end(process)
            if not (out / "metrics.json").exists():
                whole([*flags, "--out", str(out)], cli.evaluate)
            fault.judge("" if (out / "metrics.json").read_text() == expected else "other metrics")
        return fault

    def stops(self, signum: signal.Signals, times: int) -> Fault:
        fault = Fault(f"{signum.name} at a random moment")
        for _ in range(times):
            folder, wrong = self.folder(), []
            process = start(again(folder))
            wait_for((folder / "wandb").is_dir, process)
            time.sleep(self.random.uniform(0.05, 0.5) * self.seconds)
            process.send_signal(signum)
            ended = end(process)
            if ended.code:
                wrong.append("" if ended.one_line and "Go on with: python train.py" in ended.err else ended.err[-300:])
            fault.judge(*wrong, *finish(folder, self.reference))
            shutil.rmtree(folder)
        return fault

    def second_interrupt(self, times: int) -> Fault:
        fault = Fault("a second Ctrl-C 50 ms after the first", lost="up to 50 steps, learned again")
        for _ in range(times):
            folder = self.folder()
            process = start(again(folder))
            wait_for((folder / "checkpoints" / "last.ckpt").is_file, process)
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            ended = end(process)
            slow = time.monotonic() - began
            fault.judge(
                "" if slow < 3 else f"took {slow:.0f} s",
                "" if ended.code in (-signal.SIGINT, 2) else f"exit code {ended.code}",
                *finish(folder, self.reference),
            )
            shutil.rmtree(folder)
        return fault

    def requeue(self, times: int) -> Fault:
        """SLURM's signal, with a scontrol of ours, and the job's own command once more."""
        fault = Fault("SLURM requeue: SIGUSR1, `scontrol requeue`, the same command again")
        tools = self.work / "tools"
        tools.mkdir(exist_ok=True)
        (tools / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\n')
        (tools / "scontrol").chmod(0o755)
        job = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "masks", "SLURM_LOCALID": "0"}
        job |= {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "PATH": f"{tools}:{os.environ['PATH']}"}
        for _ in range(times):
            folder = self.folder()
            (tools / "asked").unlink(missing_ok=True)
            command = [*FLAGS, "--run.dir", str(folder)]
            process = start(command, **job)
            wait_for((folder / "wandb").is_dir, process)
            time.sleep(self.random.uniform(0.2, 0.5) * self.seconds)
            process.send_signal(signal.SIGUSR1)
            first = end(process)
            asked = (tools / "asked").read_text() if (tools / "asked").exists() else "nothing"
            second = whole(command, **job, SLURM_RESTART_COUNT="1")
            fault.judge(
                "" if asked == "requeue 77\n" or not first.code else f"scontrol was asked {asked}",
                "" if not second.code else second.err[-300:],
                *differences(folder, self.reference),
            )
            shutil.rmtree(folder)
        return fault

    def damaged(self, times: int) -> Fault:
        fault = Fault("last checkpoint cut short, emptied, or a byte changed", lost="up to 50 steps, learned again")
        stopped = self.folder()
        process = start(again(stopped))
        wait_for((stopped / "checkpoints" / "before.ckpt").is_file, process)
        process.kill()
        end(process)
        for i in range(times):
            folder = self.folder()
            shutil.copytree(stopped, folder)
            last = folder / "checkpoints" / "last.ckpt"
            content = bytearray(last.read_bytes())
            place = self.random.randrange(len(content))
            if i % 3 == 0:
                content[place] ^= 1 + self.random.randrange(255)
            last.write_bytes(content if i % 3 == 0 else content[: place if i % 3 == 1 else 0])
            ended = whole(again(folder))
            told = "is damaged; going on from" in ended.out or i % 3 == 0  # a byte that nothing depends on may change
            fault.judge("" if told else "no line says so", *(differences(folder, self.reference)))
            shutil.rmtree(folder)
        return fault

    def full_disk(self, sizes: list[int]) -> Fault:
        """A disk of so many KiB, filled by the run itself, then made larger."""
        fault = Fault("disk full, at different moments", lost="up to 50 steps, learned again")
        for size in sizes:
            with small_disk(self.work / "disk", size) as disk:
                folder = disk / "run"
                ended = whole([*FLAGS, "--run.dir", str(folder)])
                wrong = [] if not ended.code or (ended.one_line and "make room" in ended.err) else [ended.err[-300:]]
                subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
                again_ended = whole(again(folder))
                wrong += [again_ended.err[-300:]] if again_ended.code else differences_but_tracking(folder, self)
            fault.judge(*wrong)
        return fault

    def two_runs(self, times: int) -> Fault:
        fault = Fault("a second run in the folder of one that is alive, new or resumed")
        for i in range(times):
            folder = self.folder()
            process = start(again(folder))
            wait_for((folder / "config.yaml").is_file, process)
            other = whole(again(folder) if i % 2 else [*FLAGS, "--run.dir", str(folder)])
            refused = other.one_line and ("a run is at work in" in other.err or "already holds a run" in other.err)
            wrong = ["" if refused else f"exit code {other.code}: {other.err[-300:]}"]
            fault.judge(
                *wrong, "" if not end(process).code else "the first stopped", *differences(folder, self.reference)
            )
            shutil.rmtree(folder)
        return fault


def differences_but_tracking(folder: Path, faults: Faults) -> list[str]:
    """A full disk may cost W&B what it could not write."""
    return [found for found in differences(folder, faults.reference) if "W&B" not in found]


@contextmanager
def small_disk(place: Path, kib: int) -> Iterator[Path]:
    """A file system of a few KiB; needs root on Linux."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Break runs, and say what was lost.")
    parser.add_argument("--kills", type=int, default=50, help="kills at random moments")
    parser.add_argument("--times", type=int, default=6, help="trials of every other fault")
    parser.add_argument("--only", nargs="*", help="names of the faults to try, as the methods are called")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write the table to")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        faults = Faults(Path(work), flags.seed)
        print(f"A run left alone takes {faults.seconds:.0f} s", flush=True)
        trials: dict[str, Callable[[], Fault]] = {
            "kills": lambda: faults.kills(flags.kills),
            "late_kills": lambda: faults.late_kills(flags.times),
            "evaluation_kills": lambda: faults.evaluation_kills(flags.times),
            "sigterm": lambda: faults.stops(signal.SIGTERM, flags.times),
            "sigint": lambda: faults.stops(signal.SIGINT, flags.times),
            "second_interrupt": lambda: faults.second_interrupt(flags.times // 2),
            "requeue": lambda: faults.requeue(flags.times),
            "damaged": lambda: faults.damaged(flags.times),
            "full_disk": lambda: faults.full_disk([0, 8, 40, 70, 100, 140, 200, 260, 400][: flags.times]),
            "two_runs": lambda: faults.two_runs(flags.times // 2),
        }
        rows = ["| fault | times tried | outcome | what was lost |", "|---|---|---|---|"]
        for name, trial in trials.items():
            if not flags.only or name in flags.only:
                rows.append(trial().row())
                if flags.out:
                    flags.out.write_text("\n".join(rows) + "\n")
        print("\n".join(rows))


if __name__ == "__main__":
    main()
