"""The commands `train.py` and `evaluate.py`. A user's mistake becomes one line and exit code 2."""

from masklearn.cli.entry_points import evaluate, train

__all__ = ["evaluate", "train"]
