"""How near are the cost and the memory that a run foretells after its first steps to what it takes?

Every row is a run of `train.py` in a process of its own, as a user starts it. Run nothing beside it: an estimate cannot
foresee other programs.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import auto_cli
from setting import SHARED_FOLDER
from timing import machine, write_results

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("learning", "polish", "evaluation")
KIB = 2**10


class Run(NamedTuple):
    """A run to measure.

    Args:
        model: Name of the model.
        what: What it learns.
        flags: Flags of `train.py` besides those of the model and its texts.
    """

    model: str
    what: str
    flags: str


INPUT = "--model.scope input --data.positions last --data.truncation left"
FOUR_TEXTS = f"{INPUT} --data.limit 4 --data.max_length 16 --model.steps 20"
SHORT_TEXTS = "--data.limit 24 --data.max_length 12 --data.batch_size 4 --model.steps 12 --model.draws 2"
RUNS = (
    Run("embedded", "shared, the default run", ""),
    Run("embedded", "shared, 200 texts, 60 steps", "--data.limit 200 --model.steps 60"),
    Run("embedded", "60 single texts", f"{INPUT} --data.limit 60"),
    Run("stories", "shared, 60 texts of 48 tokens, 24 steps", "--data.limit 60 --data.max_length 48 --model.steps 24"),
    Run("stories", "32 single texts of 96 tokens", f"{INPUT} --data.limit 32 --data.max_length 96"),
    Run("smollm2", "4 single texts of 16 tokens, 20 steps", FOUR_TEXTS),
    Run("gemma", "4 single texts of 16 tokens, 20 steps", FOUR_TEXTS),
    Run("smollm2", "shared, 24 texts of 12 tokens, 12 steps", SHORT_TEXTS),
    Run("gemma", "shared, 24 texts of 12 tokens, 12 steps", SHORT_TEXTS),
)


def measure(run: Run, lm: str, path: str | None) -> dict[str, Any]:
    """Foretold over actual seconds of every phase and of all, the same of memory; and the seconds and MiB it took.

    Raises:
        RuntimeError: If the run fails.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        source = ["--data.path", path] if path else []
        command = [sys.executable, str(ROOT / "train.py"), "--model.lm", lm, *source, *run.flags.split()]
        command += ["--trainer.logger", "false", "--run.dir", folder + "/run"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors.read()[-2000:]}")
        cost = json.loads(Path(folder, "run", "metrics.json").read_text())["cost"]
    foretold, actual = ([cost[phase][key] for phase in PHASES] for key in ("estimated_seconds", "seconds"))
    ratios = {phase: f / a for phase, f, a in zip(PHASES, foretold, actual, strict=True)}
    memory = max(cost[phase]["memory"] for phase in PHASES) / (KIB * usage.ru_maxrss)
    together = {"all": sum(foretold) / sum(actual), "memory": memory}
    return ratios | together | {"seconds": sum(actual), "MiB": usage.ru_maxrss / KIB}


def main(
    stories: str = str(SHARED_FOLDER / "models" / "stories260k"),
    stories_texts: str = str(SHARED_FOLDER / "data" / "stories.jsonl"),
    smollm2: str | None = None,
    gemma: str | None = None,
    texts: str | None = None,
    only: Sequence[str] | None = None,
    out: Path | None = None,
) -> None:
    """Compare the cost that runs foretell with what they take.

    Args:
        stories: Folder of TinyStories-260K; its rows are left out where there is none.
        stories_texts: Its texts.
        smollm2: Folder or hub id of SmolLM2-135M, for its rows.
        gemma: Folder or hub id of Gemma-3-270M, for its rows.
        texts: Texts of these two.
        only: Models to measure: embedded, stories, smollm2, gemma.
        out: JSON file to write, after every row.
    """
    sources = {
        "embedded": ("embedded", None),
        "stories": (stories if Path(stories).is_dir() else None, stories_texts),
        "smollm2": (smollm2, texts),
        "gemma": (gemma, texts),
    }
    print(machine())
    rows: list[dict[str, Any]] = []
    for run in RUNS:
        lm, path = sources[run.model]
        if lm is None or run.model not in (only or sources):
            print(f"{run.model}, {run.what}: left out")
            continue
        row = measure(run, lm, path)
        rows.append({"model": run.model, "what": run.what, "flags": run.flags} | row)
        print(f"{run.model}, {run.what}: {', '.join(f'{name} {value:.2f}' for name, value in row.items())}", flush=True)
        write_results({"rows": rows}, out)


if __name__ == "__main__":
    auto_cli(main)
