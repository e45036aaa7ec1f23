"""Python's development mode, with every warning an error: nothing of ours is said to be wrong."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STRICT = f"""
import builtins, sys, tomllib, warnings
from pathlib import Path
warnings.simplefilter("error")
said_of_libraries = tomllib.loads(Path({str(ROOT / "pyproject.toml")!r}).read_text())["tool"]["pytest"]["ini_options"]
for line in said_of_libraries["filterwarnings"][1:]:
    action, message, category, *_ = [*line.split(":"), "", ""]
    warnings.filterwarnings(action, message, getattr(builtins, category, Warning))
from masklearn import cli
door, sys.argv[1:] = getattr(cli, sys.argv[1]), sys.argv[2:]
sys.exit(door())
"""


def strictly(*args: str) -> None:
    done = subprocess.run([sys.executable, "-X", "dev", "-c", STRICT, *args], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    assert "Warning" not in done.stderr, done.stderr[-2000:]


def test_a_run_and_its_evaluation_in_development_mode(tmp_path: Path) -> None:
    run = ["--data.task", "names", "--data.positions", "last", "--data.limit", "30", "--model.steps", "6"]
    run += ["--model.polish", "1", "--model.sizes", "[18, 27]"]
    strictly("train", *run, "--run.dir", str(tmp_path / "run"), "--trainer.logger", "false")
    strictly("evaluate", "--mask", str(tmp_path / "run" / "mask.safetensors"), "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "metrics.json").is_file()
