"""Evaluate masks: `python evaluate.py --help`."""

import sys

from masklearn.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
