"""Damaged checkpoints, full disks, and folders that two runs want."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.bench import FIFTY, Bench, Fault, failed
from faults.processes import end, start, wait_for, whole

SIZES = [0, 8, 40, 70, 100, 140, 200, 260, 400]
"""KiB at which a run's disk is full, from its first file to its last."""


def damaged(bench: Bench, times: int) -> Fault:
    fault = Fault("last checkpoint cut short, emptied, or a byte of it changed", FIFTY)
    with bench.folder() as stopped:
        process = start(bench.begin(stopped))
        wait_for((stopped / "checkpoints" / "before.ckpt").is_file, process)
        process.kill()
        end(process)
        for i in range(times):
            with bench.folder() as folder:
                shutil.copytree(stopped, folder)
                last = folder / "checkpoints" / "last.ckpt"
                content = bytearray(last.read_bytes())
                place = bench.random.randrange(len(content))
                if i % 3 == 0:
                    content[place] ^= 1 + bench.random.randrange(255)
                last.write_bytes(content if i % 3 == 0 else content[: place if i % 3 == 1 else 0])
                ended = whole(bench.again(folder))
                format_report = "is damaged; going on from" in ended.out or i % 3 == 0  # some bytes nothing depends on
                fault.scorer("" if format_report else "no line says so", *bench.differences(folder))
    return fault


def full(bench: Bench, times: int) -> Fault:
    """A disk of so many KiB, filled by the run itself, then made larger."""
    fault = Fault("disk full, at moments from the first file to the last", FIFTY)
    for i in range(times):
        with small_disk(bench.work / "disk", SIZES[i * len(SIZES) // times]) as disk:
            folder = disk / "run"
            ended = whole(bench.begin(folder))
            clear = not ended.code or (ended.one_line and "make room" in ended.err)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            fault.scorer("" if clear else failed(ended), *bench.finish(folder, tracked=False))
    return fault


def shared(bench: Bench, times: int) -> Fault:
    fault = Fault("a second run in the folder of one that is alive, begun anew or gone on with")
    for i in range(times):
        with bench.folder() as folder:
            process = start(bench.begin(folder))
            wait_for((folder / "config.yaml").is_file, process)
            other = whole(bench.again(folder) if i % 2 else bench.begin(folder))
            refused = other.one_line and ("a run is at work in" in other.err or "already holds a run" in other.err)
            first = end(process)
            fault.scorer(
                "" if refused else failed(other), failed(first) if first.code else "", *bench.differences(folder)
            )
    return fault


@contextmanager
def small_disk(place: Path, kib: int, options: str = "") -> Iterator[Path]:
    """A file system of a few KiB; needs root on Linux."""
    place.mkdir(parents=True, exist_ok=True)
    size = f"size={max(4, kib)}k{options}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
