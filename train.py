"""Learn masks: `python train.py --help`."""

import sys

from masklearn.cli import train

if __name__ == "__main__":
    sys.exit(train())
