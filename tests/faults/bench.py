"""What all faults need: a run that was left alone, folders, and what a run has come to."""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb_file import OfflineRun

from faults.processes import Ended, whole

SHARED = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "40", "--data.batch_size", "4"),
    *("--model.lr", "0.8", "--model.steps", "110", "--model.sizes", "[4, 0.5, 30]", "--model.polish", "1"),
]
"""A run whose texts share their masks."""
SINGLE = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "9", "--model.scope", "input"),
    *("--model.block", "3", "--model.steps", "40", "--model.sizes", "[4, 0.5, 30]", "--model.polish", "1"),
]
"""A run of three blocks of texts, each text with masks of its own."""
NOTHING, FIFTY = "nothing", "up to 50 steps of computing"


@dataclass
class Fault:
    """What was done, how often, and what came of it."""

    name: str
    lost: str = NOTHING
    tried: int = 0
    held: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def scorer(self, *troubles: str) -> None:
        """Count one trial; it held if there is no trouble."""
        self.tried += 1
        found = [trouble for trouble in troubles if trouble]
        self.held += not found
        self.wrong += found
        print(f"  {self.name}, {self.tried}: {'; '.join(found) or 'held'}", flush=True)

    def note(self, format_report: str) -> None:
        """Something measured on the way."""
        self.notes.append(format_report)
        print(f"  {self.name}: {format_report}", flush=True)

    def row(self) -> str:
        wrong = f" ({'; '.join(sorted(set(self.wrong)))})" if self.wrong else ""
        return f"| {self.name} | {self.tried} | {self.held}{wrong} | {self.lost} |"


class Bench:
    """A run that was left alone, and room for others that are not."""

    def __init__(self, work: Path, seed: int, flags: list[str]) -> None:
        self.work, self.random, self.flags = work, random.Random(seed), flags
        self.reference, self.n = work / "reference", 0
        self.alone = whole([*flags, "--run.dir", str(self.reference)])
        assert self.alone.code == 0, self.alone.err

    @property
    def seconds(self) -> float:
        """What a whole run takes."""
        return self.alone.seconds

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for a run, that goes again."""
        self.n += 1
        path = self.work / f"run-{self.n}"
        yield path
        shutil.rmtree(path, ignore_errors=True)

    def moment(self, first: float, last: float) -> float:
        """Seconds into a run, at random between two shares of a whole one."""
        return self.random.uniform(first, last) * self.seconds

    def begin(self, folder: Path) -> list[str]:
        """How a user begins a run in a folder."""
        return [*self.flags, "--run.dir", str(folder)]

    def again(self, folder: Path) -> list[str]:
        """How a user goes on with the run in a folder, or begins it."""
        config = folder / "config.yaml"
        return ["--config", str(config), "--run.resume", "true"] if config.is_file() else self.begin(folder)

    def finish(self, folder: Path, tracked: bool = True) -> list[str]:
        """Go on with a run to its end; in what that differs from the one left alone."""
        ended = whole(self.again(folder))
        return [failed(ended)] if ended.code else self.differences(folder, tracked)

    def differences(self, folder: Path, tracked: bool = True) -> list[str]:
        """In what a finished run differs from the one left alone.

        Args:
            folder: The run's.
            tracked: Whether its W&B history is to be the same.
        """
        if not (folder / "metrics.json").is_file():
            return ["no metrics.json"]
        found = []
        ours, theirs = ((path / "mask.safetensors").read_bytes() for path in (folder, self.reference))
        if ours != theirs:
            found.append("other bytes of mask.safetensors")
        measured = [
            json.loads((path / "metrics.json").read_text()) | {"seconds": 0} for path in (folder, self.reference)
        ]
        if measured[0] != measured[1]:
            found.append("other metrics")
        if tracked and (differs := _apart(history(folder), history(self.reference))):
            found.append(f"another W&B history: {differs}")
        return found + [f"left {path.name}" for path in folder.rglob("*.part")]


def failed(ended: Ended) -> str:
    """An end that was not to be, in words."""
    return f"exit code {ended.code}: {ended.err[-300:]!r}"


def _apart(format_report: dict[tuple[int, str], Any], expected: dict[tuple[int, str], Any]) -> str:
    """In what two histories differ, in words; empty if they do not."""
    kinds = {
        "lacking": [at for at in expected if at not in format_report],
        "too many": [at for at in format_report if at not in expected],
        "other": [at for at in expected if at in format_report and format_report[at] != expected[at]],
    }
    return ", ".join(
        f"{len(found)} {kind} such as {found[0]} and {found[-1]}" for kind, found in kinds.items() if found
    )


def history(folder: Path) -> dict[tuple[int, str], Any]:
    """What all parts of a run have told W&B, by step and name; where a file lies in W&B's own folders is left out."""
    format_report: dict[tuple[int, str], Any] = {}
    for part in sorted((folder / "wandb").glob("*run-*-*")):
        for row in OfflineRun.read(part).history if list(part.glob("*.wandb")) else ():
            step = row.get("trainer/global_step", -1)
            format_report |= {(step, k): v for k, v in row.items() if not k.startswith("_") and not k.endswith("path")}
    return format_report
