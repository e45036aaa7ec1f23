"""Do several processes find the masks of one, and how much sooner?

`train.py` and `evaluate.py` run in one process and in several, each of one thread. The clock tells little where there
are fewer cores than processes or other work, so the processor time of the slowest process stands beside it. Both
include the start of a process, which takes some seconds of importing libraries; speed-ups are without it.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from jsonargparse import auto_cli
from setting import Setting
from timing import machine, write_results

import masklearn as ml

ROOT = Path(__file__).resolve().parents[1]
LOOK_SECONDS = 0.1
"""How often the processor time of the processes is read."""
MIN_WORK_SECONDS = 3.0
"""Least processor time beside the start for which a speed-up is told: the start varies by a second."""
SCOPES = {"input": "masks of single texts", "dataset": "shared masks"}
"""What is learned, by `--model.scope`."""


@dataclass(frozen=True)
class Cost:
    """What a command took, in seconds."""

    clock: float
    slowest: float
    """Processor time of the slowest process."""


def run(script: str, *flags: str) -> Cost:
    """Run a script of the project and the processes that it starts, of one thread each.

    Raises:
        RuntimeError: If it fails.
    """
    used: dict[int, float] = {}
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, str(ROOT / script), *flags]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            used |= processor_times(process.pid)
            time.sleep(LOOK_SECONDS)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors.read()[-2000:]}")
    return Cost(time.perf_counter() - start, max(used.values(), default=0.0))


def processor_times(pid: int) -> dict[int, float]:
    """Processor time so far of a process and of those that it has started, in seconds, by process id."""
    found = {}
    try:
        main = psutil.Process(pid)
        for process in (main, *main.children(recursive=True)):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    except psutil.NoSuchProcess:  # ended meanwhile
        pass
    return found


def learn(setting: Setting, scope: str, texts: int, steps: int, n_processes: int, folder: Path) -> Cost:
    """Learn the masks of one scope in some processes; the run is written to the folder."""
    source = ("--data.path", setting.path) if setting.path else ("--data.task", "mixed")
    return run(
        "train.py", "--model.lm", setting.lm, *source, "--data.limit", str(texts), "--data.max_length", "48",
        "--data.truncation", "left", "--data.positions", "last" if scope == "input" else "all",
        "--model.scope", scope, "--model.sizes", "[5, 15, 30]", "--model.block", "4",
        "--model.steps", str(steps), "--model.polish", "1", "--trainer.logger", "false", "--trainer.accelerator", "cpu",
        "--trainer.devices", str(n_processes), "--trainer.strategy", "ddp" if n_processes > 1 else "auto",
        "--run.estimate", "false", "--run.dir", str(folder),
    )  # fmt: skip


def evaluate(folder: Path, n_processes: int, baselines: str) -> Cost:
    """Evaluate the masks of a run on all its texts in some processes."""
    flags = ("--mask", str(folder), "--part", "all", "--baselines", baselines, "--study", "false")
    return run("evaluate.py", *flags, "--devices", str(n_processes))


def agreement(one: Path, other: Path) -> str:
    """Whether masks and scores of two runs are equal."""
    first, second = (ml.Mask.load(folder / "mask.safetensors") for folder in (one, other))
    differing = int((first.mask != second.mask).sum())
    masks = f"{differing} nodes of the masks differ" if differing else "equal masks"
    if torch.equal(first.scores, second.scores):
        return f"{masks}, scores equal bit for bit"
    return f"{masks}, scores differ by up to {(first.scores - second.scores).abs().max().item():.1g}"


def table(what: str, start: float, costs: dict[int, Cost], agreed: dict[int, str]) -> list[dict[str, Any]]:
    """Print a row for every number of processes, and return the rows; `start` is what a process takes to start."""
    rows = []
    first = next(iter(costs.values()))
    for n, cost in costs.items():
        row = {"what": what, "processes": n, "clock": cost.clock, "slowest": cost.slowest, "agreement": agreed.get(n)}
        rows.append(row)
        work = [one.slowest - start for one in (first, cost)]
        speed_up = f"speed-up {work[0] / work[1]:.2f}, " if min(work) > MIN_WORK_SECONDS else ""
        times = f"{cost.slowest:.1f} s of the slowest, {cost.clock:.1f} s on the clock"
        print(f"{what}; processes: {n}; {speed_up}{times}. {agreed.get(n, '')}", flush=True)
    return rows


def main(
    setting: Setting = Setting(),
    processes: Sequence[int] = (1, 2, 4),
    texts: int = 32,
    shared_texts: int = 120,
    steps: int = 40,
    baselines: str = "[random, random-matched, single-ablation]",
    out: Path | None = None,
) -> None:
    """Print agreement and cost of learning and of evaluation, for every number of processes.

    Args:
        setting: Model and texts.
        processes: Numbers of processes; the first is what others are compared with.
        texts: Texts with masks of their own.
        shared_texts: Texts that share masks.
        steps: Steps of learning.
        baselines: Other methods that the evaluation compares with.
        out: JSON file to write.
    """
    start = run("train.py", "--help").slowest
    print(f"{setting}; {machine()}, {os.cpu_count()} cores; speed-ups leave out {start:.1f} s of starting")
    rows: list[dict[str, Any]] = []
    for scope, n_texts in (("input", texts), ("dataset", shared_texts)):
        with tempfile.TemporaryDirectory() as temporary:
            folders = {n: Path(temporary) / str(n) for n in processes}
            first = folders[processes[0]]
            learned = {n: learn(setting, scope, n_texts, steps, n, folder) for n, folder in folders.items()}
            agreed = {n: agreement(first, folder) for n, folder in folders.items()}
            rows += table(f"{SCOPES[scope]}, {n_texts} texts", start, learned, agreed)
            evaluated = {n: evaluate(first, n, baselines) for n in processes}
            rows += table(f"their evaluation, {baselines}", start, evaluated, {})
    write_results({"setting": str(setting), "start": start, "rows": rows}, out)


if __name__ == "__main__":
    auto_cli(main)
