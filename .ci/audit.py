"""Known vulnerabilities of what requirements.lock installs, as far as pip-audit is there and its index answers."""

import json
import subprocess
import sys

COMMAND = (
    "pip-audit --requirement requirements.lock --require-hashes --disable-pip --progress-spinner off --format json"
)
PATIENCE = 300
"""Seconds after which an index counts as one that does not answer."""


def unchecked(why: str) -> int:
    print(f"Not checked for known vulnerabilities: {why}")
    return 0


def main() -> int:
    """Say what was checked and what was found; 1 if there is a known vulnerability, else 0."""
    try:
        done = subprocess.run(COMMAND.split(), capture_output=True, text=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        return unchecked("pip-audit is not installed")
    except subprocess.TimeoutExpired:
        return unchecked(f"the index does not answer within {PATIENCE} seconds")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return unchecked(["pip-audit says nothing", *done.stderr.strip().splitlines()][-1])
    known = [package for package in packages if "vulns" in package]
    found = [(package, vulnerability) for package in known for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        mended = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, mended in {mended}")
    print(f"{len(known)} of {len(packages)} packages checked for known vulnerabilities, {len(found)} found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
