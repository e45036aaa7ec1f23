"""Writes requirements.lock: the packages that pip would install at the versions of constraints.txt, by hash."""

import json
import re
import subprocess
import sys
from pathlib import Path

HEADER = """\
# Everything at the versions of constraints.txt, by hash: Python 3.11 on Linux x86-64. Made by: python .ci/lock.py
# torch is its CPU build: add --extra-index-url https://download.pytorch.org/whl/cpu
#   pip install --require-hashes -r requirements.lock && pip install --no-deps --no-build-isolation -e .
"""
COMMAND = "pip install --dry-run --ignore-installed --quiet --report - -c constraints.txt .[dev,gguf,lens]"


def main() -> None:
    """Resolve, and write a line for every package but this one."""
    done = subprocess.run([sys.executable, "-m", *COMMAND.split()], stdout=subprocess.PIPE, text=True, check=True)
    locked = dict[str, str]()
    for package in json.loads(done.stdout)["install"]:
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        digest = package["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest:  # this package is a folder
            locked[name] = f"{name}=={package['metadata']['version']} --hash=sha256:{digest}\n"
    Path("requirements.lock").write_text(HEADER + "".join(locked[name] for name in sorted(locked)))


if __name__ == "__main__":
    main()
