"""The commands `train.py`, `evaluate.py` and `export.py`. A user's mistake becomes one line and exit code 2."""

from masklearn.cli.entry_points import evaluate, export, train

__all__ = ["evaluate", "export", "train"]
