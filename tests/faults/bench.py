"""What all faults need: an undisturbed run, folders for others, and their comparison."""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb_file import OfflineRun

from faults.processes import Ended, run_to_end

SHARED = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "40", "--data.batch_size", "4"),
    *("--model.lr", "0.8", "--model.steps", "110", "--model.sizes", "[4, 0.5, 30]", "--model.polish", "1"),
]
"""A run whose texts share their masks."""
SINGLE = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "9", "--model.scope", "input"),
    *("--model.block", "3", "--model.steps", "40", "--model.sizes", "[4, 0.5, 30]", "--model.polish", "1"),
]
"""A run of three blocks of texts, each text with its own masks."""
NOTHING, UP_TO_50_STEPS = "nothing", "up to 50 steps of computing"
"""What a fault may cost, as the table says it."""


@dataclass
class Fault:
    """A fault, how many trials there were, and their outcome."""

    name: str
    lost: str = NOTHING
    trials: int = 0
    passed: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(self, *problems: str) -> None:
        """Count one trial; it passed if no problem is given, empty strings aside."""
        self.trials += 1
        present = [problem for problem in problems if problem]
        self.passed += not present
        self.problems += present
        print(f"  {self.name}, {self.trials}: {'; '.join(present) or 'held'}", flush=True)

    def note(self, line: str) -> None:
        """Keep and print a measurement."""
        self.notes.append(line)
        print(f"  {self.name}: {line}", flush=True)

    def row(self) -> str:
        """The fault's row of the table."""
        problems = f" ({'; '.join(sorted(set(self.problems)))})" if self.problems else ""
        return f"| {self.name} | {self.trials} | {self.passed}{problems} | {self.lost} |"


class Bench:
    """An undisturbed run, and folders for runs with faults.

    Args:
        work: Folder for all runs.
        seed: Seed of the random moments.
        flags: Flags of every run.
    """

    def __init__(self, work: Path, seed: int, flags: list[str]) -> None:
        self.work, self.random, self.flags = work, random.Random(seed), flags
        self.reference, self.n_folders = work / "reference", 0
        self.undisturbed = run_to_end([*flags, "--run.dir", str(self.reference)])
        assert self.undisturbed.code == 0, self.undisturbed.err

    @property
    def seconds(self) -> float:
        """Duration of the undisturbed run."""
        return self.undisturbed.seconds

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for a run, removed afterwards."""
        self.n_folders += 1
        path = self.work / f"run-{self.n_folders}"
        yield path
        shutil.rmtree(path, ignore_errors=True)

    def moment(self, first: float, last: float) -> float:
        """A random time into a run in seconds, between two shares of the undisturbed run's duration."""
        return self.random.uniform(first, last) * self.seconds

    def start_flags(self, folder: Path) -> list[str]:
        """The command line that starts a run in a folder."""
        return [*self.flags, "--run.dir", str(folder)]

    def resume_flags(self, folder: Path) -> list[str]:
        """The command line that resumes the run in a folder, or starts it if there is none."""
        config = folder / "config.yaml"
        return ["--config", str(config), "--run.resume", "true"] if config.is_file() else self.start_flags(folder)

    def finish(self, folder: Path, tracked: bool = True) -> list[str]:
        """Resume a run to its end; its differences from the undisturbed run."""
        ended = run_to_end(self.resume_flags(folder))
        return [failed(ended)] if ended.code else self.differences(folder, tracked)

    def differences(self, folder: Path, tracked: bool = True) -> list[str]:
        """The differences of a finished run from the undisturbed one, in words.

        Args:
            folder: The run's folder.
            tracked: Whether its W&B history must be the same.
        """
        if not (folder / "metrics.json").is_file():
            return ["no metrics.json"]
        differences = []
        mask, expected_mask = ((path / "mask.safetensors").read_bytes() for path in (folder, self.reference))
        if mask != expected_mask:
            differences.append("other bytes of mask.safetensors")
        metrics, expected_metrics = (
            json.loads((path / "metrics.json").read_text()) | {"seconds": 0, "cost": {}}
            for path in (folder, self.reference)
        )
        if metrics != expected_metrics:
            differences.append("other metrics")
        if tracked and (words := _history_differences(history(folder), history(self.reference))):
            differences.append(f"another W&B history: {words}")
        return differences + [f"left {path.name}" for path in folder.rglob("*.part")]


def failed(ended: Ended) -> str:
    """An unexpected end of a process, in words."""
    return f"exit code {ended.code}: {ended.err[-300:]!r}"


def _history_differences(logged: dict[tuple[int, str], Any], expected: dict[tuple[int, str], Any]) -> str:
    """The differences of two histories in words; empty if there are none."""
    differences = {
        "missing": [key for key in expected if key not in logged],
        "extra": [key for key in logged if key not in expected],
        "different": [key for key in expected if key in logged and logged[key] != expected[key]],
    }
    return ", ".join(
        f"{len(keys)} {kind} such as {keys[0]} and {keys[-1]}" for kind, keys in differences.items() if keys
    )


def history(folder: Path) -> dict[tuple[int, str], Any]:
    """What a run has logged to all of its W&B runs, by step and name; without the paths of W&B's own files."""
    logged: dict[tuple[int, str], Any] = {}
    for wandb_run in sorted((folder / "wandb").glob("*run-*-*")):
        for row in OfflineRun.read(wandb_run, wait=0).history if list(wandb_run.glob("*.wandb")) else ():
            step = row.get("trainer/global_step", -1)
            logged |= {(step, k): v for k, v in row.items() if not k.startswith("_") and not k.endswith("path")}
    return logged
