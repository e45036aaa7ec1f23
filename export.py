"""Write masks for other tools, or a smaller model: `python export.py --help`."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: spinning threads starve others

if __name__ == "__main__":
    from masklearn.cli import export

    sys.exit(export())
