"""Damaged checkpoints, full disks, and two runs in one folder."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.bench import UP_TO_50_STEPS, Bench, Fault, failed
from faults.processes import end, run_to_end, start, wait_for

DISK_SIZES = [0, 8, 40, 70, 100, 140, 200, 260, 400]
"""Disk sizes in KiB, such that the disk is full at the run's first file, at its last, or in between."""


def damaged(bench: Bench, times: int) -> Fault:
    """A last checkpoint that is truncated, empty, or has one other byte."""
    fault = Fault("last checkpoint truncated, emptied, or a byte of it changed", UP_TO_50_STEPS)
    with bench.folder() as stopped:
        process = start(bench.start_flags(stopped))
        wait_for((stopped / "checkpoints" / "before.ckpt").is_file, process)
        process.kill()
        end(process)
        for i in range(times):
            with bench.folder() as folder:
                shutil.copytree(stopped, folder)
                last = folder / "checkpoints" / "last.ckpt"
                content = bytearray(last.read_bytes())
                offset = bench.random.randrange(len(content))
                if i % 3 == 0:
                    content[offset] ^= 1 + bench.random.randrange(255)
                last.write_bytes(content if i % 3 == 0 else content[: offset if i % 3 == 1 else 0])
                ended = run_to_end(bench.resume_flags(folder))
                is_reported = "is damaged; resuming from" in ended.out or i % 3 == 0  # some bytes affect nothing
                fault.record("" if is_reported else "no line says so", *bench.differences(folder))
    return fault


def full(bench: Bench, times: int) -> Fault:
    """A small disk, filled by the run itself, then enlarged."""
    fault = Fault("disk full, at moments from the first file to the last", UP_TO_50_STEPS)
    for i in range(times):
        with small_disk(bench.work / "disk", DISK_SIZES[i * len(DISK_SIZES) // times]) as disk:
            folder = disk / "run"
            ended = run_to_end(bench.start_flags(folder))
            is_clear = not ended.code or (ended.one_line and "make room" in ended.err)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            fault.record("" if is_clear else failed(ended), *bench.finish(folder, tracked=False))
    return fault


def two_runs(bench: Bench, times: int) -> Fault:
    """A second run in the folder of a running one, started or resumed."""
    fault = Fault("a second run in the folder of a running one, started or resumed")
    for i in range(times):
        with bench.folder() as folder:
            process = start(bench.start_flags(folder))
            wait_for((folder / "config.yaml").is_file, process)
            second = run_to_end(bench.resume_flags(folder) if i % 2 else bench.start_flags(folder))
            is_refused = second.one_line and (
                "another run is using" in second.err or "already holds a run" in second.err
            )
            first = end(process)
            fault.record(
                "" if is_refused else failed(second), failed(first) if first.code else "", *bench.differences(folder)
            )
    return fault


@contextmanager
def small_disk(path: Path, kib: int, options: str = "") -> Iterator[Path]:
    """A file system of a few KiB, mounted at a path; needs root on Linux."""
    path.mkdir(parents=True, exist_ok=True)
    size = f"size={max(4, kib)}k{options}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
