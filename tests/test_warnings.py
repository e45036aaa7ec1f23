"""Our code raises no warning in Python's development mode, where every warning is an error here."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    *("--data.task", "names", "--data.positions", "last", "--data.limit", "12"),
    *("--model.steps", "4", "--model.polish", "1", "--model.sizes", "[18, 27]"),
]
RUN_AND_EVALUATION = f"""
import builtins, sys, tomllib, warnings
from pathlib import Path
warnings.simplefilter("error")
settings = tomllib.loads(Path({str(ROOT / "pyproject.toml")!r}).read_text())["tool"]["pytest"]["ini_options"]
for line in settings["filterwarnings"][1:]:
    action, message, category, *_ = [*line.split(":"), "", ""]
    warnings.filterwarnings(action, message, getattr(builtins, category, Warning))
from masklearn import cli
folder = Path(sys.argv.pop())
flags = [*{FLAGS}, "--run.dir", str(folder / "run"), "--trainer.logger", "false"]
assert cli.train(flags) == 0
assert cli.evaluate(["--mask", str(folder / "run" / "mask.safetensors"), "--out", str(folder / "out")]) == 0
"""


def test_a_run_and_its_evaluation_raise_no_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "dev", "-c", RUN_AND_EVALUATION, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    assert "Warning" not in done.stderr, done.stderr[-2000:]
    assert (tmp_path / "out" / "metrics.json").is_file()
