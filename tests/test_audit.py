"""The check for known vulnerabilities, with a fake pip-audit that finds some, none, or fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAFE = {"name": "torch", "version": "2.13.0", "vulns": []}
BAD = {"name": "pyyaml", "version": "5.3", "vulns": [{"id": "PYSEC-2021-142", "fix_versions": ["5.4"]}]}
UNKNOWN = {"name": "wandb", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("report", "code", "line"),
    [
        ({"dependencies": [SAFE, UNKNOWN]}, 0, "1 of 2 packages checked for known vulnerabilities, 0 found"),
        ({"dependencies": [SAFE, BAD]}, 1, "pyyaml 5.3: PYSEC-2021-142, mended in 5.4"),
        (None, 0, "Not checked for known vulnerabilities: ConnectionError: pypi.org"),
    ],
)
def test_only_known_vulnerabilities_fail_the_check(report: object, code: int, line: str, tmp_path: Path) -> None:
    """pip-audit exits with 1 both if it finds something and if its index does not answer."""
    fake = tmp_path / "pip-audit"
    script = f"echo '{json.dumps(report)}'; exit {code}" if report else "echo 'ConnectionError: pypi.org' >&2; exit 1"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    done = audit(f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert (done.returncode, done.stderr) == (code, "")
    assert line in done.stdout.splitlines()


def test_without_pip_audit_the_check_says_so(tmp_path: Path) -> None:
    done = audit(str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (
        0,
        "Not checked for known vulnerabilities: pip-audit is not installed",
    )


def audit(path: str) -> subprocess.CompletedProcess[str]:
    """Run the check with this PATH."""
    return subprocess.run(
        [sys.executable, ".ci/audit.py"], cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=False
    )
