"""Our code raises no warning in Python's development mode, where every warning is an error here."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STRICT = f"""
import builtins, sys, tomllib, warnings
from pathlib import Path
warnings.simplefilter("error")
settings = tomllib.loads(Path({str(ROOT / "pyproject.toml")!r}).read_text())["tool"]["pytest"]["ini_options"]
for line in settings["filterwarnings"][1:]:
    action, message, category, *_ = [*line.split(":"), "", ""]
    warnings.filterwarnings(action, message, getattr(builtins, category, Warning))
from masklearn import cli
entry_point, sys.argv[1:] = getattr(cli, sys.argv[1]), sys.argv[2:]
sys.exit(entry_point())
"""


def run_strictly(*args: str) -> None:
    """Run an entry point, named by the first argument, with every warning an error."""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", STRICT, *args], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    assert "Warning" not in done.stderr, done.stderr[-2000:]


def test_a_run_and_its_evaluation_raise_no_warning(tmp_path: Path) -> None:
    run = ["--data.task", "names", "--data.positions", "last", "--data.limit", "30", "--model.steps", "6"]
    run += ["--model.polish", "1", "--model.sizes", "[18, 27]"]
    run_strictly("train", *run, "--run.dir", str(tmp_path / "run"), "--trainer.logger", "false")
    run_strictly("evaluate", "--mask", str(tmp_path / "run" / "mask.safetensors"), "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "metrics.json").is_file()
