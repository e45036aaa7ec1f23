"""The script for a GPU, in its dry run on tiny models: time on such a machine is too short for a row that fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OVERHEAD = ["overhead, GPT-2", "overhead, Llama 1B", "overhead, Llama 8B"]


def measured(out: Path, *flags: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry", "true", "--out", str(out), *flags]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(BENCHMARKS.parent)}
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return {name: row for name, row in json.loads(out.read_text()).items() if isinstance(row, dict) and ", " in name}


def test_every_row_runs(tmp_path: Path) -> None:
    """But for compiled steps, which take a minute to compile on a CPU and have tests of their own."""
    only = [*OVERHEAD, "SmolLM2, 64 x 64, eager", "SmolLM2, per input", "train.py", "Llama 8B, 12"]
    rows = measured(tmp_path / "gpu.json", "--only", json.dumps(only))
    assert [next(name for name in rows if name.startswith(start)) for start in only] == list(rows)
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    for name, row in rows.items():
        if name.startswith("overhead"):
            assert row["ratio"] > 0 and row["extra_operations"] > 0 and row["reads_back"] == 0
        elif name.startswith("train.py"):
            assert row["auto"]["stages"] == row["false"]["stages"]  # on a CPU nothing is compiled
        else:
            assert row["step"] > 0


def test_rows_for_which_there_is_no_time_are_named(tmp_path: Path) -> None:
    rows = measured(tmp_path / "gpu.json", "--minutes", "0")
    assert len(rows) == 8 and all(row == {"skipped": "no time left"} for row in rows.values())
